"""From an experiment to a `JaxExecutor`: weights on the device, an empty page pool, ladders that fit the trace."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from kernels.pallas import compat
from kernels.pallas.choosing import Choice
from kernels.pallas.paged_attention import ledger, xla
from kernels.pallas.paged_attention.api import IMPLEMENTATIONS
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.sequence import pages_for
from nanoserve.executors.arrays import Ladders, RequestSampling
from nanoserve.executors.buckets import best_ladder, geometric_ladder
from nanoserve.executors.host_pages import HostPages
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.one_shape import OneShapeCalls, one_shape_ladders
from nanoserve.executors.precisions import JAX_DTYPES, KV_DTYPES, storage_on, weights_dtype
from nanoserve.executors.step_calls import KvLedger
from nanoserve.executors.tokens import TokenBook
from nanoserve.model import sharding
from nanoserve.model.attention import attention_for, choose_attention
from nanoserve.model.params import Params, from_tensors, spread
from nanoserve.model.places import state_places
from nanoserve.model.quantised import Storage
from nanoserve.model.quantising import quantiser
from nanoserve.model.random_params import random_params
from nanoserve.model.sampling import Sampler, sample
from nanoserve.model.step import DeviceState, Steps, init_state, make_steps
from nanoserve.model.verify import SpeculativeSteps, make_speculative_steps
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec
from nanoserve.trace.types import Trace
from nanoserve.weights.random import DrawnOnDevices
from nanoserve.weights.types import TensorSource

PLAIN = Choice("xla", "nothing else was asked for")
_PREFILL_RUNGS = 4
_DECODE_RATIO = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready to run: its entry points and its weights where they will be used.

    Attributes:
      spec, params: the model as its chips execute it.
      steps_with: its entry points, which choose tokens by a function; made, not yet compiled.
      speculative: the entry points that speculation adds.
      kv_dtype: of the pages.
      attention: the implementation, and why it was picked.
      places: where a state lives, None where it does not matter.
    """

    spec: ModelSpec
    steps_with: Callable[[Sampler], Steps]
    speculative: SpeculativeSteps
    params: Params
    kv_dtype: str
    attention: Choice
    places: DeviceState | None

    @property
    def steps(self) -> Steps:
        """The entry points that serve any requests, those that draw included."""
        return self.steps_with(sample)


def load_model(
    spec: ModelSpec,
    weights: TensorSource | DrawnOnDevices,
    precision: Precision,
    *,
    mesh: Mesh | None = None,
    attention: Choice = PLAIN,
) -> LoadedModel:
    """Reads the weights onto the devices of a mesh, or draws them there.

    Args:
      spec, weights, precision: the model, its checkpoint or a seed, and how it is stored.
      mesh: of one replica (`sharding.replicas`); None for the default device.
      attention: as `attention_here` chose it.

    Raises:
      WeightsError: the checkpoint is not the model's. ConfigError: the model cannot be cut over the devices.
    """
    device = mesh.devices.flat[0] if mesh else jax.devices()[0]
    ways = sharding.ways_of(mesh)
    kv_dtype, executed = KV_DTYPES[precision.kv], spread(spec, ways.heads)
    places = state_places(executed, attention.name, kv_dtype, mesh)
    how = storage_on(device, spec, precision, ways.columns)
    bound = attention_for(executed, attention.name, mesh)
    options = compat.compiler_options(device)
    made = {"attention": bound, "places": places, "compiler_options": options}
    return LoadedModel(
        spec=executed,
        steps_with=functools.cache(lambda sampler: make_steps(executed, sampler=sampler, **made)),
        speculative=make_speculative_steps(executed, **made),
        params=_params(spec, weights, weights_dtype(precision), how, mesh),
        kv_dtype=kv_dtype,
        attention=attention,
        places=places,
    )


def _params(
    spec: ModelSpec, weights: TensorSource | DrawnOnDevices, dtype: str, how: Storage | None, mesh: Mesh | None
) -> Params:
    if isinstance(weights, DrawnOnDevices):
        return random_params(spec, jax.random.key(weights.seed), dtype, how=how, mesh=mesh)
    place = sharding.placer(mesh) if mesh else None
    quantise = quantiser(how, mesh) if how else None
    return from_tensors(spec, weights, dtype, place, sharding.ways_of(mesh), quantise)


def replica_meshes(clusters: Sequence[ClusterSpec]) -> list[list[Mesh | None]]:
    """The meshes of every replica of some clusters, which get devices of their own, one cluster after the other."""
    meshes, taken = [], 0
    for cluster in clusters:
        axes = sharding.device_axes(cluster)
        devices = jax.devices()[taken : taken + math.prod(axes.values())]
        meshes.append(sharding.replicas(sharding.make_mesh(devices, axes)))
        taken += len(devices)
    return [[None]] if taken == 1 else meshes


def attention_here(
    asked: str, spec: ModelSpec, precision: Precision, config: EngineConfig, ladders: Ladders, ways: int = 1
) -> Choice:
    """The implementation of paged attention for the default device: `auto`, or the name of one.

    Args:
      asked, spec, precision, config, ladders: what runs, and in which shapes. ways: chips that share the heads.

    Raises:
      ConfigError: a name that does not exist, or that cannot serve this model.
    """
    return choose_attention(
        asked,
        spec,
        compat.kernel_target(jax.devices()[0]),
        dtype=JAX_DTYPES[precision.activations],
        kv_dtype=KV_DTYPES[precision.kv],
        rows=max(ladders.decode_rows[-1], ladders.prefill_rows),
        page_tokens=config.page_tokens,
        table_pages=ladders.table_pages,
        ways=ways,
    )


def build_jax_executor(
    model: LoadedModel,
    config: EngineConfig,
    num_pages: int,
    ladders: Ladders,
    book: TokenBook,
    sampling: RequestSampling,
    seed: int,
) -> JaxExecutor:
    """An executor with an empty page pool; compiles nothing yet.

    Args:
      model: what runs. config: slots and page size. num_pages: of the pool.
      ladders: what to compile. book: token ids. sampling: per request. seed: of the sampling keys.

    Raises:
      ConfigError: pages are to be swapped, and several processes run the model.
    """
    executor = JaxExecutor(
        steps=model.steps_with(sampling.sampler),
        params=model.params,
        state=empty_state(model, config, num_pages),
        ladders=ladders,
        book=book,
        sampling=sampling,
        key=jax.random.key(seed),
        max_seqs=config.max_seqs,
        attention=f"{model.attention.name}: {model.attention.why}",
        ledger=_ledger(model, config.page_tokens, ladders.table_pages),
    )
    if config.preemption != "recompute":
        _check_one_process(config.preemption)
        executor.movers.append(HostPages(executor, ladders.table_pages, model.places))
    if config.batch_invariant:
        executor.calls = OneShapeCalls(executor)
    return executor


def _check_one_process(preemption: str) -> None:
    if jax.process_count() > 1:
        raise ConfigError(
            f"Engine.preemption = '{preemption}' copies pages to the memory of one process, and {jax.process_count()} "
            "run this engine together. Choose 'recompute', or run it in one process"
        )


def empty_state(model: LoadedModel, config: EngineConfig, num_pages: int) -> DeviceState:
    """A state of `num_pages` empty pages, made inside jit: a pool that fills the memory is not copied to its place."""
    sizes = {"pages": num_pages, "page_tokens": config.page_tokens, "slots": config.max_seqs, "dtype": model.kv_dtype}
    return jax.jit(functools.partial(init_state, model.spec, **sizes), out_shardings=model.places)()


def ladders_for(trace: Trace, config: EngineConfig, most_tokens: int | None = None) -> Ladders:
    """Buckets that pad this trace little: prefill rungs from its chunk sizes, decode rungs by factors of four.

    Where the config wants batch invariance, the one shape of its steps, which no trace has a part in.

    Args:
      trace: what will run. config: budgets and limits.
      most_tokens: prompt and output of the longest request that is not refused; None means the trace's longest. Without
        it one absurd row of a trace would make every page table as wide as itself.
    """
    total = trace.prompt_tokens + trace.output_tokens
    if config.batch_invariant:
        return one_shape_ladders(config, int(total.max()) if most_tokens is None else most_tokens)
    budget = config.max_step_tokens
    if config.prefill_chunk_tokens is not None:
        budget = min(budget, config.prefill_chunk_tokens)
    longest = int(total.max()) if most_tokens is None else min(int(total.max()), most_tokens)
    prompts = trace.prompt_tokens[total <= longest]
    rests = prompts % budget
    sizes = np.concatenate([rests[rests > 0], np.full(int((prompts // budget).sum()), budget)])
    return Ladders(
        decode_rows=geometric_ladder(min(config.max_seqs, len(trace)), _DECODE_RATIO),
        prefill_tokens=best_ladder(sizes, budget, _PREFILL_RUNGS),
        prefill_rows=min(config.max_seqs, budget),
        table_pages=pages_for(longest, config.page_tokens),
        loop_steps=config.max_horizon_steps,
    )


def _ledger(model: LoadedModel, page_tokens: int, table_pages: int) -> KvLedger:
    """What one chip's attention fetches of a layer, for the padding account; as if a pipeline's steps were not cut."""
    window = model.spec.sliding_window_tokens
    if model.attention.name == "xla":
        decode = functools.partial(xla.decode_gathered_tokens, table_pages=table_pages)
        prefill = functools.partial(xla.prefill_gathered_tokens, table_pages=table_pages)
    else:
        decode = ledger.decode_gathered_tokens
        prefill = _kernels_prefill(model, page_tokens, table_pages)

    def gathered(decode_lens: np.ndarray, kv_lens: np.ndarray, q_lens: np.ndarray, tokens: int) -> int:
        total = decode(decode_lens, page_tokens=page_tokens, window=window) if len(decode_lens) else 0
        if tokens:
            total += prefill(kv_lens, q_lens, tokens=tokens, page_tokens=page_tokens, window=window)
        return total

    return gathered


def _kernels_prefill(model: LoadedModel, page_tokens: int, table_pages: int) -> Callable[..., int]:
    """`ledger.prefill_gathered_tokens` with the tiles of the model's kernel."""
    spec, ways, shaped = model.spec, model.params.layers.ways.heads, jax.ShapeDtypeStruct
    kernel = IMPLEMENTATIONS[model.attention.name]
    kv_pages = shaped((1, page_tokens, spec.kv_heads // ways, 2, spec.head_size), model.kv_dtype)

    def prefill(kv_lens: np.ndarray, q_lens: np.ndarray, *, tokens: int, **options) -> int:
        q = shaped((tokens, spec.heads // ways, spec.head_size), model.params.embed.dtype)
        tile_tokens, across_chunks = kernel.prefill_tiles(q, kv_pages, table_pages)
        return ledger.prefill_gathered_tokens(
            kv_lens, q_lens, tile_tokens=tile_tokens, across_chunks=across_chunks, **options
        )

    return prefill
