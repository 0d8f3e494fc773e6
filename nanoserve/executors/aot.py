"""Compiles a model's steps for chips that are not there: the real programs, all layers, cut over the config's chips.

Weights and state are shapes with shardings, so nothing is allocated; the vendor's compiler needs no device. A program
that does not fit comes back with the compiler's own message, because that is an answer too.

libtpu reads its environment when it is first loaded: `experiments/compile.py` sets it. Next: `aot_targets` (the chips),
`aot_report` (what the program says).
"""

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from kernels.pallas import aot_gpu, compat
from kernels.pallas.aot_gpu import ResourceReport
from kernels.pallas.paged_attention.api import check_known
from kernels.pallas.quant_matmul.weight import stored_bytes
from nanoserve.engine.sequence import pages_for
from nanoserve.executors.aot_targets import devices
from nanoserve.executors.choose import program_obstacle
from nanoserve.executors.precisions import KV_DTYPES, storage_on, weights_dtype
from nanoserve.model import params as model_params
from nanoserve.model import sharding
from nanoserve.model.attention import attention_for, choose_attention
from nanoserve.model.params import Params, spread
from nanoserve.model.places import state_places
from nanoserve.model.sampling import Sampler, greedy, most_likely
from nanoserve.model.step import DecodeRows, DeviceState, PrefillRows, init_state, make_steps
from nanoserve.model.verify import VerifyRows, make_speculative_steps
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec

MEMORY_KINDS = ("argument", "output", "alias", "temp", "generated_code")
NO_MEMORY = ("RESOURCE_EXHAUSTED", "CompileTimeHbmOom")
NO_OPTION = ("No such compile option", "While setting option")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """Sizes that a step is compiled for.

    Attributes:
      batch: sequences in the pool, and rows of a decode step. context_tokens: positions of each.
      chunk_tokens: prompt tokens of a prefill step, which end a prompt of `context_tokens`.
      page_tokens, slots: of the pool. loop_steps: decode steps of one `decode_loop`.
      draft_tokens: guesses of each of `batch` rows in a step that verifies.
      pool_pages: pages of the pool; None for those that `batch` sequences need.
    """

    batch: int
    context_tokens: int
    chunk_tokens: int
    page_tokens: int
    slots: int
    loop_steps: int = 1
    draft_tokens: int = 4
    pool_pages: int | None = None

    @property
    def table_pages(self) -> int:
        """Pages of one sequence."""
        return pages_for(self.context_tokens, self.page_tokens)

    @property
    def pages(self) -> int:
        """Pages of the pool."""
        return self.batch * self.table_pages if self.pool_pages is None else self.pool_pages


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compiled:
    """One program as the compiler left it, or why it did not.

    Attributes:
      name: `decode_step`, `prefill_step`, `mixed_step`, `decode_loop` or `verify_step`. text: HLO.
      refused: the compiler's message, or empty; where it is not, the rest is. kernels: of a GPU, what Mosaic's use.
      weight_bytes, kv_bytes: arguments of one chip by our own shapes. memory: the compiler's bytes of one chip.
      counted_flops: by XLA's cost analysis, which counts a loop's body once. lower_s, compile_s: how long it took.
      thunks: of a GPU, what XLA's runtime will walk through, as `compiled_launches.launches` takes it.
    """

    name: str
    weight_bytes: int
    kv_bytes: int
    lower_s: float
    compile_s: float
    text: str = ""
    memory: Mapping[str, int] = dataclasses.field(default_factory=dict)
    counted_flops: float = 0.0
    refused: str = ""
    kernels: ResourceReport | None = None
    thunks: tuple[str, str] = ("", "")


class Compiler:
    """A model's steps, ready to be compiled for a workload."""

    def __init__(
        self,
        spec: ModelSpec,
        cluster: ClusterSpec,
        precision: Precision,
        work: Workload,
        attention: str,
        sampler: Sampler = most_likely,
        options: Mapping[str, Any] | None = None,
    ):
        """Takes the model and its cut as a config states them.

        Args:
          spec, cluster, precision: the model, its chips, and how it is stored. work: the sizes of its steps.
          attention: as for `choose_attention`. sampler: as for `make_steps`.
          options: of XLA, besides those that are shipped for the chips.

        Raises:
          ConfigError: no topology of these chips, no compiler, a dtype or a cut that cannot be executed.
        """
        check_known(attention)
        if obstacle := program_obstacle(spec, cluster, precision):
            raise ConfigError(
                f"cannot compile {spec.name} for {cluster.count} x {cluster.chip.name}, mesh {dict(cluster.mesh)}: "
                f"{obstacle}"
            )
        self.work = work
        dtype, kv_dtype = weights_dtype(precision), KV_DTYPES[precision.kv]
        self.mesh = sharding.make_mesh(devices(cluster), cluster.mesh)
        ways = sharding.ways_of(self.mesh)
        how = storage_on(self.mesh.devices.flat[0], spec, precision, ways.columns)
        spec = spread(spec, ways.heads)
        self.attention = choose_attention(
            attention,
            spec,
            compat.kernel_target(self.mesh.devices.flat[0]),
            dtype=dtype,
            kv_dtype=kv_dtype,
            rows=work.batch,
            page_tokens=work.page_tokens,
            table_pages=work.table_pages,
            ways=ways.heads,
        )
        places = state_places(spec, self.attention.name, kv_dtype, self.mesh)
        bound = attention_for(spec, self.attention.name, self.mesh)
        options = {**compat.compiler_options(self.mesh.devices.flat[0]), **(options or {})}
        made = {"attention": bound, "places": places, "compiler_options": options}
        self.steps = make_steps(spec, sampler=sampler, **made)
        self.speculative = make_speculative_steps(spec, **made)
        weights = model_params.abstract(spec, dtype, ways, how)
        self.params: Params = _placed(weights, sharding.shardings(self.mesh, spec, how))
        empty = {"pages": work.pages, "page_tokens": work.page_tokens, "slots": work.slots}
        state = jax.eval_shape(lambda: init_state(spec, **empty, dtype=kv_dtype))
        self.state: DeviceState = _placed(state, places)

    def decode_step(self) -> Compiled:
        """Compiles a decode step of `batch` rows."""
        return self.compile("decode_step", self.steps.decode, decode_rows(self.work))

    def prefill_step(self) -> Compiled:
        """Compiles a prefill step of one chunk."""
        return self.compile("prefill_step", self.steps.prefill, prefill_rows(self.work))

    def mixed_step(self) -> Compiled:
        """Compiles a step of `batch` rows that decode and one chunk."""
        return self.compile("mixed_step", self.steps.mixed, decode_rows(self.work), prefill_rows(self.work))

    def decode_loop(self) -> Compiled:
        """Compiles `loop_steps` decode steps in one call."""
        steps = self.work.loop_steps
        return self.compile("decode_loop", self.steps.decode_loop, decode_rows(self.work), _integers(), max_steps=steps)

    def verify_step(self) -> Compiled:
        """Compiles a step of `batch` rows that verify."""
        return self.compile("verify_step", self.speculative.verify, verify_rows(self.work))

    def compile(self, name: str, step: Callable[..., Any], *rows: Any, **static: int) -> Compiled:
        """Compiles one entry point of `steps`.

        Args:
          name: of what is returned. step: the entry point. rows: what it takes beside weights, state and key; shapes
            are enough. static: its static arguments.
        """
        everywhere = NamedSharding(self.mesh, PartitionSpec())
        key = jax.eval_shape(lambda: jax.random.key(0))
        inputs = jax.tree.map(lambda a: _shaped(a, everywhere), (*rows, key))
        gpu = self.mesh.devices.flat[0].platform == "gpu"
        with aot_gpu.mosaic_logs() if gpu else contextlib.nullcontext() as logs:
            return self._lowered_and_compiled(name, step, inputs, static, logs)

    def _lowered_and_compiled(self, name, step, inputs, static: Mapping[str, int], logs: Path | None) -> Compiled:
        began = time.perf_counter()
        with jax.sharding.use_abstract_mesh(self.mesh.abstract_mesh):
            lowered = step.trace(self.params, self.state, *inputs, **static).lower()  # type: ignore[attr-defined]
        lowered_at = time.perf_counter()
        try:
            program, refused = lowered.compile(_dumped_to(logs) if logs else None), ""
        except jax.errors.JaxRuntimeError as error:
            if any(sign in str(error) for sign in NO_OPTION):
                raise ConfigError(f"XLA does not take the options that it is given: {error}") from error
            if not any(sign in str(error) for sign in NO_MEMORY):
                raise
            program, refused = None, str(error).strip()
        answered_at = time.perf_counter()
        return Compiled(
            name=name,
            weight_bytes=bytes_per_chip(self.params),
            kv_bytes=bytes_per_chip(self.state.pool),
            lower_s=lowered_at - began,
            compile_s=answered_at - lowered_at,
            refused=refused,
            text=(program.as_text() or "") if program else "",
            memory=_memory(program) if program else {},
            counted_flops=_counted_flops(program) if program else 0.0,
            kernels=aot_gpu.report(logs, answered_at - lowered_at) if logs else None,
            thunks=_thunks(logs) if logs and program else ("", ""),
        )


def decode_rows(work: Workload) -> DecodeRows:
    """Shapes of a decode step's rows."""
    B = work.batch
    return DecodeRows(
        slots_B=_integers(B),
        positions_B=_integers(B),
        page_table_BN=_integers(B, work.table_pages),
        active_B=jax.ShapeDtypeStruct((B,), "bool"),  # type: ignore[arg-type]
        sampling=jax.eval_shape(lambda: greedy(B)),
    )


def prefill_rows(work: Workload) -> PrefillRows:
    """Shapes of a prefill step's one row."""
    return _chunks(work, work.chunk_tokens, 1)


def verify_rows(work: Workload) -> VerifyRows:
    """Shapes of the rows of a step that verifies, each sampled after all of its tokens."""
    T = work.batch * (1 + work.draft_tokens)
    sampling = jax.eval_shape(lambda: greedy(T))
    return VerifyRows(chunks=_chunks(work, T, work.batch), sampled_S=_integers(T), sampling=sampling)


def _chunks(work: Workload, tokens: int, rows: int) -> PrefillRows:
    return PrefillRows(
        tokens_T=_integers(tokens),
        positions_T=_integers(tokens),
        cu_q_lens=_integers(rows + 1),
        kv_lens_R=_integers(rows),
        page_table_RN=_integers(rows, work.table_pages),
        slots_R=_integers(rows),
        samples_R=jax.ShapeDtypeStruct((rows,), "bool"),  # type: ignore[arg-type]
        sampling=jax.eval_shape(lambda: greedy(rows)),
    )


def bytes_per_chip(tree: Any) -> int:
    """Returns what one chip holds of arrays with shardings, without the padding of tiles."""
    parts = (jax.ShapeDtypeStruct(a.sharding.shard_shape(a.shape), a.dtype) for a in jax.tree.leaves(tree))
    return sum(map(stored_bytes, parts))


def _dumped_to(folder: Path) -> dict[str, Any]:
    """What makes XLA write down its programs there."""
    return {"xla_dump_to": str(folder), "xla_dump_hlo_as_text": True}


def _thunks(folder: Path) -> tuple[str, str]:
    """The thunks of the program that was dumped there last, after what the compiler did to them, and their names."""
    newest = sorted(folder.glob("*.thunk_metadata.txt"), key=lambda path: path.stat().st_mtime_ns)[-1]
    after, before = (
        newest.with_name(newest.name.replace("thunk_metadata", kind))
        for kind in ("thunk_sequence_after_thunk_passes", "thunk_sequence")
    )
    return (after if after.exists() else before).read_text(), newest.read_text()


def _memory(program: jax.stages.Compiled) -> dict[str, int]:
    found = program.memory_analysis()
    return {kind: getattr(found, f"{kind}_size_in_bytes") for kind in MEMORY_KINDS}


def _counted_flops(program: jax.stages.Compiled) -> float:
    return (program.cost_analysis() or {}).get("flops", 0.0)


def _placed(arrays: Any, places: Any) -> Any:
    return jax.tree.map(_shaped, arrays, places)


def _shaped(array: Any, where: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=where)


def _integers(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, "int32")
