"""The whole way from requests to a config and its proof, by real replays of a small service."""

import dataclasses
import datetime
from collections.abc import Mapping
from typing import Any

import pytest

from nanoserve.analysis.finding import Finding
from nanoserve.analysis.recommend import recommendation, stretches
from nanoserve.analysis.recommend.recommendation import Recommendation, recommend, replays_at_most
from nanoserve.analysis.recommend.trial import run_trial
from nanoserve.experiment import CONFIG_CLASSES, Experiment, SloConfig
from nanoserve.specs.config import load as load_config
from nanoserve.specs.errors import ConfigError, TraceError
from nanoserve.trace.slices import chosen, head
from tests.analysis.recommend.factories import NAIVE, load, with_other_lengths

START = datetime.datetime(2026, 3, 2, tzinfo=datetime.UTC)
ALLOCATION = Finding(key="causes.contiguous_allocation", title="Memory is reserved and not written", rows=400)


@pytest.fixture(scope="module")
def few_requests() -> Any:
    patch = pytest.MonkeyPatch()
    patch.setattr(recommendation, "SEARCH_REQUESTS", 150)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def told() -> list[str]:
    return []


@pytest.fixture(scope="module")
def found(few_requests: Any, told: list[str]) -> Recommendation:
    return recommend(load(), NAIVE, START, [ALLOCATION], told=told.append)


def values(found: Recommendation, key: str) -> Mapping[str, Any]:
    return next(finding for finding in found.findings if finding.key == key).values


def test_failures_on_held_out_time_are_cut_and_goodput_is_raised(found: Recommendation):
    failures, goodput = values(found, "proof.failures"), values(found, "proof.goodput")
    assert failures["before"] > 20 and failures["cut_share"] >= 0.9
    assert goodput["after_rps"] > goodput["before_rps"] and goodput["change_low_share"] > 0


def test_the_proof_is_what_a_replay_of_the_written_config_gives(found: Recommendation):
    again = load_config(found.text("x"), CONFIG_CLASSES, "Experiment").value
    assert isinstance(again, Experiment)
    trace = load()
    trial = run_trial(again, chosen(trace, stretches.split(trace.arrival_s).held_out))
    assert trial.failed.sum() == values(found, "proof.failures")["after"]


def test_the_choice_is_the_same_every_time_and_does_not_look_at_held_out_time(found: Recommendation):
    trace = load()
    other = with_other_lengths(trace, stretches.split(trace.arrival_s).held_out)
    again = recommend(other, NAIVE, START, [ALLOCATION])
    assert again.text("x") == found.text("x")
    assert values(again, "recommend.values") == values(found, "recommend.values")


def test_every_value_has_its_curve_and_its_reason(found: Recommendation):
    keys = {finding.key for finding in found.findings}
    rows = values(found, "recommend.values")["knobs"]
    assert len(rows) == len(found.verdicts) and all(row["because"] for row in rows)
    assert {f"experiments.{verdict.curve.knob.name}" for verdict in found.verdicts} <= keys
    assert any(not verdict.kept for verdict in found.verdicts)


def test_a_value_names_what_the_logs_said_about_it(found: Recommendation):
    by_knob = {verdict.curve.knob.name: verdict for verdict in found.verdicts}
    assert by_knob["allocator"].evidence == (ALLOCATION.title,)
    assert by_knob["page"].evidence == ()


def test_it_tells_after_each_replay_and_stays_within_what_was_promised(found: Recommendation, told: list[str]):
    assert 20 < len(told) <= replays_at_most(load(), NAIVE)


def test_without_an_objective_nothing_can_be_compared():
    with pytest.raises(ConfigError, match="Give --slo=NAME"):
        recommend(load(50), dataclasses.replace(NAIVE, slo=SloConfig()), START)


def test_one_request_is_too_few():
    with pytest.raises(TraceError, match="nothing to compare"):
        recommend(head(load(50), 1), NAIVE, START)
