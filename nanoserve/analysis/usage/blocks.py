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
import polars as pl

from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.service import Service
from nanoserve.experiment import Experiment, resolve
from nanoserve.roofline.calibration import Calibration, constants_for
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


def chips_of(experiment: Experiment) -> Chips:
    """What the steps of an experiment are priced for.

    Raises:
      ConfigError: a name in it does not exist.
    """
    facts, pricing = resolve(experiment), experiment.pricing
    return Chips(
        model=facts.model,
        cluster=facts.cluster,
        precision=experiment.precision,
        calibration=constants_for(facts.cluster.chip, experiment.precision, pricing.mode, pricing.stack, pricing.table),
    )


def wasted_up_to(length: np.ndarray, block_tokens: int) -> np.ndarray:
    """Positions held and not written, summed over all lengths from 1 to a length, [N].

    Args:
      length: [N], 0 or more. block_tokens: positions of a block.

    Returns:
      [N]: the sum over L of (L rounded up to whole blocks) - L.
    """
    blocks, rest = np.divmod(length, block_tokens)
    return blocks * (block_tokens * (block_tokens - 1) // 2) + rest * block_tokens - rest * (rest + 1) // 2


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Lengths:
    """How long requests are at their steps, counted by length: sums over requests are sums over lengths.

    Attributes:
      length: 0 .. longest. ended: requests by their last length. before: by the one before their first.
    """

    length: np.ndarray
    ended: np.ndarray
    before: np.ndarray

    @property
    def requests(self) -> int:
        return int(self.ended.sum())

    def sum(self, up_to: np.ndarray) -> float:
        """A sum over all steps of all requests, given the sum over lengths 1 .. L for each L."""
        return float(((self.ended - self.before) * up_to).sum())


def block_sizes(service: Service, step_s: StepSeconds | None = None, rows: int = 32) -> Finding:
    """Compares block sizes on the requests of a service.

    Args:
      service: prompts and answers of requests that were served.
      step_s: what a decode step takes; None leaves time out. rows: that decode together, for the step.

    Returns:
      `usage.blocks.sizes`; rows are served requests.
    """
    lengths = _lengths(service)
    if not lengths.requests:
        return not_computed("usage.blocks.sizes", "Block sizes", "no request was served")
    length = lengths.length
    written, steps = lengths.sum(length * (length + 1) / 2), lengths.sum(length)
    waste = np.array([lengths.sum(wasted_up_to(length, size)) for size in SIZES])
    series = {
        "block_tokens": np.array(SIZES),
        "waste_share": waste / (written + waste),
        "blocks_per_request": np.array([(lengths.ended * -(-length // size)).sum() for size in SIZES])
        / lengths.requests,
        "extra_read_share": waste / written,
    }
    mean_tokens = written / steps
    if step_s is not None:
        series["step_s"] = np.array([step_s(rows, rows * (mean_tokens + each / steps)) for each in waste])
    return Finding(
        key="usage.blocks.sizes",
        title=_title(service.block_tokens, series["waste_share"]),
        rows=lengths.requests,
        values=_values(series, mean_tokens),
        series=series,
        because=_because(series, service.block_tokens),
    )


def _lengths(service: Service) -> _Lengths:
    """Lengths of served requests: the prompt when they decode first, all but the last token at the end."""
    table = service.requests.select("prompt_tokens", "response_tokens")
    served = table.filter(pl.Series(~service.failed), pl.col("prompt_tokens") > 0, pl.col("response_tokens") > 0)
    prompts, answers = served["prompt_tokens"].to_numpy(), served["response_tokens"].to_numpy()
    ended = np.bincount(prompts + answers - 1)
    return _Lengths(length=np.arange(len(ended)), ended=ended, before=np.bincount(prompts - 1, minlength=len(ended)))


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
