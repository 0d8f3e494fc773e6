"""Simulated speculation: steps gain what the formula expects, runs repeat themselves, and drafting has its price."""

import numpy as np
import pytest

from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.executors.speculating_roofline import DraftPricer, SpeculatingRoofline, chance
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.speculative import expected_tokens
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model
from tests.engine.factories import Job, make_engine
from tests.roofline import factories as make

CLUSTER = make.cluster()
CONSTANTS = constants_for(CLUSTER.chip, make.BF16, "calibrated")
STANDARD_ERRORS = 5


def run(
    acceptance: float,
    k: int,
    *,
    seed: int = 0,
    draft: str | None = None,
    requests: int = 40,
    num_pages: int = 2000,
    **config,
):
    """A run of one-sized requests of Llama 3.1 8B, with or without a draft model."""
    what = CLUSTER, make.BF16, CONSTANTS
    pricer = None if draft is None else DraftPricer(model(draft), *what)
    executor = SpeculatingRoofline(RooflineExecutor(model("llama-3.1-8b"), *what), acceptance, seed, pricer)
    jobs = [Job(index, 30, 200) for index in range(requests)]
    options = {"max_step_tokens": 256, "draft": "ngram" if draft is None else "model", "draft_tokens": k} | config
    engine = make_engine(jobs, executor=executor, num_pages=num_pages, **options)
    engine.run()
    return engine.log


@pytest.mark.parametrize(("acceptance", "k"), [(0.0, 3), (0.5, 2), (0.7, 4), (0.9, 6), (1.0, 3)])
def test_steps_gain_what_leviathan_expects(acceptance, k):
    """Each step's gain is between 1 and k + 1; the last ones of a request draft less, which the tolerance covers."""
    log = run(acceptance, k)
    steps = log.step_columns(2000)
    rows = steps["decode_seqs"].sum()
    gained = (rows + steps["accepted_tokens"].sum()) / rows
    expected = k + 1 if acceptance == 1 else expected_tokens(acceptance, k)
    ends = 40 * (k + 1) / rows
    error = STANDARD_ERRORS * k / 2 / np.sqrt(rows)
    assert gained == pytest.approx(expected, abs=error + ends)
    assert log.request_columns()["output_tokens"] == [200] * 40


def test_a_run_repeats_itself_and_another_seed_draws_anew():
    same = [list(run(0.6, 3, seed=seed, requests=6).event_lines()) for seed in (1, 1, 2)]
    assert same[0] == same[1] != same[2]


def test_a_draft_model_costs_its_steps_and_a_look_up_nothing():
    """One sequence alone, so that both runs make the same plans, with the same draws."""
    looked_up, drafted = (run(0.6, 3, draft=draft, requests=1) for draft in (None, "llama-3.2-1b"))
    columns = [log.step_columns(2000) for log in (looked_up, drafted)]
    for name in ("drafted_tokens", "accepted_tokens", "decode_kv_tokens"):
        assert columns[0][name].tolist() == columns[1][name].tolist()
    longer_s = columns[1]["duration_s"] - columns[0]["duration_s"]
    assert (longer_s > 0).all()
    alone = DraftPricer(model("llama-3.2-1b"), CLUSTER, make.BF16, CONSTANTS)._pricer
    counts = make.decode_counts(1, 100)
    host_s, step_s = alone.host_ticks(StepCounts()) / (1 << 60), alone.plan_ticks(counts) / (1 << 60)
    device_s = step_s - alone.host_ticks(counts) / (1 << 60)
    of_four = longer_s[columns[0]["drafted_tokens"] == 3]
    assert of_four == pytest.approx(host_s + 4 * device_s, rel=0.01)


def test_guesses_that_are_mostly_right_save_most_of_a_lone_sequences_time():
    alone, plain = run(0.8, 4, requests=1), run(0.0, 1, requests=1)
    assert alone.request_columns()["finish_s"][0] < 0.5 * plain.request_columns()["finish_s"][0]


def test_acceptance_must_be_said():
    with pytest.raises(ConfigError, match=r"Engine\.draft_acceptance"):
        SpeculatingRoofline(RooflineExecutor(model("llama-3.1-8b"), CLUSTER, make.BF16, CONSTANTS), None)


def test_chances_are_even_and_of_nothing_but_their_arguments():
    drawn = np.array(
        [chance(seed, request, position) for seed in (0, 1) for request in range(50) for position in range(100)]
    )
    assert abs(drawn.mean() - 0.5) < 0.01 and drawn.min() >= 0 and drawn.max() < 1
    counts, _ = np.histogram(drawn, bins=20, range=(0, 1))
    assert counts.min() > 400 and counts.max() < 600  # 500 expected in each
    assert chance(3, 4, 5) == chance(3, 4, 5) != chance(3, 5, 4)


@pytest.mark.parametrize("batching", ["mixed", "prefill_first", "static"])
def test_a_crowded_pool_ends_all_requests(batching):
    log = run(0.7, 3, requests=12, batching=batching, max_seqs=6, static_timeout_s=1e-6, num_pages=90)
    columns = log.request_columns()
    assert columns["finish_reason"] == ["length"] * 12
    assert sum(columns["preemptions"]) > 0
