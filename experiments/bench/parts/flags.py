"""What XLA's flags change of a step: the same step, compiled again with each, beside the step as it is shipped.

Flags are given to the compiler with the program (`compat.compiler_options` has those that are shipped), so that all of
them are measured in one process, on the same weights and KV. A case is named STEP+CANDIDATE; STEP+shipped is what the
others are held against. Nothing here is chosen: what wins is written into `compat.compiler_options`, with this part's
record as its source.

What can only be decided here: a call outside of a command buffer (CUDA graph) costs the host some microseconds, and a
graph whose addresses have changed is updated before it is launched, call by call. By default XLA makes a graph of a
layer, updated and launched once for every layer and step. `whole_step` and `layers_unrolled` make one of all layers, in
which each has nodes of its own; `whole_loop` one of all steps of a loop, in which the device itself decides whether to
go on. What the compiler answers to each is in docs/h100_steps.md.

Next: `step_ready` (what is compiled again), `step` (how it is timed).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from experiments.bench.parts import Case, Context
from experiments.bench.parts.step_cases import EIGHT, SEVENTY, StepCase, decode, prefill, toy_catalogue
from experiments.bench.results_file import MEASURED, Record
from nanoserve.report.units import share, significant, time

if TYPE_CHECKING:
    from experiments.bench.parts.step_ready import Prepared
    from nanoserve.model.step import Steps

NAME = "flags"
SHIPPED = "shipped"
IN_GRAPHS = "FUSION,CUBLAS,CUBLASLT,CUDNN,CUSTOM_CALL,DYNAMIC_SLICE_FUSION,CONDITIONAL"  # XLA's default
LOOPS_TOO = {"xla_gpu_enable_command_buffer": f"{IN_GRAPHS},WHILE"}
UNROLLED = {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_FULL_UNROLL"}

CANDIDATES: Mapping[str, Mapping[str, Any]] = {
    SHIPPED: {},
    "whole_step": LOOPS_TOO | {"xla_gpu_command_buffer_unroll_loops": True},
    "whole_loop": LOOPS_TOO | UNROLLED,
    "layers_unrolled": UNROLLED,
    "no_graphs": {"xla_gpu_enable_command_buffer": ""},
    "traces_kept": {"xla_cmd_buffer_trace_cache_size": 1024},
    "fixed_addresses": {"xla_gpu_command_buffer_update_mode": "SKIP_TEMP"},
    "graph_in_order": {"xla_gpu_command_buffer_scheduling_mode": "SERIALIZE"},
    "graph_concurrent": {"xla_gpu_command_buffer_scheduling_mode": "CONCURRENT"},
    "triton_products": {"xla_gpu_enable_triton_gemm": True},
    "cublas": {"xla_gpu_enable_cublaslt": False},
    "all_algorithms": {"xla_gpu_autotune_max_solutions": 100},
    "not_tuned": {"xla_gpu_autotune_level": 0},
    "latency_hiding": {"xla_gpu_enable_latency_hiding_scheduler": True},
    "two_layers_a_turn": {"xla_gpu_enable_while_loop_unrolling": "WHILE_LOOP_UNROLLING_DOUBLE_BUFFER"},
}
"""XLA's options, by name, those first that may change most. Further ones take the place of shipped ones."""
EIGHT_ROWS = "eight_rows"
PADDED_ROWS: Mapping[str, int] = {EIGHT_ROWS: 8}
"""Candidates that are no flags: the rows that a decode step is padded to. From two rows on a norm is one kernel and not
two, and eight are as many as cuBLAS multiplies without padding of its own."""
OF_CUBLAS = ("triton_products", "cublas", "all_algorithms")
OF_PREFILL = (SHIPPED, "whole_step", "layers_unrolled", "triton_products", "cublas", "all_algorithms", "latency_hiding")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FlagsCase(Case):
    """A step under some flags.

    Attributes:
      step: what is measured, a case of the part `step`. candidate: a key of `CANDIDATES` or of `PADDED_ROWS`.
    """

    step: StepCase
    candidate: str

    def sizes(self) -> Record:
        """The step by its name, and what is different about it."""
        rows = PADDED_ROWS.get(self.candidate, self.step.rows)
        return {"step": self.step.name, "candidate": self.candidate, "options": self.options, "padded_rows": rows}

    @property
    def options(self) -> dict[str, Any]:
        """Of XLA, besides those that are shipped."""
        return dict(CANDIDATES.get(self.candidate, {}))


def cases(toy: bool) -> Sequence[FlagsCase]:
    """Every candidate for a decode step of one row, where launches weigh most; then for larger steps."""
    if toy:
        step = toy_catalogue()[0]
        return [_case(step, name) for name in (SHIPPED, "not_tuned", EIGHT_ROWS)]
    small, large, quantised = decode(EIGHT, 1, 1024), decode(EIGHT, 32, 4096), decode(SEVENTY, 1, 1024, "int4")
    return [
        *(_case(small, name) for name in (*CANDIDATES, *PADDED_ROWS)),
        *(_case(large, name) for name in CANDIDATES),
        *(_case(prefill(EIGHT, 2048), name) for name in OF_PREFILL),
        *(_case(quantised, name) for name in (*CANDIDATES, *PADDED_ROWS) if name not in OF_CUBLAS),
    ]


def measure(case: FlagsCase, context: Context) -> Record:
    """A step's times under the flags, and how they compare with the shipped ones where those were measured."""
    from experiments.bench.parts import step
    from experiments.bench.parts.step_ready import prepare

    ready = prepare(case.step, context)
    ready.executor.steps = _compiled_with(ready, context, case.options)
    if case.candidate in PADDED_ROWS:
        _pad(ready, PADDED_ROWS[case.candidate])
    times = step.times(ready, context)
    shipped = context.found.get(NAME, {}).get(_name(case.step, SHIPPED), {})
    if shipped.get("status") != MEASURED:
        return times
    return {**times, "times_shipped": times["time"]["median_s"] / shipped["time"]["median_s"]}


def columns(record: Record) -> Mapping[str, str]:
    """The cells of a line."""
    return {
        "a step": time(record["time"]["median_s"]),
        "host gap": share(record["host_gap_share"]),
        "times shipped": significant(record["times_shipped"]) if "times_shipped" in record else "",
    }


def _compiled_with(ready: "Prepared", context: Context, options: Mapping[str, Any]) -> "Steps":
    """The step's programs with these options on top of those that are shipped."""
    from kernels.pallas import compat
    from nanoserve.model.attention import attention_for
    from nanoserve.model.step import make_steps

    loaded = ready.model
    return make_steps(
        loaded.spec,
        attention=attention_for(loaded.spec, loaded.attention.name),
        sampler=ready.executor.arrays.sampling.sampler,
        places=loaded.places,
        compiler_options={**compat.compiler_options(context.device), **options},
    )


def _pad(ready: "Prepared", rows: int) -> None:
    """Has the step's decode rows padded to so many."""
    executor = ready.executor
    executor.ladders = executor.arrays.ladders = dataclasses.replace(executor.ladders, decode_rows=(rows,))


def _case(step: StepCase, candidate: str) -> FlagsCase:
    return FlagsCase(name=_name(step, candidate), step=step, candidate=candidate)


def _name(step: StepCase, candidate: str) -> str:
    return f"{step.name}+{candidate}"
