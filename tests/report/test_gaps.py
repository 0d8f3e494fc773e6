import numpy as np
import pytest

from nanoserve.report.gaps import token_gaps
from nanoserve.report.metrics import request_columns
from tests.report.factories import steps_table
from tests.report.synthetic import synthetic_run

TOLERANCE = 1e-9  # seconds summed over tens of thousands of float gaps, relative


def _gaps(steps):
    return token_gaps({name: steps[name].to_numpy() for name in steps.columns})


def test_steps_of_a_plan_grow_linearly_and_sum_to_its_duration():
    plan = {"start_s": 0.0, "duration_s": 10.0, "first_step_s": 1.0, "steps": 4, "decode_seqs": 3}
    gaps_s, seqs = _gaps(steps_table(plan))
    assert gaps_s.tolist() == [1.0, 2.0, 3.0, 4.0]
    assert seqs.tolist() == [3, 3, 3, 3]


def test_accepted_tokens_appear_together_with_the_token_before_them():
    verified = {"start_s": 0.0, "duration_s": 2.0, "decode_seqs": 3, "drafted_tokens": 6, "accepted_tokens": 4}
    gaps_s, seqs = _gaps(steps_table(verified))
    assert gaps_s.tolist() == [2.0, 0.0]
    assert seqs.tolist() == [3, 4]


def test_a_plan_without_decode_rows_has_no_gaps():
    gaps_s, seqs = _gaps(steps_table({"start_s": 0.0, "duration_s": 1.0, "prefill_seqs": 1}))
    assert gaps_s.size == seqs.size == 0


def test_a_pause_between_plans_belongs_to_the_next_gap():
    first = {"start_s": 0.0, "duration_s": 1.0, "decode_seqs": 1}
    second = {"start_s": 1.5, "duration_s": 2.0, "steps": 2, "decode_seqs": 2}
    gaps_s, seqs = _gaps(steps_table(first, second))
    assert gaps_s.tolist() == [1.0, 1.5, 1.0]
    assert seqs.tolist() == [1, 2, 2]


def test_steps_that_leave_decoding_sequences_out_lengthen_their_next_gap():
    """Two decode; a prefill of 3 s adds one more, a prefill of 5 s another: 2 wait 8 s, 1 waits 5 s, 1 not at all."""
    plans = [
        {"start_s": 0.0, "duration_s": 1.0, "decode_seqs": 2},
        {"start_s": 1.0, "duration_s": 3.0, "prefill_seqs": 1, "stalled_seqs": 2},
        {"start_s": 4.0, "duration_s": 5.0, "prefill_seqs": 1, "stalled_seqs": 3},
        {"start_s": 9.0, "duration_s": 2.0, "steps": 2, "decode_seqs": 4},
    ]
    gaps_s, seqs = _gaps(steps_table(*plans))
    assert [(gap, n) for gap, n in zip(gaps_s, seqs, strict=True) if n] == [
        (1.0, 2),
        (1.0, 1),
        (1.0, 4),
        (9.0, 2),
        (6.0, 1),
    ]


@pytest.mark.parametrize("pause_s", [0.0, 0.003])
def test_gaps_sum_to_the_time_between_first_and_last_tokens(pause_s):
    steps, requests = synthetic_run(3, requests=120, pause_s=pause_s)
    done = request_columns(requests)
    gaps_s, seqs = _gaps(steps)
    between_s = (done["finish_s"] - done["first_token_s"])[done["completed"]].sum()
    assert (gaps_s * seqs).sum() == pytest.approx(between_s, rel=TOLERANCE)


def test_every_gap_is_a_step_or_a_preemption():
    steps, requests = synthetic_run(3, requests=100, rate_rps=20.0, pages=3000)
    done = request_columns(requests)
    _, seqs = _gaps(steps)
    preemptions = steps["preemptions"].sum()
    assert preemptions > 0
    assert seqs.sum() + preemptions == (done["output_tokens"] - 1)[done["completed"]].sum()
    assert np.all((done["max_stall_s"] > 0) == (done["preemptions"] > 0))
