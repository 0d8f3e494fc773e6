"""Gaps between output tokens, pooled over all sequences and taken from the plans.

Every sequence that decodes gets a token in every step, so the gaps of a run are the durations of its decode steps,
each counted once per decoding sequence. A million tokens are a few thousand (duration, weight) pairs. Drafted tokens
that were accepted appear together with that token, so the gaps before them are zero.

Where steps only prefill, those who decode are left out, and their next gap is longer by all such steps since their last
token. Two gaps are not known here: that across a preemption, which is `max_stall_s` of its request, and that between
the first and the second token of a request that changed engines. A sequence whose KV was swapped back is counted with
the gap of those it decodes beside. Next: `metrics`.
"""

from collections.abc import Mapping

import numpy as np


def token_gaps(steps: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Inter-token gaps of a run and how many sequences had each.

    The k steps of a plan grow linearly from `first_step_s` and sum to `duration_s`. Time that passed between the end of
    a plan and the start of the next (a real host plans in it) belongs to the next plan's first gap.

    Args:
      steps: the columns `start_s`, `duration_s`, `first_step_s`, `steps`, `decode_seqs`, `stalled_seqs`,
        `accepted_tokens`, in order of time.

    Returns:
      seconds, float [gaps], and decoding sequences, integer [gaps], which sum to the tokens that were decoded. The
      decode steps of the run come first, then that of all accepted tokens, then gaps with stalls in them.
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
    weights = seqs[plan]
    if accepted := steps["accepted_tokens"].sum():
        gaps_s, weights = np.append(gaps_s, 0.0), np.append(weights, accepted)
    if not (steps["stalled_seqs"] > 0).any():
        return gaps_s, weights
    since_s, stalled, ending = _stalls(steps, decodes, seqs, pause_s)
    np.subtract.at(weights, (np.cumsum(count) - count)[ending], stalled)  # those had no plain gap in its first step
    stalled_s = steps["start_s"][decodes][ending] - since_s + first_s[ending]
    return np.append(gaps_s, stalled_s), np.append(weights, stalled)


def _stalls(
    steps: Mapping[str, np.ndarray], decodes: np.ndarray, seqs: np.ndarray, pause_s: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """When sequences began to stall, how many of those that go on, and in which of the decoding plans.

    Of the sequences that a step leaves out, those that the step before left out as well have waited since then; the
    others have their last token from the end of the step before. Who was preempted meanwhile was the youngest.
    """
    ending = np.cumsum(decodes) - decodes  # number of the next plan that decodes
    rows = np.flatnonzero((steps["stalled_seqs"] > 0) & (ending < len(seqs)))
    ending = ending[rows]
    left_out = np.minimum(steps["stalled_seqs"][rows], seqs[ending])
    again = np.append(False, ending[1:] == ending[:-1])
    newly = left_out - np.where(again, np.append(0, left_out[:-1]), 0)
    kept = newly > 0
    return (steps["start_s"] - pause_s)[rows][kept], newly[kept], ending[kept]
