"""The part that profiles whole steps: its figures add up, and a profiler that records nothing is a failure."""

import time

import jax
import pytest

from experiments.bench.attention_timing import CPU
from experiments.bench.parts import Context, Shared, profile, step
from experiments.bench.results_file import MEASURED
from nanoserve.executors import profile_reading
from nanoserve.executors.profile_reading import Recorded

DECODE = profile.cases(toy=True)[0]
UNPROFILED_S = 0.25


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    found = {
        "step": {
            DECODE.name: {"status": MEASURED, "time": {"median_s": UNPROFILED_S}, "device_step_s": UNPROFILED_S / 2}
        }
    }
    return Context(
        device=jax.devices()[0],
        effort=CPU,
        clock=time.perf_counter,
        found=found,
        toy=True,
        scratch=tmp_path_factory.mktemp("scratch"),
        shared=Shared(),
    )


def test_every_profiled_step_is_one_that_is_timed():
    timed = {case.name: case.sizes() for case in step.cases(toy=False)}
    for case in profile.cases(toy=False):
        assert timed[case.name] == case.sizes()


def test_a_steps_lines_add_up_beside_their_prices_and_the_unprofiled_time(context):
    record = profile.measure(DECODE, context)
    (kind,) = record["kinds"]
    assert (kind["kind"], kind["plans"], kind["steps"]) == ("decode", profile.PLANS, profile.PLANS * profile.LOOP_STEPS)
    assert sum(line["measured_s"] for line in kind["lines"]) == pytest.approx(kind["duration_s"])
    assert kind["attributed"] > 0.8
    priced = {line["operation"] for line in kind["lines"] if line["calibrated_s"]}
    assert {"qkv", "out", "gate_up", "down", "head", "attention_decode"} <= priced
    assert record["counts"]["steps"] == profile.LOOP_STEPS and record["unprofiled_s"] == UNPROFILED_S
    assert record["unprofiled_waits_s"] == pytest.approx(UNPROFILED_S / 2 - kind["busy_s"])
    cells = profile.columns(record)
    assert cells["unprofiled"] == "250 ms" and cells["longest"].count(",") == 2


def test_a_profiler_that_records_nothing_of_the_device_is_a_failure(context, monkeypatch):
    monkeypatch.setattr(profile_reading, "read", lambda folder: Recorded((), ()))
    with pytest.raises(RuntimeError, match="needs CUPTI"):
        profile.measure(DECODE, context)
