"""How much of this load a config can serve: by a formula over mean lengths, and by replays until the objective fails.

The formula knows nothing of bursts or of the spread of lengths: at saturation a full batch decodes while the prompts of
its successors go through in chunks, and the roofline prices that one step. The replay knows both. Where they are far
apart, it is bursts and long prompts that cost the difference. Next: `proof`.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from nanoserve.analysis.recommend.trial import Trial
from nanoserve.building import Pool, pools_of
from nanoserve.engine.types import TICKS_PER_S
from nanoserve.experiment import Experiment, resolve
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.pricing import Pricer
from nanoserve.trace.types import Trace

WITHIN_SLO = 0.99
"""Share of requests that have to be good: MLPerf's objectives are of the 99th percentile."""

_STEPS = 6  # of the bisection between two powers of two: to 1.1%
_MOST = 64.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Ceiling:
    """What the formula says of one config and one mix of requests.

    Attributes:
      requests_per_s: of all replicas together. batch: sequences that decode in each step of one replica.
      step_s: of that batch with its share of prompt tokens. chunk_tokens: those.
      limit: what holds the batch: `slots`, `memory`, `pace` (a token would take longer than the objective allows) or
        `prompts` (the step's budget of tokens).
    """

    requests_per_s: float
    batch: int
    step_s: float
    chunk_tokens: int
    limit: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Mix:
    """Means over requests.

    Attributes:
      prompt, answer: tokens. attended: KV positions that a decode row attends. held: that a sequence has set aside.
      pairs: query-key pairs of a prompt token.
    """

    prompt: float
    answer: float
    attended: float
    held: float
    pairs: float


def ceiling(experiment: Experiment, trace: Trace) -> Ceiling:
    """The closed form.

    With B sequences in each step, prompts of mean length P and answers of O tokens, B / O requests end in a step and
    as many prompts, B P / O tokens, go through in it; the step is priced by the roofline.

    Args:
      experiment: the config. trace: the requests; only their lengths count.

    Raises:
      CapacityError: the weights leave no room.
    """
    facts = resolve(experiment)
    pool = pools_of(experiment, facts)[0]
    engine, mix = pool.config, _mix(experiment, trace)
    memory = int(pool.pages * engine.page_tokens / max(mix.held, 1.0))
    pace = _most(lambda batch: facts.slo is None or _step_s(pool, mix, batch) <= facts.slo.tpot_s, engine.max_seqs)
    prompts = int(engine.max_step_tokens / (1 + mix.prompt / mix.answer))
    limits = {"slots": engine.max_seqs, "memory": memory, "pace": pace, "prompts": prompts}
    limit = min(limits, key=lambda name: limits[name])
    batch = max(1, limits[limit])
    step_s = _step_s(pool, mix, batch)
    return Ceiling(
        requests_per_s=pool.replicas * batch / mix.answer / step_s,
        batch=batch,
        step_s=step_s,
        chunk_tokens=round(batch * mix.prompt / mix.answer),
        limit=limit,
    )


def saturation(run_at: Callable[[float], Trial]) -> float:
    """The highest multiple of the load at which 99% of the requests are good, by bisection; 0 where none is.

    Args:
      run_at: replays the requests at a multiple of their load.
    """

    def kept(load: float) -> bool:
        return float(run_at(load).good.mean()) >= WITHIN_SLO

    bracket = _doubled(kept) if kept(1.0) else _halved(kept)
    if bracket is None:
        return 0.0
    low, high = bracket
    for _ in range(_STEPS):
        middle = (low * high) ** 0.5
        low, high = (middle, high) if kept(middle) else (low, middle)
    return low


def _doubled(kept: Callable[[float], bool]) -> tuple[float, float]:
    """Neighbouring powers of two, the lower of which is kept; equal where even the most is."""
    low = 1.0
    while low < _MOST:
        if not kept(2 * low):
            return low, 2 * low
        low *= 2
    return low, low


def _halved(kept: Callable[[float], bool]) -> tuple[float, float] | None:
    """Likewise below 1; None where not even the least is kept."""
    high = 1.0
    while high > 1 / _MOST:
        if kept(high / 2):
            return high / 2, high
        high /= 2
    return None


def _mix(experiment: Experiment, trace: Trace) -> _Mix:
    prompt = trace.prompt_tokens.astype(np.float64)
    stated = trace.output_tokens.astype(np.float64)
    answer = stated if trace.answer_tokens is None else trace.answer_tokens.astype(np.float64)
    attended = float((answer * (prompt + answer / 2)).sum() / answer.sum())
    whole = float((answer * (prompt + stated)).sum() / answer.sum())
    return _Mix(
        prompt=float(prompt.mean()),
        answer=float(answer.mean()),
        attended=attended,
        held=whole if experiment.engine.allocator == "contiguous" else attended + experiment.engine.page_tokens / 2,
        pairs=float((prompt * (prompt + 1) / 2).sum() / prompt.sum()),
    )


def _step_s(pool: Pool, mix: _Mix, batch: int) -> float:
    pricer = Pricer(pool.model, pool.cluster, pool.precision, pool.calibration, ticks_per_s=TICKS_PER_S)
    tokens = max(1, round(batch * mix.prompt / mix.answer))
    chunks = max(1, round(tokens / mix.prompt))
    attended, read, window = round(batch * mix.attended), chunks * round(mix.prompt), pool.model.sliding_window_tokens
    seen = attended if window is None else min(attended, batch * window)
    counts = StepCounts(
        decode_seqs=batch,
        decode_kv_tokens=attended,
        decode_window_tokens=seen,
        prefill_seqs=chunks,
        prefill_tokens=tokens,
        prefill_pairs=round(tokens * mix.pairs),
        prefill_window_pairs=round(tokens * (mix.pairs if window is None else min(mix.pairs, window))),
        prefill_kv_tokens=read,
        prefill_window_kv_tokens=read if window is None else min(read, chunks * window),
        sampled=batch + chunks,
    )
    return pricer.plan_ticks(counts) / TICKS_PER_S


def _most(holds: Callable[[int], bool], limit: int) -> int:
    """The largest number up to a limit for which something holds that holds for all smaller ones; at least 1."""
    low, high = 1, limit + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
