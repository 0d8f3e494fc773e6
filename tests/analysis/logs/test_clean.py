"""Rows read are rows kept and rows set aside, whatever is wrong with them and whatever their order."""

import hypothesis.strategies as st
import polars as pl
import pytest
from hypothesis import given, settings

from nanoserve.analysis.logs.clean import Cleaned, clean
from nanoserve.analysis.logs.scratch import Scratch

ROWS = st.fixed_dictionaries(
    {
        "time_ns": st.one_of(st.none(), st.integers(0, 5)),
        "request_id": st.sampled_from([None, "a", "b", "c"]),
        "prompt_tokens": st.sampled_from([None, -1, 1, 2, 10**9]),
        "response_tokens": st.sampled_from([None, 0, 3]),
        "status": st.sampled_from([None, 200, 503]),
        "latency_s": st.sampled_from([None, -0.5, 0.5]),
    }
)
TYPES = {
    **dict.fromkeys(("time_ns", "prompt_tokens", "response_tokens"), pl.Int64),
    **{"request_id": pl.String, "status": pl.Int32, "latency_s": pl.Float64},
}


def cleaned(rows: list[dict], rows_in_memory: int = 1000) -> Cleaned:
    return clean("api", pl.DataFrame(rows, schema=TYPES).lazy(), Scratch(rows_in_memory=rows_in_memory))


def set_aside(result: Cleaned) -> dict[str, int]:
    return {name.removeprefix("set_aside_"): n for name, n in result.counts.items() if name.startswith("set_aside_")}


def row(**changes) -> dict:
    defaults = {"time_ns": 0, "request_id": "a", "prompt_tokens": 1, "response_tokens": 3, "status": 200}
    return defaults | {"latency_s": 0.5} | changes


@given(st.lists(ROWS, max_size=12))
def test_rows_read_are_rows_kept_and_rows_set_aside(rows):
    result = cleaned(rows)
    assert result.counts["read"] == len(rows)
    assert result.counts["kept"] == result.rows == len(result.table.collect())
    assert len(rows) == result.rows + sum(set_aside(result).values())


@given(st.lists(ROWS, max_size=12), st.randoms(use_true_random=False))
def test_the_order_of_rows_decides_nothing(rows, random):
    before = cleaned(rows)
    shuffled = list(rows)
    random.shuffle(shuffled)
    after = cleaned(shuffled)
    assert before.counts == after.counts
    assert before.table.collect().sort(pl.all()).equals(after.table.collect().sort(pl.all()))


@given(st.lists(ROWS, max_size=12))
def test_what_is_kept_is_in_order_with_one_row_an_id(rows):
    table = cleaned(rows).table.collect()
    assert table["time_ns"].is_sorted()
    ids = table["request_id"].drop_nulls()
    assert ids.n_unique() == len(ids)


@given(st.lists(ROWS, min_size=5, max_size=40))
@settings(max_examples=30)
def test_a_sort_in_parts_is_a_sort(rows):
    small, large = cleaned(rows), cleaned(rows, rows_in_memory=4)
    assert small.counts == large.counts
    assert small.table.select("time_ns").collect().equals(large.table.select("time_ns").collect())
    assert small.table.collect().sort(pl.all()).equals(large.table.collect().sort(pl.all()))


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        (row(request_id="b", prompt_tokens=None), "unreadable"),
        (row(request_id="b", response_tokens=None), "unreadable"),
        (row(request_id="b", latency_s=-1.0), "negative"),
        (row(request_id="b", time_ns=10**18), "far"),
        (row(), "identical"),
        (row(prompt_tokens=2), "conflicting"),
    ],
)
def test_a_row_is_set_aside_for_its_reason(second: dict, reason: str):
    result = cleaned([row(), second])
    assert set_aside(result) == {reason: 1}
    assert any("1 row set aside" in note for note in result.notes)


def test_of_rows_with_one_id_the_earliest_is_kept():
    table = cleaned([row(time_ns=9, prompt_tokens=9), row(time_ns=3, prompt_tokens=3)]).table.collect()
    assert table["prompt_tokens"].to_list() == [3]


def test_a_failed_request_without_an_answer_is_kept_with_0_tokens():
    result = cleaned([row(status=503, response_tokens=None)])
    assert result.table.collect()["response_tokens"].to_list() == [0]


def test_requests_without_ids_are_nobodys_doubles():
    table = pl.DataFrame([row(), row()]).drop("request_id").lazy()
    assert clean("api", table, Scratch()).rows == 2


def test_rows_out_of_order_are_counted():
    result = cleaned([row(time_ns=5), row(time_ns=1, request_id="b"), row(time_ns=3, request_id="c")])
    assert "not in order of time: 1 row earlier than the row above; sorted" in result.notes
