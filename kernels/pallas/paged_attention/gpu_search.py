"""Block sizes for a GPU that is not there: what fits, what the compiler takes, and what a small cost model prefers.

For each problem (`PROBLEMS`) the candidates are ordered by `seconds_per_position`, and the compiler judges one after
the other until it takes one: without spilled registers, with products that do not wait for each other, in the shared
memory that a thread block has. The cost model is arithmetic on the chip's figures and on the assumptions below, none of
them measured. It orders candidates of one problem; its seconds are no prediction.

Everything here is pure but `compile_for`. Next: `gpu_tuning`, which reads what `experiments/tune.py` writes from this.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from kernels.pallas import aot_gpu
from kernels.pallas.gpu_target import Multiprocessors
from kernels.pallas.paged_attention import gpu_prefill
from kernels.pallas.paged_attention.gpu_pipeline import ROWS
from kernels.pallas.paged_attention.gpu_tuning import Blocks
from nanoserve.specs.chips import ChipSpec
from nanoserve.specs.errors import ConfigError

BLOCK_TOKENS = (64, 128)
MOST_STAGES, MOST_CONVERTED = 5, 2
RESERVED_BYTES = 6 * 1024  # barriers, factors, sums, and scratch of reductions

LATENCY_S = 1e-6  # of a load under traffic, from HBM or L2: assumed
L2_BYTES_PER_S = 5.5e12  # of all SMs together: assumed. Prefill reads a block for each tile, decode only once
EXPONENTIALS_PER_CYCLE = 16  # of an SM; CUDA programming guide, arithmetic throughput, 9.0
SOFTMAX_INSTRUCTIONS = 6  # per score: mask, scale, largest, subtract, sum, round
CONVERT_INSTRUCTIONS = 2.5  # per number: 2 between int8 or float8 and bfloat16, the rest to load and store
WAIT_CYCLES = 200  # per block, of barriers and of latencies that nothing hides: assumed
STRETCH_TOKENS = 1024  # positions that a thread block attends to in a row; half a block at their end is for nothing


@dataclasses.dataclass(frozen=True, kw_only=True, order=True)
class Problem:
    """What sizes depend on: `decode` or `prefill`, h, and bytes of an element of a page."""

    kind: str
    head_size: int
    kv_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """What became of a candidate: the compiler's figures if it got that far, and why it is refused, if it is."""

    problem: Problem
    blocks: Blocks
    seconds_per_position: float
    report: aot_gpu.ResourceReport | None
    refused: str


Compile = Callable[[Problem, Blocks], aot_gpu.ResourceReport]

PROBLEMS = tuple(
    Problem(kind=kind, head_size=head_size, kv_bytes=kv_bytes)
    for kind in ("decode", "prefill")
    for head_size in (64, 96, 128, 256)
    for kv_bytes in (2, 1)
)


def candidates(problem: Problem, sm: Multiprocessors) -> tuple[Blocks, ...]:
    """All sizes whose buffers fit in the shared memory of a thread block."""
    converted = (0,) if problem.kv_bytes == 2 else range(1, MOST_CONVERTED + 1)
    sizes = (
        Blocks(block_tokens=block_tokens, stages=stages, converted=slots)
        for block_tokens in BLOCK_TOKENS
        for stages in range(1, MOST_STAGES + 1)
        for slots in converted
    )
    return tuple(blocks for blocks in sizes if shared_bytes(problem, blocks) <= sm.block_shared_bytes)


def shared_bytes(problem: Problem, blocks: Blocks) -> int:
    """Shared memory of a thread block: queries or results, blocks as they come, and blocks of operands."""
    per_position = 2 * problem.head_size  # a key and a value
    fetched = blocks.stages * blocks.block_tokens * per_position * problem.kv_bytes
    converted = blocks.converted * blocks.block_tokens * per_position * 2
    result_bytes = 4 if problem.kind == "decode" else 2
    return RESERVED_BYTES + ROWS * _consumers(problem) * problem.head_size * result_bytes + fetched + converted


def bytes_in_flight(problem: Problem, blocks: Blocks) -> float:
    """Bytes that an SM has asked for at any time: all slots but the one in use, of which one half is free again."""
    slot = 2 * blocks.block_tokens * problem.head_size * problem.kv_bytes
    return max(blocks.stages - 1, 0.5) * slot


def seconds_per_position(problem: Problem, blocks: Blocks, chip: ChipSpec, sm: Multiprocessors) -> float:
    """Time of an SM for one KV position of one tile, memory and arithmetic side by side.

    Memory gives what its bandwidth or, by Little's law, what is in flight over the latency allows. Arithmetic is
    products and softmax, which two consumers overlap and one does not, and what each block costs besides. The
    conversion of 8-bit pages is hidden behind them if there is a second slot of operands to convert into.
    """
    bandwidth = chip.hbm_bytes_per_s if problem.kind == "decode" else L2_BYTES_PER_S
    rate = min(bandwidth / sm.count, bytes_in_flight(problem, blocks) / LATENCY_S)
    memory_s = 2 * problem.head_size * problem.kv_bytes / rate

    consumers, clock = _consumers(problem), sm.clock_ghz * 1e9
    rows, flops_per_cycle = ROWS * consumers, chip.peak_flops_per_s["bf16"] / sm.count / clock
    products = 4 * rows * problem.head_size / flops_per_cycle
    softmax = rows * (1 / EXPONENTIALS_PER_CYCLE + SOFTMAX_INSTRUCTIONS / sm.fpus)
    rescaling = rows * problem.head_size / sm.fpus
    attending = max(products, softmax) if consumers > 1 else products + softmax
    attending += (rescaling + WAIT_CYCLES) / blocks.block_tokens
    converting = 2 * problem.head_size * CONVERT_INSTRUCTIONS / sm.fpus if problem.kv_bytes == 1 else 0.0
    cycles = max(attending, converting) if blocks.converted > 1 else attending + converting
    wasted = 1 + blocks.block_tokens / 2 / STRETCH_TOKENS
    return max(memory_s, cycles * wasted / clock)


def ranked(problem: Problem, chip: ChipSpec, sm: Multiprocessors) -> list[Blocks]:
    """The candidates, best first; of equals that which keeps most bytes in flight, because the latency is assumed."""

    def order(blocks: Blocks):
        cost = seconds_per_position(problem, blocks, chip, sm)
        return cost, -bytes_in_flight(problem, blocks), -blocks.converted, blocks.block_tokens

    return sorted(candidates(problem, sm), key=order)


def search(problem: Problem, chip: ChipSpec, sm: Multiprocessors, compiles: Compile) -> Iterator[Verdict]:
    """Judges candidates, best first, up to the first that is not refused.

    Args:
      problem: what to find sizes for.
      chip, sm: the GPU.
      compiles: `compile_for`, or what a test puts in its place.
    """
    for blocks in ranked(problem, chip, sm):
        cost = seconds_per_position(problem, blocks, chip, sm)
        try:
            report = compiles(problem, blocks)
        except ConfigError:  # there is no compiler
            raise
        except Exception as error:  # whatever a compiler says no with
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            yield Verdict(problem=problem, blocks=blocks, seconds_per_position=cost, report=None, refused=reason)
            continue
        refused = refusal(report, sm)
        yield Verdict(problem=problem, blocks=blocks, seconds_per_position=cost, report=report, refused=refused)
        if not refused:
            return


def refusal(report: aot_gpu.ResourceReport, sm: Multiprocessors) -> str:
    """Why what the compiler made is not good enough; empty where it is."""
    if report.spill_bytes:
        return f"spills {report.spill_bytes} bytes of registers"
    if report.wgmma_serialised:
        return "products wait for each other"
    if report.shared_bytes > sm.block_shared_bytes:
        return f"takes {report.shared_bytes:,} bytes of shared memory, {sm.block_shared_bytes:,} are there"
    return ""


def chosen(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that an entry is made of: the one not refused, or where all are, the one that spills least.

    Raises:
      ConfigError: where nothing compiled.
    """
    compiled = [verdict for verdict in verdicts if verdict.report is not None]
    if not compiled:
        problem, reasons = verdicts[0].problem, {verdict.refused for verdict in verdicts}
        raise ConfigError(f"the compiler takes no block sizes for {problem}: {'; '.join(sorted(reasons))}")
    return min(compiled, key=lambda verdict: (bool(verdict.refused), _report(verdict).spill_bytes))


def entry(verdict: Verdict) -> dict[str, Any]:
    """What `tuning/gpu.json` says of a problem. A clock may write the same with another `source` and its `seconds`."""
    report, blocks = _report(verdict), verdict.blocks
    return {
        **dataclasses.asdict(verdict.problem),
        "source": "static",
        "block_tokens": blocks.block_tokens,
        "stages": blocks.stages,
        "converted": blocks.converted,
        "registers": report.registers,
        "spill_bytes": report.spill_bytes,
        "shared_bytes": report.shared_bytes,
    }


def compile_for(problem: Problem, blocks: Blocks) -> aot_gpu.ResourceReport:
    """Compiles the kernel that serves `problem`, in bfloat16 and with pages of 64, or of bytes, with `blocks`.

    It is compiled plain, and with the score options that take most registers: one entry serves them all.
    """
    import jax
    import jax.numpy as jnp

    from kernels.pallas.paged_attention import gpu

    heads, groups, page_tokens, pages, table_pages = 8, 4, 64, 1024, 32
    rows, tokens = (32, 32) if problem.kind == "decode" else (8, 1024)
    kv_dtype = jnp.bfloat16 if problem.kv_bytes == 2 else jnp.int8
    args = {
        "q": ((tokens, heads * groups, problem.head_size), jnp.bfloat16),
        "kv_pages": ((pages, page_tokens, heads, 2, problem.head_size), kv_dtype),
        "page_table": ((rows, table_pages), jnp.int32),
        "kv_lens": ((rows,), jnp.int32),
    }
    if problem.kind == "prefill":
        args["cu_q_lens"] = ((rows + 1,), jnp.int32)
    positional = len(args)
    if problem.kv_bytes == 1:
        args["kv_scales"] = ((pages, page_tokens, heads, 2), jnp.float32)
    attention = {"decode": gpu.decode_attention, "prefill": gpu.prefill_attention}[problem.kind]

    def call(*arrays):
        options = dict(zip(list(args)[positional:], arrays[positional:], strict=True))
        options |= {"scale": problem.head_size**-0.5, "blocks": blocks}
        plain, demanding = {}, {"window": 100, "soft_cap": 30.0}
        return [attention(*arrays[:positional], **options, **scores) for scores in (plain, demanding)]

    return aot_gpu.compile_for_h100(call, *(jax.ShapeDtypeStruct(*shape) for shape in args.values()))


def _consumers(problem: Problem) -> int:
    return 1 if problem.kind == "decode" else gpu_prefill.consumers(problem.head_size, problem.kv_bytes == 1)


def _report(verdict: Verdict) -> aot_gpu.ResourceReport:
    if verdict.report is None:
        raise ValueError(f"{verdict.blocks} did not compile: {verdict.refused}")
    return verdict.report
