"""What other block sizes would cost on the same requests: positions wasted, blocks to keep count of, steps' time.

A paged request that has L positions holds whole blocks. Over its answer L grows one by one, so the waste, summed over
all of its steps, is a closed form in its first and last length. Small blocks waste less and are more to keep count of;
a prefix is shared only as far as its blocks are whole.

The cost model has no term for a block's size: it reads positions, not blocks. What is given is the most that a size can
cost a step: kernels that read the whole of the last block, priced as positions that are there. Where no chip is named,
only the share of positions is given.

Series of `usage.blocks.sizes`: `block_tokens`, `waste_share`, `blocks_per_request`, `extra_read_share`, and `step_s`
where priced. Next: `failures`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.service import Service
from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import step_time
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

SIZES = (8, 16, 32, 64, 128)
"""Tokens of a block, studied."""

StepSeconds = Callable[[int, float], float]
"""(rows that decode, KV positions that they read) -> seconds of the step."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chips:
    """What steps are priced for; see `roofline.timing`."""

    model: ModelSpec
    cluster: ClusterSpec
    precision: Precision
    calibration: Calibration

    def step_s(self, rows: int, kv_tokens: float) -> float:
        """Seconds of a decode step: a `StepSeconds`."""
        counts = StepCounts(decode_seqs=rows, decode_kv_tokens=kv_tokens, decode_window_tokens=kv_tokens, sampled=rows)
        ops = step_ops(self.model, self.cluster, self.precision, counts)
        return float(step_time(ops, self.cluster, self.calibration))


def wasted_positions(first: np.ndarray, last: np.ndarray, block_tokens: int) -> np.ndarray:
    """Positions held and not written, summed over the lengths that a request goes through.

    Args:
      first, last: its shortest and longest length, [N]. block_tokens: positions of a block.

    Returns:
      [N]: the sum over L from first to last of (L rounded up to whole blocks) - L.
    """

    def up_to(length: np.ndarray) -> np.ndarray:
        blocks, rest = np.divmod(length, block_tokens)
        return blocks * (block_tokens * (block_tokens - 1) // 2) + rest * block_tokens - rest * (rest + 1) // 2

    return up_to(last) - up_to(first - 1)


def block_sizes(service: Service, step_s: StepSeconds | None = None, rows: int = 32) -> Finding:
    """Compares block sizes on the requests of a service.

    Args:
      service: prompts and answers of requests that were served.
      step_s: what a decode step takes; None leaves time out. rows: that decode together, for the step.

    Returns:
      `usage.blocks.sizes`; rows are served requests.
    """
    key = "usage.blocks.sizes"
    first, last = _lengths(service)
    if not len(first):
        return not_computed(key, "Block sizes", "no request was served")
    written = ((first + last) * (last - first + 1) / 2).sum()
    steps = (last - first + 1).sum()
    waste = np.array([wasted_positions(first, last, size).sum() for size in SIZES])
    held_share = waste / (written + waste)
    series = {
        "block_tokens": np.array(SIZES),
        "waste_share": held_share,
        "blocks_per_request": np.array([np.mean(-(-last // size)) for size in SIZES]),
        "extra_read_share": waste / written,
    }
    mean_tokens = float(written / steps)
    if step_s is not None:
        series["step_s"] = np.array([step_s(rows, rows * (mean_tokens + each / steps)) for each in waste])
    return Finding(
        key=key,
        title=_title(service.block_tokens, held_share),
        rows=len(first),
        values=_values(series, mean_tokens),
        series=series,
        because=_because(series, service.block_tokens),
    )


def _lengths(service: Service) -> tuple[np.ndarray, np.ndarray]:
    """Positions of each served request when it decodes first and last, int [N]."""
    prompts, answers = service.floats("prompt_tokens"), service.floats("response_tokens")
    served = ~service.failed & (prompts > 0) & (answers > 0)
    prompts, answers = prompts[served].astype(np.int64), answers[served].astype(np.int64)
    return prompts, prompts + answers - 1


def _values(series: dict[str, np.ndarray], mean_tokens: float) -> dict[str, float | dict[str, float]]:
    names = [name for name in series if name != "block_tokens"]
    sizes = [str(size) for size in SIZES]
    return {name: dict(zip(sizes, series[name].tolist(), strict=True)) for name in names} | {
        "mean_positions": mean_tokens
    }


def _title(current: int | None, waste: np.ndarray) -> str:
    if current in SIZES[:-1]:
        place = SIZES.index(current)
        return (
            f"Blocks of {current} tokens waste {waste[place]:.1%} of paged memory; twice as long ones, "
            f"{waste[place + 1]:.1%}"
        )
    return f"Paged memory is wasted to {waste[0]:.1%} with blocks of {SIZES[0]}, {waste[-1]:.1%} with {SIZES[-1]}"


def _because(series: dict[str, np.ndarray], current: int | None) -> tuple[str, ...]:
    shares = ", ".join(f"{size}: {share:.2%}" for size, share in zip(SIZES, series["waste_share"], strict=True))
    sentences = [f"Waste, of positions held by paged requests over their steps, by block size: {shares}."]
    if current in SIZES[:-1]:
        place = SIZES.index(current)
        blocks = series["blocks_per_request"]
        sentences.append(
            f"Doubling {current} takes a request from {blocks[place]:.1f} to {blocks[place + 1]:.1f} blocks on average."
        )
    if "step_s" in series:
        step_s = series["step_s"]
        sentences.append(
            f"A decode step takes at most {step_s[-1] / step_s[0] - 1:.2%} longer with blocks of {SIZES[-1]} than of "
            f"{SIZES[0]}: the cost model reads positions, and whole blocks are the most that a kernel can read."
        )
    else:
        sentences.append("The cost model has no term for a block's size; reading whole blocks is the most it can cost.")
    return tuple(sentences)
