"""Counterfactual replays: the cause is taken out of the config, and out of the config alone."""

import dataclasses

import numpy as np
import pytest

from nanoserve.analysis.failures.cause import Cause
from nanoserve.analysis.failures.counterfactual import bound, counterfactuals, replay_finding
from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import Experiment, Faults
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.types import Trace

NAIVE = Experiment(
    model="llama-3.1-8b",
    engine=EngineConfig(num_pages=200, max_seqs=64, allocator="contiguous", when_full="fail", max_context_tokens=2048),
)
CAUSE = Cause(
    name="no_admission_control",
    says="nothing holds requests back",
    explained=0.5,
    strength=1.0,
    bindings={"Engine.when_full": "wait", "Engine.allocator": "paged"},
)


def burst(count: int) -> Trace:
    """So many requests at once, each of 800 tokens: a few fit."""
    return Trace(
        name="burst",
        source="test",
        arrival_s=np.zeros(count),
        prompt_tokens=np.full(count, 600),
        output_tokens=np.full(count, 200),
    ).validated()


def test_taking_the_cause_away_takes_its_failures_away():
    (found,) = counterfactuals([CAUSE], NAIVE, burst(20))
    assert found.before.requests == found.after.requests == 20
    assert found.before.failed > 0.5
    assert found.after.failed == 0
    assert found.finding().values["spared"] == pytest.approx(found.before.lost - found.after.lost)


def test_only_what_is_bound_changes():
    changed = bound(NAIVE, CAUSE.bindings)
    assert changed.engine == dataclasses.replace(NAIVE.engine, when_full="wait", allocator="paged")
    assert dataclasses.replace(changed, engine=NAIVE.engine) == NAIVE


def test_fields_that_need_one_another_are_changed_at_once():
    planted = dataclasses.replace(NAIVE, faults=Faults(slow_replica=0, slow_factor=2.0))
    assert bound(planted, {"Faults.slow_replica": None, "Faults.slow_factor": 1.0}).faults == Faults()


@pytest.mark.parametrize("binding", ["Engines.when_full", "Engine.when_fool", "when_full"])
def test_a_binding_of_nothing_is_an_error(binding):
    with pytest.raises(ConfigError):
        bound(NAIVE, {binding: "wait"})


def test_without_a_config_it_says_that_there_is_nothing_to_replay():
    assert replay_finding(CAUSE, None, None).missing == "no config was given"


def test_a_cause_that_no_line_of_a_config_mends_cannot_be_tried():
    with pytest.raises(ConfigError, match="nothing to replay"):
        counterfactuals([dataclasses.replace(CAUSE, bindings={})], NAIVE)
