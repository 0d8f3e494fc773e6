"""Rate matching: how many replicas should prefill for those that decode, from prices and from lengths alone.

A pool of each kind takes what its replicas can do at most: a prefill replica runs full steps of prompts, a decode
replica runs as many sequences as fit its slots, its pages and the time that a token may take. With p of one and d of
the other, p x `prefill_rps` and d x `decode_rps` requests a second go through; where they are equal, nobody waits for
the other pool. Queues, bursts and half-full steps are not in it: a real load reaches less, which simulation says.

Pure arithmetic on a `PlanPricer`. Next: `pricing`; `nanoserve.engine.disaggregated`, which simulates the two pools.

Source: Zhong et al., "DistServe" (OSDI 2024), section 4.2, chooses the two numbers of instances the same way.
"""

import dataclasses

import numpy as np

from nanoserve.roofline.counts import StepCounts, causal_pairs
from nanoserve.roofline.pricing import PlanPricer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Rates:
    """What a replica of either kind can do at most.

    Attributes:
      prefill_rps, decode_rps: requests per second. decode_seqs: that run at once on the decode replica then.
    """

    prefill_rps: float
    decode_rps: float
    decode_seqs: int

    @property
    def prefill_per_decode(self) -> float:
        """Prefill replicas that keep one decode replica busy."""
        return self.decode_rps / self.prefill_rps

    def capacity_rps(self, prefill: int, decode: int) -> float:
        """Requests per second that so many replicas of each kind let through."""
        return min(prefill * self.prefill_rps, decode * self.decode_rps)

    def best_split(self, replicas: int) -> int:
        """How many of some replicas, at least 2, should prefill; the fewest of several that are as good."""
        return max(range(1, replicas), key=lambda prefill: self.capacity_rps(prefill, replicas - prefill))


def prefill_rps(
    pricer: PlanPricer, prompt_tokens: np.ndarray, *, step_tokens: int, ticks_per_s: int = 1 << 60
) -> float:
    """Returns the requests per second of a prefill replica whose steps are all full.

    Args:
      pricer: of the replica. prompt_tokens: integers [requests].
      step_tokens: budget of a step; a longer prompt takes several. ticks_per_s: of the pricer.
    """
    tokens, seqs = int(prompt_tokens.sum()), len(prompt_tokens)
    pairs = sum(causal_pairs(0, prompt) for prompt in prompt_tokens.tolist())
    kv_tokens = sum(_kv_read(prompt, step_tokens) for prompt in prompt_tokens.tolist())
    share = step_tokens / tokens  # of the whole load in one step
    pairs_a_step, kv_a_step = round(pairs * share), round(kv_tokens * share)
    seqs_a_step = max(1, round(seqs * share))
    counts = StepCounts(
        steps=1,
        decode_seqs=0,
        decode_kv_tokens=0,
        decode_window_tokens=0,
        prefill_seqs=seqs_a_step,
        prefill_tokens=step_tokens,
        prefill_pairs=pairs_a_step,
        prefill_window_pairs=pairs_a_step,
        prefill_kv_tokens=kv_a_step,
        prefill_window_kv_tokens=kv_a_step,
        sampled=seqs_a_step,
    )
    return seqs * share * ticks_per_s / pricer.plan_ticks(counts)


def decode_rps(
    pricer: PlanPricer,
    prompt_tokens: np.ndarray,
    output_tokens: np.ndarray,
    *,
    most_seqs: int,
    kv_tokens: int,
    tpot_s: float | None = None,
    ticks_per_s: int = 1 << 60,
) -> tuple[float, int]:
    """Returns the requests per second of a decode replica that is full, and how many it runs at once then.

    Args:
      pricer: of the replica. prompt_tokens, output_tokens: integers [requests]; the first token comes from elsewhere.
      most_seqs: slots. kv_tokens: that its pages hold. tpot_s: a step may take no longer; None for no limit.
      ticks_per_s: of the pricer.
    """
    steps = np.maximum(output_tokens - 1, 0)
    held = float((steps * (prompt_tokens + output_tokens / 2)).sum() / steps.sum())  # positions of a running sequence
    most = max(1, min(most_seqs, int(kv_tokens / held)))

    def step_s(seqs: int) -> float:
        attended = round(seqs * held)
        return pricer.plan_ticks(StepCounts(1, seqs, attended, attended, 0, 0, 0, 0, 0, 0, seqs)) / ticks_per_s

    if tpot_s is not None:
        most = _largest(most, lambda seqs: step_s(seqs) <= tpot_s)
    return most / step_s(most) / float(steps.mean()), most


def _kv_read(prompt: int, step_tokens: int) -> int:
    """KV positions that the chunks of a prompt read: each all that came before it, and itself."""
    whole, rest = divmod(prompt, step_tokens)
    return step_tokens * whole * (whole + 1) // 2 + (prompt if rest else 0)


def _largest(most: int, holds) -> int:
    """The largest number from 1 to `most` for which something holds that stops holding once; 1 if it never does."""
    low, high = 1, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low
