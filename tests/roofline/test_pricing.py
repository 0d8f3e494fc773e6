"""Ticks: exact sums, exact step counts, and the same seconds as `timing`."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nanoserve.roofline.calibration import Calibration, constants_for
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.pricing import Pricer
from nanoserve.roofline.timing import step_time
from nanoserve.specs.model_registry import model
from tests.roofline import factories as make

TICKS_PER_S = 1 << 60
RELATIVE_ERROR = 1e-9
modes = st.sampled_from(["sol", "calibrated"])


def make_pricer(spec, cluster, precision, mode):
    return Pricer(spec, cluster, precision, constants_for(cluster.chip, precision, mode))


@given(spec=make.models, cluster=make.clusters, precision=make.precisions, mode=modes, data=st.data())
def test_ticks_are_the_seconds_of_timing(spec, cluster, precision, mode, data):
    counts = data.draw(make.plans(spec))
    pricer = make_pricer(spec, cluster, precision, mode)
    seconds = step_time(step_ops(spec, cluster, precision, counts), cluster, pricer.calibration)
    ticks = pricer.plan_ticks(counts)
    rounding = 2 * counts.steps + counts.decode_kv_tokens / 2  # parts of a step, and each KV position, to half a tick
    assert abs(ticks - seconds * TICKS_PER_S) <= RELATIVE_ERROR * ticks + rounding


@given(
    spec=make.models.filter(lambda spec: spec.sliding_window_tokens is None),
    cluster=make.clusters,
    mode=modes,
    rows=st.integers(1, 300),
    context=st.integers(1, 100_000),
    parts=st.lists(st.integers(1, 400), min_size=1, max_size=6),
)
def test_a_plan_costs_exactly_what_any_cut_of_it_costs(spec, cluster, mode, rows, context, parts):
    pricer = make_pricer(spec, cluster, make.BF16, mode)
    whole = pricer.plan_ticks(make.decode_counts(rows, context, sum(parts)))
    done = 0
    for steps in parts:
        plan = make.decode_counts(rows, context + done, steps)
        whole -= pricer.plan_ticks(plan)
        assert pricer.first_step_ticks(plan, rows) == pricer.plan_ticks(make.decode_counts(rows, context + done))
        done += steps
    assert whole == 0


@settings(max_examples=200)
@given(
    rows=st.integers(1, 300),
    context=st.integers(1, 50_000),
    steps=st.integers(1, 3000),
    offset=st.integers(-2, 2),
    mode=modes,
)
@example(rows=1, context=1, steps=1, offset=-2, mode="sol")
def test_steps_before_is_the_number_of_steps_that_start_within_the_span(rows, context, steps, offset, mode):
    pricer = make_pricer(model("llama-3.1-8b"), make.cluster(), make.BF16, mode)
    span = max(1, pricer.plan_ticks(make.decode_counts(rows, context, steps)) + offset)
    found = pricer.steps_before(make.decode_counts(rows, context), span, growth=rows)
    assert pricer.plan_ticks(make.decode_counts(rows, context, found)) >= span
    if found > 1:
        assert pricer.plan_ticks(make.decode_counts(rows, context, found - 1)) < span


@given(growth=st.integers(0, 100), more=st.integers(1, 100), span_s=st.floats(1e-6, 100.0))
def test_a_growth_above_the_real_one_gives_no_more_steps(growth, more, span_s):
    pricer = make_pricer(model("mistral-7b-v0.1"), make.cluster(), make.BF16, "calibrated")
    counts = make.decode_counts(200, 4000, window=4096)
    span = round(span_s * TICKS_PER_S)
    assert pricer.steps_before(counts, span, growth + more) <= pricer.steps_before(counts, span, growth)


def test_rows_with_a_full_window_cost_the_same_each_step():
    pricer = make_pricer(model("mistral-7b-v0.1"), make.cluster(), make.BF16, "calibrated")
    plan = make.decode_counts(8, 5000, steps=7, window=4096)
    assert pricer.first_step_ticks(plan, growth=0) * 7 == pricer.plan_ticks(plan)
    assert pricer.steps_before(make.decode_counts(8, 5000, window=4096), pricer.plan_ticks(plan), growth=0) == 7


def test_host_ticks_are_the_gap_of_every_step_and_the_rows_sampled_in_it():
    known = constants_for(make.cluster().chip, make.BF16, "calibrated", "vllm_sync")
    plan = make.decode_counts(8, 5000, steps=7)

    def host_ticks(calibration: Calibration) -> int:
        pricer = Pricer(model("llama-3.1-8b"), make.cluster(), make.BF16, calibration, ticks_per_s=TICKS_PER_S)
        return pricer.host_ticks(plan)

    assert host_ticks(constants_for(make.cluster().chip, make.BF16, "sol")) == 0
    seconds = 7 * known.host_gap_s + 7 * 8 * known.host_row_s
    assert known.host_row_s > 0 and host_ticks(known) == pytest.approx(seconds * TICKS_PER_S, rel=1e-12)
