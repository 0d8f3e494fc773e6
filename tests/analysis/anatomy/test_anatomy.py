"""The anatomy of a log against numpy and scipy, on small logs, and on the published traces as another library has them.

Every statistic is computed here once more, from the files themselves where there are files.
"""

import csv
import datetime
import functools
import json
import zoneinfo
from collections.abc import Iterator

import hypothesis.strategies as st
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from scipy import stats

from nanoserve.analysis.anatomy import arrivals, counting, lengths, memory, prefixes, sessions
from nanoserve.analysis.anatomy.all import ANATOMY
from nanoserve.analysis.anatomy.arrivals import Gaps, Seconds
from nanoserve.analysis.anatomy.memory import MemoryByPrompt
from nanoserve.analysis.anatomy.sessions import Sessions
from nanoserve.analysis.anatomy.sketch import merged
from nanoserve.analysis.finding import Finding
from nanoserve.analysis.logs.join import join
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.analysis.logs.read import open_logs
from nanoserve.trace.columns import ragged
from tests.analysis.logs.factories import MONDAY, joined_of
from tests.trace.factories import shared

AZURE = ("AzureLLMInferenceTrace_conv_2023.csv", "AzureLLMInferenceTrace_code_2023.csv")
MOONCAKE, AGENT = "mooncake_conversation_trace.jsonl", "agent_miniswe_smollm2_blk16.jsonl"
ROUNDING = 1e-9
TIMES = st.lists(st.floats(0, 1e5, allow_nan=False), min_size=2, max_size=50)


def findings(joined: Joined) -> Iterator[Finding]:
    for function in ANATOMY:
        found = function(joined)
        yield from [found] if isinstance(found, Finding) else found


@functools.cache
def of_trace(name: str) -> Joined:
    return join(open_logs([shared(name)]))


@functools.cache
def columns_of(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Arrival, prompt and answer of every row, read by the standard library alone."""
    text = shared(name).read_text()
    if name.endswith(".csv"):
        rows = list(csv.DictReader(text.splitlines()))
        whole = [datetime.datetime.fromisoformat(row["TIMESTAMP"][:19]).timestamp() for row in rows]
        arrival = [second + float(f"0.{row['TIMESTAMP'][20:]}") for second, row in zip(whole, rows, strict=True)]
        names = ("ContextTokens", "GeneratedTokens")
    else:
        rows = [json.loads(line) for line in text.splitlines() if line.strip()]
        scale = 1 if any(isinstance(row["timestamp"], float) for row in rows) else 1000
        arrival, names = [row["timestamp"] / scale for row in rows], ("input_length", "output_length")
    prompt, answer = (np.array([int(row[name]) for row in rows]) for name in names)
    return np.array(arrival) - arrival[0], prompt, answer


def dispersion_of(arrival_s: np.ndarray, window_s: int, origin_s: float = 0.0) -> float:
    """Variance over mean of counts in whole windows from a second on, by numpy's histogram."""
    begin = np.floor(origin_s)
    windows = int((np.floor(arrival_s[-1] + origin_s) - begin + 1) // window_s)
    edges = begin + np.arange(windows + 1) * window_s
    counts = np.histogram(arrival_s + origin_s, np.append(edges[:-1], np.nextafter(edges[-1], 0)))[0]
    return float(counts.var() / counts.mean())


@pytest.mark.parametrize("name", [*AZURE, MOONCAKE, AGENT])
def test_lengths_of_published_traces_are_numpys(name: str):
    _, prompt, answer = columns_of(name)
    found = counting.numbers(of_trace(name)).values
    for column, values in (("prompt_tokens", prompt), ("response_tokens", answer)):
        said = found[column]
        assert isinstance(said, dict)
        assert (said["count"], said["least"], said["most"]) == (len(values), values.min(), values.max())
        assert said["mean"] == pytest.approx(values.mean(), rel=ROUNDING)
        assert said["std"] == pytest.approx(values.std(), rel=ROUNDING)
        names = [key for key in said if key[0] == "p" and key != "p999"]
        percentiles = np.percentile(values, [float(key[1:]) for key in names])
        assert [said[key] for key in names] == pytest.approx(percentiles.tolist(), rel=ROUNDING)
        assert said["p999"] == pytest.approx(np.percentile(values, 99.9), rel=ROUNDING)


@pytest.mark.parametrize("name", [*AZURE, MOONCAKE, AGENT])
def test_gaps_of_published_traces_are_numpys(name: str):
    arrival_s, _, _ = columns_of(name)
    gaps = np.diff(arrival_s)
    said = arrivals.gaps(of_trace(name)).values
    assert said["mean_s"] == pytest.approx(gaps.mean(), rel=1e-6)
    assert said["cv"] == pytest.approx(stats.variation(gaps), rel=1e-6)
    assert said["p95_s"] == pytest.approx(np.percentile(gaps, 95), abs=1e-6)
    assert said["share_within_10ms"] == pytest.approx((gaps <= 0.01 + 1e-7).mean(), abs=1e-9)
    assert said["share_beyond_50ms"] == pytest.approx((gaps > 0.05 + 1e-7).mean(), abs=1e-9)


@pytest.mark.parametrize("name", [*AZURE, MOONCAKE, AGENT])
@pytest.mark.parametrize("window_s", [1, 60])
def test_dispersion_of_published_traces_is_numpys(name: str, window_s: int):
    arrival_s, _, _ = columns_of(name)
    joined = of_trace(name)
    said = arrivals.dispersion(joined).values[f"dispersion_{window_s}s"]
    if said is None:
        assert arrival_s[-1] < 2 * window_s
        return
    origin_s = joined.take("time_s")["time_s"][0]
    assert said == pytest.approx(dispersion_of(arrival_s + 1e-9, window_s, origin_s), rel=1e-6)


@pytest.mark.parametrize("name", [*AZURE, MOONCAKE, AGENT])
def test_rank_correlation_of_published_traces_is_scipys(name: str):
    _, prompt, answer = columns_of(name)
    said = lengths.pair(of_trace(name)).values["rank_correlation"]
    assert said == pytest.approx(stats.spearmanr(prompt, answer).statistic, abs=1e-9)


@pytest.mark.parametrize("name", [*AZURE, MOONCAKE, AGENT])
def test_memory_of_published_traces_is_numpys(name: str):
    _, prompt, answer = columns_of(name)
    kv = np.sort(prompt + answer)[::-1]
    found = memory.by_prompt(of_trace(name))
    whole, part = divmod(len(kv) * 0.01, 1)
    top = (kv[: int(whole)].sum() + part * kv[int(whole)]) / kv.sum()
    assert found.values["share_held_by_top_1_percent"] == pytest.approx(top, rel=ROUNDING)
    shares = [(prompt + answer)[prompt <= length].sum() / kv.sum() for length in found.series["prompt_tokens"]]
    assert found.series["memory_share"] == pytest.approx(np.array(shares), rel=ROUNDING)


@pytest.mark.parametrize(("name", "share", "beyond_first"), [(MOONCAKE, 0.373, 0.346), (AGENT, 0.935, 0.935)])
def test_prefix_reuse_is_what_the_traces_publish(name: str, share: float, beyond_first: float):
    said = prefixes.prefix(of_trace(name)).values
    assert said["share_of_tokens"] == pytest.approx(share, abs=0.0006)
    assert said["share_of_tokens_beyond_first_block"] == pytest.approx(beyond_first, abs=0.0006)


def test_prefix_reuse_is_that_of_a_set_of_blocks_seen():
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, 6, rng.integers(0, 5)).tolist() for _ in range(200)]
    seen: set[int] = set()
    found = []
    for ids in prompts:
        hits = [block in seen for block in ids]
        found.append(hits.index(False) if False in hits else len(hits))
        seen.update(ids)
    assert prefixes.blocks_found(ragged(prompts)).tolist() == found


def test_sessions_of_the_agent_trace_are_its_own():
    rows = [json.loads(line) for line in shared(AGENT).read_text().splitlines()]
    turns = pl.Series([row["session_id"] for row in rows]).value_counts()["count"].to_numpy()
    by_key = {finding.key: finding for finding in sessions.sessions(of_trace(AGENT))}
    said = by_key["anatomy.sessions.turns"].values
    assert (said["sessions"], said["most_turns"]) == (len(turns), turns.max())
    assert said["mean_turns"] == pytest.approx(turns.mean())


def test_sessions_are_those_of_plain_loops():
    rng = np.random.default_rng(4)
    count = 400
    time_s = np.sort(rng.uniform(0, 5e4, count))
    user, session = rng.integers(0, 12, count), rng.integers(0, 3, count)
    joined = joined_of(
        time_s=time_s,
        user_id=[f"u{n}" for n in user],
        session_id=[f"s{n}" for n in session],
        prompt_tokens=rng.integers(1, 99, count),
    )
    owned: dict[tuple[int, int], list[float]] = {}
    for row in range(count):
        owned.setdefault((user[row], session[row]), []).append(time_s[row])
    by_key = {finding.key.rpartition(".")[2]: finding for finding in sessions.sessions(joined)}
    spans = [times[-1] - times[0] for times in owned.values() if len(times) > 1]
    gaps = np.concatenate([np.diff(times) for times in owned.values()])
    assert by_key["turns"].values["sessions"] == len(owned)
    assert by_key["duration"].values["p50_s"] == pytest.approx(np.median(spans))
    assert by_key["gaps"].values["next_turn_p50_s"] == pytest.approx(np.median(gaps))
    prompt = joined.take("prompt_tokens")["prompt_tokens"].to_numpy()
    first = [prompt[time_s == times[0]][0] for times in owned.values()]
    assert by_key["growth"].values["first_turn_tokens"] == pytest.approx(np.mean(first) + 5)


def test_a_users_next_session_is_counted_from_the_end_of_the_last():
    joined = joined_of(time_s=[0, 10, 40, 1000], user_id=["a", "a", "a", "b"], session_id=["x", "x", "y", "x"])
    gaps = sessions.sessions(joined)[3]
    assert (gaps.values["next_session_count"], gaps.values["next_session_p50_s"]) == (1, 30.0)
    assert (gaps.values["next_turn_count"], gaps.values["next_turn_p50_s"]) == (1, 10.0)


def test_hours_are_those_of_the_wall_and_weekends_are_apart():
    hours = np.arange(14 * 24)
    wanted = 3600 * (1 + (hours % 24 == 15) + (hours // 24 % 7 >= 5))
    spread = [np.linspace(hour * 3600, hour * 3600 + 3599, n // 60) for hour, n in zip(hours, wanted, strict=True)]
    found = arrivals.hours(joined_of(time_s=np.concatenate(spread)))
    assert (found.values["peak_hour"], found.values["days"]) == (15, 14)
    at_3 = {name: series[3] * 60 for name, series in found.series.items() if name != "hour"}
    expected = {"mean_per_s": 9 / 7, "p5_per_s": 1, "p95_per_s": 2, "weekday_per_s": 1, "weekend_per_s": 2}
    assert at_3 == pytest.approx(expected)


def test_hours_follow_a_zone_through_daylight_saving():
    start = datetime.datetime(
        2026, 3, 6, tzinfo=zoneinfo.ZoneInfo("America/New_York")
    )  # clocks skip an hour on the 8th
    busy = [start + datetime.timedelta(days=day, hours=9) for day in range(5)]  # 9 on the wall, every day
    begins_s = [(moment - start.astimezone(datetime.UTC)).total_seconds() for moment in busy]
    time_s = [begin + second for begin in begins_s for second in range(0, 3600, 9)]
    found = arrivals.hours(joined_of(start=start, time_s=[*time_s, 5 * 86400 - 3600.0]))
    assert found.values["peak_hour"] == 9 and found.values["trough_per_s"] == 0


@given(TIMES, st.integers(1, 4))
def test_gaps_of_parts_are_those_of_the_whole(times, count):
    times = np.sort(times)
    parts = [part for part in np.array_split(times, count) if len(part)]
    found = merged(parts, Gaps.of)
    assert np.sort(np.diff(times)) == pytest.approx(found.gaps.exact, abs=1e-9)
    whole = Gaps.of(times)
    assert (found.up_to == whole.up_to).all() and (found.histogram == whole.histogram).all()


@given(TIMES, st.integers(1, 4))
def test_seconds_of_parts_are_those_of_the_whole_in_any_order(times, count):
    rng = np.random.default_rng(len(times))
    whole = Seconds.of(np.array(times))
    found = merged(np.array_split(rng.permutation(times), min(count, len(times))), Seconds.of)
    assert found.first == whole.first and (found.counts == whole.counts).all()


@given(st.lists(st.tuples(st.integers(1, 20), st.integers(1, 50)), min_size=1, max_size=40), st.integers(1, 4))
def test_memory_of_parts_is_that_of_the_whole(rows, count):
    prompt, kv = np.array(rows).T
    parts = [p for p in zip(np.array_split(prompt, count), np.array_split(kv, count), strict=True) if len(p[0])]
    found, whole = merged(parts, lambda part: MemoryByPrompt.of(*part)), MemoryByPrompt.of(prompt, kv)
    assert (found.tokens == whole.tokens).all() and (found.prompts.values == whole.prompts.values).all()
    assert found.held.total == whole.held.total == kv.sum()


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 2)), min_size=1, max_size=40))
def test_sessions_of_users_are_those_of_all(rows):
    user, part = np.array(rows, np.uint64).T
    session, time_s, kv = user * np.uint64(10) + part, np.arange(len(rows), dtype=float), np.arange(len(rows))
    whole = Sessions.of(user, session, time_s, kv)
    halves = [user % np.uint64(2) == odd for odd in (0, 1)]
    parts = [[column[half] for column in (user, session, time_s, kv)] for half in halves if half.any()]
    found = merged(parts, lambda part: Sessions.of(*part))
    assert (found.turns.values == whole.turns.values).all() and (found.turns.times == whole.turns.times).all()
    assert (found.kv_tokens == whole.kv_tokens).all() and (found.reached == whole.reached).all()
    for name in ("durations", "next_turn", "next_session"):
        assert (getattr(found, name).exact == getattr(whole, name).exact).all()


def week_of(count: int, seed: int = 0) -> dict[str, list]:
    rng = np.random.default_rng(seed)
    return {
        "time_s": np.round(np.sort(rng.uniform(0, 3e5, count)), 6).tolist(),
        "request_id": [f"r{row}" for row in range(count)],
        "prompt_tokens": rng.lognormal(5, 1, count).astype(int).tolist(),
        "response_tokens": rng.lognormal(4, 1, count).astype(int).tolist(),
        "latency_s": rng.lognormal(0, 1, count).tolist(),
        "status": rng.choice([200, 200, 200, 503], count).tolist(),
        "session_id": [f"s{n}" for n in rng.integers(0, count // 4, count)],
        "region": rng.choice(["eu", "us"], count).tolist(),
    }


def test_shuffling_the_rows_of_a_file_changes_nothing(tmp_path):
    start = pl.lit(MONDAY).cast(pl.Datetime("us", "UTC"))
    moment = start + pl.duration(microseconds=pl.col("time_s") * 1e6)
    frame = pl.DataFrame(week_of(500)).select(moment.alias("timestamp"), pl.exclude("time_s"))
    found = []
    for seed in (None, 7):
        path = tmp_path / f"{seed}.parquet"
        (frame if seed is None else frame.sample(fraction=1.0, shuffle=True, seed=seed)).write_parquet(path)
        found.append(list(findings(join(open_logs([path])))))
    for before, after in zip(*found, strict=True):
        assert (before.key, before.title, before.rows) == (after.key, after.title, after.rows)
        assert before.values == after.values
        for name, values in before.series.items():
            assert values == pytest.approx(after.series[name], rel=1e-9, nan_ok=True), (before.key, name)


def test_small_batches_find_what_one_batch_finds(monkeypatch: pytest.MonkeyPatch):
    joined = joined_of(**week_of(600))
    whole = list(findings(joined))
    batches = Joined.batches
    monkeypatch.setattr(Joined, "batches", lambda self, *columns: batches(self, *columns, rows=97))
    for before, after in zip(whole, findings(joined), strict=True):
        assert before.title == after.title and before.values.keys() == after.values.keys()
        for name, value in before.values.items():
            exact = value is None or isinstance(value, str)
            assert after.values[name] == (value if exact else pytest.approx(value, rel=1e-9)), name


@pytest.mark.parametrize(
    "columns",
    [
        {"time_s": [3.0]},
        {"time_s": [3.0], "status": [503], "latency_s": [0.1], "session_id": ["x"], "user_id": ["u"]},
        {"time_s": [3.0, 3.0, 3.0]},
        {"time_s": [1.0, 2.0, 9.0], "session_id": ["x", "x", "x"]},
        {"time_s": [1.0, 2.0], "session_id": [None, None], "status": [None, None], "latency_s": [None, None]},
        {"time_s": [0.0, 40 * 86400.0], "prompt_tokens": [0, 0], "response_tokens": [0, 0]},
    ],
)
def test_a_tiny_log_is_described_or_says_what_it_lacks(columns: dict[str, list]):
    keys = []
    for finding in findings(joined_of(**columns)):
        keys.append(finding.key)
        assert finding.missing is None or len(finding.missing) > 10
        json.dumps(dict(finding.values), allow_nan=False)
        assert finding.title and all(len(series) for series in finding.series.values())
    assert len(keys) == len(set(keys)) == 17


def test_hours_of_a_log_without_dates_are_not_computed():
    assert "no dates" in str(arrivals.hours(joined_of(time_s=[0, 9000, 90000], dated=False)).missing)


def test_answers_are_those_of_requests_that_did_not_fail():
    joined = joined_of(status=[200, 503, 504, None], response_tokens=[100, 0, 7, 50], prompt_tokens=[1, 2, 3, 4])
    said = counting.numbers(joined).values["response_tokens"]
    assert isinstance(said, dict) and (said["count"], said["mean"], said["missing"]) == (2, 75.0, 2)
    answers = next(finding for finding in lengths.lengths(joined) if finding.key == "anatomy.lengths.response")
    assert (answers.rows, answers.values["mean_tokens"]) == (2, 75.0)
    pair = lengths.pair(joined)
    assert (pair.rows, pair.values["rank_correlation"]) == (2, pytest.approx(-1.0))


def test_a_log_in_which_everything_failed_has_no_answers():
    found = {finding.key: finding for finding in findings(joined_of(status=[503] * 5, response_tokens=[0] * 5))}
    assert found["anatomy.lengths.response"].missing and found["anatomy.lengths.prompt"].missing is None


def test_titles_are_sentences_that_fit_above_a_plot():
    for finding in findings(joined_of(**week_of(3000), user_id=[f"u{row % 90}" for row in range(3000)])):
        assert len(finding.title) <= 90, finding.title
        assert finding.title[0].isupper() or finding.title[0].isdigit()
