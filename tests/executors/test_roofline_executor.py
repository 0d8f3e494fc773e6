"""The priced executor inside the real engine: how steps are gathered into plans changes nothing."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.types import TICKS_PER_S
from nanoserve.executors.roofline_executor import RooflineExecutor, one_shape
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.counts import StepCounts
from nanoserve.specs.model_registry import model
from tests.engine.factories import Job, make_engine
from tests.roofline import factories as make

jobs = st.lists(
    st.builds(
        Job,
        arrival_ticks=st.floats(0, 0.3).map(lambda s: round(s * TICKS_PER_S)),
        prompt_tokens=st.integers(1, 60),
        output_tokens=st.integers(1, 60),
    ),
    min_size=1,
    max_size=12,
)


def run(jobs: list[Job], name: str, window: int | None = None, **config):
    """The log of a run, with a model whose window is `window` if it has one."""
    spec = dataclasses.replace(model(name), sliding_window_tokens=window)
    cluster = make.cluster()
    executor = RooflineExecutor(spec, cluster, make.BF16, constants_for(cluster.chip, make.BF16, "calibrated"))
    engine = make_engine(jobs, executor=executor, window_tokens=window, num_pages=80, **config)
    engine.run()
    return engine.log


@settings(max_examples=40)
@given(
    jobs=jobs,
    window=st.sampled_from([None, 16, 40]),
    how=st.sampled_from([{}, {"batching": "static", "static_timeout_s": 0.01}, {"batching": "prefill_first"}]),
)
def test_a_run_does_not_depend_on_the_horizon(jobs, window, how):
    far, near = (run(jobs, "llama-3.2-1b", window, max_horizon_steps=steps, **how) for steps in (1024, 1))
    assert list(far.event_lines()) == list(near.event_lines())
    assert far.plan_count() <= near.plan_count()


class SecondSteps:
    """A pricer for which every step takes a second."""

    call_ticks = 0

    def host_ticks(self, counts):
        return 0

    def plan_ticks(self, counts):
        return counts.steps * TICKS_PER_S

    def first_step_ticks(self, counts, growth):
        return TICKS_PER_S

    def steps_before(self, counts, span_ticks, growth):
        return -(-span_ticks // TICKS_PER_S)


def test_plans_are_priced_by_the_pricer_that_is_given():
    cluster = make.cluster()
    constants = constants_for(cluster.chip, make.BF16, "calibrated")
    executor = RooflineExecutor(model("llama-3.2-1b"), cluster, make.BF16, constants, SecondSteps())
    engine = make_engine([Job(0, 10, 50), Job(20 * TICKS_PER_S, 10, 5)], executor=executor, num_pages=80)
    engine.run()
    assert engine.log.request_columns()["finish_s"] == [50.0, 25.0]
    assert engine.log.plan_count() < 10


def test_plans_of_many_steps_are_made():
    log = run([Job(0, 10, 50)], "llama-3.2-1b")
    assert log.plan_count() < 20


@pytest.mark.parametrize("window", [None, 30])
def test_the_first_step_and_the_plan_fit_together(window):
    """`StepResult.ticks_after` interpolates; with the first step right it agrees with pricing a shorter plan."""
    columns = run([Job(0, 10, 50), Job(0, 25, 50)], "llama-3.2-1b", window).step_columns(80)
    alone = run([Job(0, 10, 50), Job(0, 25, 50)], "llama-3.2-1b", window, max_horizon_steps=1).step_columns(80)
    first = dict(zip(alone["step"], alone["duration_s"], strict=True))
    assert [first[step] for step in columns["step"]] == columns["first_step_s"].tolist()


def test_the_host_gap_of_each_step_is_reported():
    columns = run([Job(0, 10, 50)], "llama-3.2-1b").step_columns(80)
    gap_s = constants_for(make.cluster().chip, make.BF16, "calibrated").host_gap_s
    assert gap_s > 0
    assert columns["host_gap_s"] == pytest.approx(gap_s * columns["steps"])


def test_a_batch_invariant_run_pays_for_one_shape_in_every_step():
    spec, cluster = model("llama-3.2-1b"), make.cluster()
    config = EngineConfig(max_seqs=8, max_step_tokens=64, batch_invariant=True)
    constants = constants_for(cluster.chip, make.BF16, "calibrated")
    executor = RooflineExecutor(spec, cluster, make.BF16, constants, padded=one_shape(config))
    engine = make_engine([Job(0, 10, 50)], executor=executor, num_pages=80, max_seqs=8, batch_invariant=True)
    engine.run()
    columns, plain = engine.log.step_columns(80), run([Job(0, 10, 50)], "llama-3.2-1b").step_columns(80)
    assert set(columns["steps"]) == {1} and set(columns["executed_tokens"]) == {8 + 64}
    alike = executor.pricer.plan_ticks(StepCounts(decode_seqs=8, decode_kv_tokens=11, prefill_tokens=64, sampled=16))
    assert columns["duration_s"][1] == pytest.approx(alike / TICKS_PER_S, rel=0.01)
    assert columns["duration_s"][1] > plain["first_step_s"][1]


def test_a_plan_that_is_one_call_waits_for_the_host_once_whatever_its_steps():
    """Constants of our own stack: ten more tokens in one plan cost no further call, in plans of one step they do."""
    cluster = make.cluster()
    usual = constants_for(cluster.chip, make.BF16, "calibrated")
    calling = dataclasses.replace(usual, host_call_s=0.5)

    def finish_s(calibration, horizon: int) -> float:
        executor = RooflineExecutor(model("llama-3.2-1b"), cluster, make.BF16, calibration)
        engine = make_engine([Job(0, 10, 11)], executor=executor, num_pages=80, max_horizon_steps=horizon)
        engine.run()
        assert engine.log.plan_count() == (2 if horizon > 1 else 11)
        return engine.log.request_columns()["finish_s"][0]

    plain = finish_s(usual, 64)
    assert finish_s(calling, 64) - plain == pytest.approx(2 * 0.5)
    assert finish_s(calling, 1) - plain == pytest.approx(11 * 0.5)
