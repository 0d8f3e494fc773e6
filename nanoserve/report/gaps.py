"""Gaps between output tokens, pooled over all sequences and taken from the plans.

Every sequence that decodes gets exactly one token in every step, so the gaps of a run are the durations of its decode
steps, each counted once per decoding sequence. A million tokens are a few thousand (duration, weight) pairs.

Only the gap across a preemption is not a step; it is `max_stall_s` of its request. Next: `metrics`.
"""

from collections.abc import Mapping

import numpy as np


def token_gaps(steps: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Inter-token gaps of a run and how many sequences had each.

    The k steps of a plan grow linearly from `first_step_s` and sum to `duration_s`. Time that passed between the end of
    a plan and the start of the next (a real host plans in it) belongs to the next plan's first gap.

    Args:
      steps: the columns `start_s`, `duration_s`, `first_step_s`, `steps`, `decode_seqs`, in order of time.

    Returns:
      seconds, float [gaps], and decoding sequences, integer [gaps], with gaps = decode steps of the run.
    """
    end_s = steps["start_s"] + steps["duration_s"]
    pause_s = np.maximum(steps["start_s"] - np.append(steps["start_s"][:1], end_s[:-1]), 0.0)
    decodes = steps["decode_seqs"] > 0
    count, seqs = steps["steps"][decodes], steps["decode_seqs"][decodes]
    first_s, total_s = steps["first_step_s"][decodes], steps["duration_s"][decodes]
    first_s = np.where(count == 1, total_s, first_s)
    pairs = np.maximum(count * (count - 1) // 2, 1)
    growth_s = np.where(count > 1, (total_s - count * first_s) / pairs, 0.0)
    plan = np.repeat(np.arange(len(count)), count)
    place = np.arange(len(plan)) - np.repeat(np.cumsum(count) - count, count)
    gaps_s = first_s[plan] + place * growth_s[plan] + np.where(place == 0, pause_s[decodes][plan], 0.0)
    return gaps_s, seqs[plan]
