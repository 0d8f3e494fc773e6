"""The chatbot's week: the statistics that were asked for, conversations that grow, and the same bytes every time."""

import dataclasses
import functools

import numpy as np
import pytest
from scipy import stats

from nanoserve.specs.errors import ConfigError
from nanoserve.trace.arrivals import WeeklyBursts
from nanoserve.trace.chatbot import chatbot_week
from nanoserve.trace.source import TraceSource, open_trace
from nanoserve.trace.types import Trace
from nanoserve.trace.week import synthesize_week
from tests.trace.factories import same

WEEK_S = 7 * 86400.0
SEEDS = (0, 1, 2)
PUBLISHED = 0.1  # how far a statistic may be from the published one


@functools.cache
def week(seed: int) -> Trace:
    return synthesize_week(chatbot_week(100_000), seed)


@functools.cache
def small() -> Trace:
    return synthesize_week(chatbot_week(5_000), 4)


def column(trace: Trace, name: str) -> np.ndarray:
    """A column that only some traces have."""
    values = getattr(trace, name)
    assert values is not None
    return np.asarray(values)


def by_turn(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """Rows in the order of sessions and turns; and which of them have a successor in their session."""
    session, turn = column(trace, "session"), column(trace, "turn")
    order = np.lexsort((turn, session))
    session = session[order]
    return order, np.append(session[1:] == session[:-1], False)


@pytest.mark.parametrize("seed", SEEDS)
def test_prompts_have_the_published_quantiles_and_mean(seed):
    prompt = week(seed).prompt_tokens
    found = (*np.quantile(prompt, (0.5, 0.95, 0.99)), prompt.mean())
    assert found == pytest.approx((128, 2048, 4096, 512), rel=PUBLISHED)
    assert 0.9 * 8192 < prompt.max() <= 8192


@pytest.mark.parametrize("seed", SEEDS)
def test_half_of_the_gaps_are_under_ten_milliseconds(seed):
    assert np.mean(np.diff(week(seed).arrival_s) < 0.01) == pytest.approx(0.5, rel=PUBLISHED)


@pytest.mark.parametrize("seed", SEEDS)
def test_answers_go_with_their_prompts(seed):
    trace = week(seed)
    assert stats.spearmanr(trace.prompt_tokens, trace.output_tokens)[0] == pytest.approx(0.4, rel=PUBLISHED)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_requests_fill_a_week_whose_working_hours_are_twenty_times_its_nights(seed):
    arrival_s = week(seed).arrival_s
    assert len(arrival_s) == 100_000 and 0 <= arrival_s[0] < 3600 and WEEK_S - 3600 < arrival_s[-1] < WEEK_S + 1
    hour_of_weekday = np.floor(arrival_s[arrival_s < 5 * 86400] / 3600).astype(int) % 24
    by_hour = np.bincount(hour_of_weekday, minlength=24)
    assert by_hour[14] / by_hour[4] == pytest.approx(520 / 25, rel=PUBLISHED)
    weekend_share = np.mean(arrival_s > 5 * 86400)
    assert weekend_share == pytest.approx(0.18, abs=0.02)


@pytest.mark.parametrize("seed", SEEDS)
def test_sessions_have_one_to_more_than_ten_turns(seed):
    turns = np.bincount(column(week(seed), "session"))
    assert turns.min() == 1 and np.mean(turns == 1) > 0.5
    assert 0.005 < np.mean(turns > 10) < 0.03


def test_a_prompt_holds_everything_that_was_said_before():
    trace = week(0)
    order, goes_on = by_turn(trace)
    prompt, answer, arrival_s = trace.prompt_tokens[order], trace.output_tokens[order], trace.arrival_s[order]
    following = np.flatnonzero(goes_on) + 1
    assert (prompt[following] > prompt[following - 1] + answer[following - 1]).all()
    assert (arrival_s[following] - arrival_s[following - 1] > 8).all()
    turn = column(trace, "turn")[order]
    assert (turn[following] == turn[following - 1] + 1).all()


def test_a_session_has_one_user_and_a_user_one_region():
    session, user, region = (column(small(), name) for name in ("session", "client", "region"))
    people = set(zip(session.tolist(), user.tolist(), strict=True))
    places = set(zip(user.tolist(), region.tolist(), strict=True))
    assert len(people) == session.max() + 1
    assert len(places) == user.max() + 1
    assert set(region.tolist()) == {"us-east", "us-west", "eu-west", "ap-south"}


def test_prefixes_say_that_a_turn_begins_with_the_turn_before():
    trace = small()
    order, goes_on = by_turn(trace)
    hashes = trace.prefix_hashes
    assert hashes is not None
    for place in np.flatnonzero(goes_on)[:200].tolist():
        before, after = (hashes.row(int(order[place + step])).tolist() for step in (0, 1))
        assert after[: len(before)] == before


def test_one_seed_is_one_trace():
    spec = chatbot_week(1_000)
    assert same(synthesize_week(spec, 7), synthesize_week(spec, 7))
    assert not same(synthesize_week(spec, 7), synthesize_week(spec, 8))


def test_a_higher_rate_puts_more_requests_into_the_same_week():
    for requests in (20_000, 60_000):
        arrival_s = synthesize_week(chatbot_week(requests, requests / WEEK_S), 0).arrival_s
        assert len(arrival_s) == requests and WEEK_S - 7200 < arrival_s[-1] < WEEK_S + 1


@pytest.mark.parametrize("requests", [1, 2, 3])
def test_a_few_requests_are_a_trace(requests):
    assert len(synthesize_week(chatbot_week(requests), 0)) == requests


def test_bursts_leave_every_hour_its_rate():
    weekday, weekend = tuple(range(1, 25)), (3.0,) * 24
    settings = {"rate_rps": 2.0, "weekday": weekday, "weekend": weekend, "gap_s": 0.001}
    singly = WeeklyBursts(tail=2.0, most=1, **settings)
    bursts = WeeklyBursts(tail=2.0, most=30, **settings)
    edges_s = np.arange(169) * 3600.0
    counts = [
        np.histogram(process.times_s(int(2 * WEEK_S), np.random.default_rng(3)), edges_s)[0]
        for process in (singly, bursts)
    ]
    rates = np.array((*weekday * 5, *weekend * 2))
    for count in counts:
        np.testing.assert_allclose(count / count.sum(), rates / rates.sum(), rtol=0.05)
    np.testing.assert_array_less(0.99, np.corrcoef(np.stack(counts)))


def test_a_config_names_the_week_and_may_cut_it():
    source = TraceSource(preset="chatbot_week", requests=5_000, seed=4)
    assert same(open_trace(source), small())
    stated = open_trace(dataclasses.replace(source, start_s=3600.0, end_s=7200.0, stated_limit_tokens=1024))
    assert stated.answer_tokens is not None and set(stated.output_tokens.tolist()) == {1024}
    assert len(column(stated, "region")) == len(stated)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"mean_turns": 3.0}, "TraceSource.mean_turns = 3.0: must be left out: preset 'chatbot_week' has its own"),
        ({"arrivals": "poisson"}, "TraceSource.arrivals = 'poisson'"),
        ({"max_output_tokens": 100}, "TraceSource.max_output_tokens = 100"),
    ],
)
def test_what_the_week_does_not_heed_is_refused(fields, says):
    with pytest.raises(ConfigError) as caught:
        TraceSource(preset="chatbot_week", **fields)
    assert says in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("arrivals", {"rate_rps": 0.0}),
        ("arrivals", {"weekday": (1.0,) * 23}),
        ("arrivals", {"weekend": (0.0,) * 24}),
        ("arrivals", {"tail": 1.0}),
        ("arrivals", {"most": 0}),
        ("talk", {"correlation": 2.0}),
        ("talk", {"long_share": -0.1}),
        ("talk", {"short_turns": 0.0}),
        ("talk", {"max_prompt_tokens": 8191}),
        (None, {"requests": 0}),
        (None, {"users": 3}),
    ],
)
def test_a_week_that_cannot_be_is_refused(kind, fields):
    spec = chatbot_week(10)
    with pytest.raises(ConfigError, match=next(iter(fields))):
        dataclasses.replace(getattr(spec, kind) if kind else spec, **fields)


def test_a_negative_seed_is_refused():
    with pytest.raises(ConfigError, match="seed = -1"):
        synthesize_week(chatbot_week(1), -1)
