"""From an experiment to a `JaxExecutor`: weights on the device, an empty page pool, ladders that fit the trace."""

import dataclasses
from collections.abc import Callable, Collection, Sequence

import jax
import numpy as np

from kernels.pallas.paged_attention import xla
from kernels.pallas.paged_attention.api import resolve
from nanoserve.engine.sequence import pages_for
from nanoserve.engine.types import EngineConfig
from nanoserve.executors.buckets import best_ladder, geometric_ladder
from nanoserve.executors.jax_executor import JaxExecutor, KvLedger, Ladders, RequestSampling
from nanoserve.executors.tokens import TokenBook
from nanoserve.model import sharding
from nanoserve.model.params import from_tensors
from nanoserve.model.step import attention_for, init_state, make_steps, state_shardings
from nanoserve.specs.chips import Precision
from nanoserve.specs.models import ModelSpec
from nanoserve.trace.types import Trace
from nanoserve.weights.types import TensorSource

JAX_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
_PREFILL_RUNGS = 4
_DECODE_RATIO = 4


@dataclasses.dataclass(frozen=True, kw_only=True)
class JaxParts:
    """What an executor is built from.

    Attributes:
      spec, weights, precision: the model. ways: tensor-parallel ways over the first devices.
      config: of the engine. num_pages: of the pool, resolved.
      trace: decides the ladders. prompt_of: request -> prompt ids. stop_ids: ends of text, empty to ignore them.
      sampling: per request. seed: of the sampling keys. attention: implementation name.
    """

    spec: ModelSpec
    weights: TensorSource
    precision: Precision
    ways: int
    config: EngineConfig
    num_pages: int
    trace: Trace
    prompt_of: Callable[[int], Sequence[int] | np.ndarray]
    stop_ids: Collection[int]
    sampling: RequestSampling
    seed: int
    attention: str = "auto"


def build_jax_executor(parts: JaxParts) -> JaxExecutor:
    """Loads the weights and makes the pool; compiles nothing yet.

    Raises:
      WeightsError: the checkpoint is not the model's. ConfigError: the model cannot be cut over the mesh.
    """
    spec, config = parts.spec, parts.config
    dtype = JAX_DTYPES[parts.precision.weights]
    mesh = sharding.make_mesh(jax.devices()[: parts.ways]) if parts.ways > 1 else None
    params = from_tensors(spec, parts.weights, dtype, sharding.placer(mesh) if mesh else None)
    state = init_state(
        spec,
        pages=parts.num_pages,
        page_tokens=config.page_tokens,
        slots=config.max_seqs,
        dtype=JAX_DTYPES[parts.precision.kv],
    )
    if mesh:
        state = jax.device_put(state, state_shardings(mesh, spec))
    ladders = ladders_for(parts.trace, config)
    return JaxExecutor(
        steps=make_steps(spec, attention=attention_for(spec, parts.attention), mesh=mesh),
        params=params,
        state=state,
        ladders=ladders,
        ledger=_ledger(parts, ladders.table_pages),
        book=TokenBook(parts.prompt_of, parts.stop_ids),
        sampling=parts.sampling,
        key=jax.random.key(parts.seed),
        max_seqs=config.max_seqs,
    )


def _ledger(parts: JaxParts, table_pages: int) -> KvLedger:
    """What the XLA implementation of attention gathers; the kernels' own counts are not known here yet."""
    if resolve(parts.attention) != "xla":
        return lambda decode_lens, kv_lens, q_lens, tokens: None
    page_tokens, window = parts.config.page_tokens, parts.spec.sliding_window_tokens

    def gathered(decode_lens: np.ndarray, kv_lens: np.ndarray, q_lens: np.ndarray, tokens: int) -> int:
        total = xla.decode_gathered_tokens(decode_lens, page_tokens, table_pages, window) if len(decode_lens) else 0
        if len(kv_lens):
            total += xla.prefill_gathered_tokens(kv_lens, q_lens, tokens, page_tokens, table_pages, window)
        return total

    return gathered


def ladders_for(trace: Trace, config: EngineConfig) -> Ladders:
    """Buckets that pad this trace little: prefill rungs from its chunk sizes, decode rungs by factors of four."""
    budget = config.max_step_tokens
    if config.prefill_chunk_tokens is not None:
        budget = min(budget, config.prefill_chunk_tokens)
    rests = trace.prompt_tokens % budget
    sizes = np.concatenate([rests[rests > 0], np.full(int((trace.prompt_tokens // budget).sum()), budget)])
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    return Ladders(
        decode_rows=geometric_ladder(min(config.max_seqs, len(trace)), _DECODE_RATIO),
        prefill_tokens=best_ladder(sizes, budget, _PREFILL_RUNGS),
        prefill_rows=min(config.max_seqs, budget),
        table_pages=pages_for(longest, config.page_tokens),
        loop_steps=config.max_horizon_steps,
    )
