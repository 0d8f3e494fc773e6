"""Paged attention of one layer, at the shapes that the project is judged by, beside every other attention there is.

The shapes, the checks and the peers are those of `experiments/bench/attention.py`, which measures many more: decode
from 32 rows of 2,048 positions on, KV of 8 bits, rows of very different lengths, and chunks of prompts.

Next: `attention_measure`.
"""

import dataclasses
from collections.abc import Mapping, Sequence

from experiments.bench.attention_results import shape_record, times_as_fast
from experiments.bench.attention_shapes import BenchShape, catalogue, toy_catalogue, useful
from experiments.bench.parts import Case, Context
from experiments.bench.parts.ceilings import BF16, COPY
from experiments.bench.results_file import FAILED, Record
from nanoserve.report.units import MISSING, share, short, significant, time

NAME = "attention"
SHAPES = (
    "decode_8b_b32_s4096_p64", "decode_8b_b32_s2048_p64", "decode_8b_b64_s4096_p64", "decode_8b_b128_s4096_p64",
    "decode_8b_b128_s2048_p64", "decode_8b_b32_s8192_p64", "prefill_8b_t2048_p64", "prefill_8b_t8192_p64",
    "decode_8b_b1_s4096_p64", "prefill_8b_t512_p64", "prefill_8b_t512_past7680_p64",
)  # fmt: skip
EXTRA_SHAPES = (
    "decode_8b_b32_s4096_p16", "decode_8b_skewed32_p64", "decode_8b_b32_s2048_p64_int8",
    "decode_8b_b32_s2048_p64_fp8", "decode_70b_tp8_b32_s4096_p64",
)  # fmt: skip
# A peer whose wrong addresses take everything after it in the process with them: `attention.py` measures it, last.
ALONE = ("triton_paged",)
TOY_SHAPES = ("toy_decode_b2_s64_p64", "toy_prefill_t8_past_24_p16")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCase(Case):
    """A shape of the attention benchmark, by its name there.

    Attributes:
      shape: the shape.
    """

    shape: BenchShape

    def sizes(self) -> Record:
        """What the attention benchmark's own file says of a shape."""
        return shape_record(self.shape, useful(self.shape))


def cases(toy: bool) -> Sequence[AttentionCase]:
    """The shapes."""
    if toy:
        return [AttentionCase(name=name, shape=toy_catalogue()[name]) for name in TOY_SHAPES]
    known = catalogue()
    usual = [AttentionCase(name=name, shape=known[name]) for name in SHAPES]
    return [*usual, *(AttentionCase(name=name, shape=known[name], extra=True) for name in EXTRA_SHAPES)]


def measure(case: AttentionCase, context: Context) -> Record:
    """The shape's record in the attention benchmark, with the ceilings of this file."""
    from experiments.bench import attention_measure
    from experiments.bench.attention_peers import PEERS, Setting

    ceilings = {"copy_bytes_per_s": context.ceiling(COPY), "matmul_flops_per_s": context.ceiling(BF16)}
    setting = Setting(context.device, "auto")
    peers = {name: peer for name, peer in PEERS.items() if name not in ALONE}
    return attention_measure.measure(case.shape, setting, context.effort, ceilings, peers=peers, oracle=context.toy)


def columns(record: Record) -> Mapping[str, str]:
    """The cells of a line."""
    ratios = [f"{significant(ratio)} x {peer}" for peer, ratio in times_as_fast(record)]
    failed = [f"{peer} failed" for peer, beside in record["peers"].items() if beside["status"] == FAILED]
    return {
        "implementation": record["implementation"],
        "a call": time(record["time"]["median_s"]),
        "B/s": short(record["bytes_per_s"]),
        "of copy": _share(record["copy_fraction"]),
        "FLOP/s": short(record["flops_per_s"]),
        "of matmul": _share(record["matmul_fraction"]),
        "ours is": ", ".join((*ratios, *failed)),
    }


def _share(part: float | None) -> str:
    return MISSING if part is None else share(part)
