"""What the simulator has to reach on published results, as data, and whether it does.

A target is a group of rows, a metric of them, and a limit on a statistic of its errors.
Next: `experiments/validate.py`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Literal

from nanoserve.analysis.published.comparison import Comparison
from nanoserve.analysis.published.validation import ErrorSummary, summarise

Statistic = Literal["mean_abs", "p50"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Target:
    """A limit.

    Attributes:
      rows: name of the group. belongs: whether a comparison is in it.
      metric, statistic: of the errors. limit: largest value allowed.
    """

    rows: str
    belongs: Callable[[Comparison], bool]
    metric: str
    statistic: Statistic
    limit: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """A target, the errors that were found, and in how many rows of the group a constant was fitted."""

    target: Target
    found: ErrorSummary
    training_rows: int

    @property
    def value(self) -> float:
        """The statistic that the target limits."""
        return getattr(self.found, self.target.statistic)

    @property
    def reached(self) -> bool:
        """Whether it is within the limit."""
        return self.value <= self.target.limit


def _llama_70b(c: Comparison) -> bool:
    return (c.engine, c.chip, c.model) == ("vllm", "h100_sxm", "llama-3.1-70b")


def _closed(model: str) -> Callable[[Comparison], bool]:
    return lambda c: c.source == "aiconfigurator" and c.model == model


def _maximum(c: Comparison) -> bool:
    return c.source == "TensorRT-LLM 0.17"


def _v6e(c: Comparison) -> bool:
    return c.chip == "tpu_v6e"


def _log(held_out: bool) -> Callable[[Comparison], bool]:
    return lambda c: c.source.startswith("log ") and held_out == (not c.training)


def _of_a_log(rows: str, belongs: Callable[[Comparison], bool]) -> tuple[Target, ...]:
    limits = {"tpot": 0.02, "ttft": 0.05, "tpot p95": 0.10, "ttft p95": 0.10}
    return tuple(
        Target(rows=rows, belongs=belongs, metric=metric, statistic="mean_abs", limit=limit)
        for metric, limit in limits.items()
    )


TARGETS = (
    Target(rows="vLLM, Llama-70B fp8, H100", belongs=_llama_70b, metric="tpot", statistic="mean_abs", limit=0.05),
    Target(rows="vLLM, Llama-70B fp8, H100", belongs=_llama_70b, metric="ttft", statistic="mean_abs", limit=0.09),
    Target(rows="Llama-8B", belongs=_closed("llama-3.1-8b"), metric="tpot", statistic="p50", limit=0.10),
    Target(rows="Qwen3-32B", belongs=_closed("qwen3-32b"), metric="tpot", statistic="p50", limit=0.10),
    Target(rows="TensorRT-LLM, maximum throughput", belongs=_maximum, metric="throughput", statistic="p50", limit=0.10),
    Target(
        rows="MLPerf v4.1",
        belongs=lambda c: c.source == "MLPerf v4.1",
        metric="throughput",
        statistic="mean_abs",
        limit=0.15,
    ),
    Target(rows="TPU v6e, Llama-70B", belongs=_v6e, metric="tpot", statistic="mean_abs", limit=0.10),
    Target(rows="TPU v6e, Llama-70B", belongs=_v6e, metric="throughput", statistic="mean_abs", limit=0.10),
    *_of_a_log("vLLM, request by request", _log(held_out=False)),
    *_of_a_log("vLLM, request by request: held-out requests", _log(held_out=True)),
)


def judge(comparisons: Sequence[Comparison]) -> list[Verdict]:
    """Returns what was found of every target that some row belongs to, in order.

    Training rows are not scored, unless the group has no others.
    """
    verdicts = []
    for target in TARGETS:
        rows = [c for c in comparisons if target.belongs(c) and target.metric in c.values]
        scored = [c for c in rows if not c.training] or rows
        if scored:
            found = summarise(c.values[target.metric].error for c in scored)
            verdicts.append(Verdict(target=target, found=found, training_rows=sum(bool(c.training) for c in rows)))
    return verdicts
