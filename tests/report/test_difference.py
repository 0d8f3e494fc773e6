"""Two records of one run part nowhere, or at the first place that is named."""

import math

import polars as pl

from nanoserve.report.difference import lines_difference, table_difference, tokens_difference

STEPS = pl.DataFrame(
    {"step": [0, 1, 4, 5], "kind": ["prefill", "decode", "mixed", "decode"], "start_s": [0.0, 0.1, None, math.nan]}
)


def test_equal_tables_have_no_difference():
    assert table_difference("plans", "step", STEPS, STEPS.clone()) is None


def test_the_first_row_that_differs_is_named_with_both_values():
    other = STEPS.with_columns(
        kind=pl.Series(["prefill", "decode", "decode", "mixed"]), start_s=pl.Series([0.0, 0.1, None, 0.3])
    )
    found = table_difference("plans", "step", STEPS, other)
    assert str(found) == "step 4, kind: recorded 'mixed', repeated 'decode' (2 of the plans differ)"


def test_a_bit_is_a_difference_and_a_missing_time_is_not_a_zero():
    later = STEPS.with_columns(start_s=pl.Series([0.0, math.nextafter(0.1, 1), None, math.nan]))
    found = table_difference("plans", "step", STEPS, later)
    assert found and (found.row, found.field, found.repeated) == ("step 1", "start_s", math.nextafter(0.1, 1))
    filled = STEPS.with_columns(start_s=pl.Series([0.0, 0.1, 0.0, math.nan]))
    found = table_difference("plans", "step", STEPS, filled)
    assert found and (found.row, found.recorded, found.repeated) == ("step 4", None, 0.0)


def test_a_table_that_is_shorter_differs_where_it_ends():
    found = table_difference("plans", "step", STEPS, STEPS.head(2))
    assert str(found) == "step 4: recorded '4 rows', repeated '2 rows' (2 of the plans differ)"


def test_a_column_that_only_one_has_is_a_difference():
    found = table_difference("plans", "step", STEPS, STEPS.with_columns(replica=pl.lit(0)))
    assert found and (found.row, found.field, found.recorded, found.repeated) == ("columns", "replica", "nothing", "it")


def test_lines_differ_at_the_first_that_is_another():
    assert lines_difference("events", ["a\n", "b\n"], iter(["a\n", "b\n"])) is None
    found = lines_difference("events", ["a\n", "b\n", "c\n"], ["a\n", "x\n"])
    assert str(found) == "line 2: recorded 'b', repeated 'x' (2 of the events differ)"


def test_tokens_differ_at_the_first_request_and_its_first_other_token():
    assert tokens_difference({0: [1, 2], 3: []}, {0: [1, 2], 3: []}) is None
    found = tokens_difference({0: [1, 2], 3: [5, 6, 7]}, {0: [1, 2], 3: [5, 9, 7], 4: [1]})
    assert str(found) == "request 3, token 1: recorded 6, repeated 9 (2 of the tokens differ)"
    shorter = tokens_difference({3: [5, 6]}, {3: [5]})
    assert shorter and (shorter.field, shorter.recorded, shorter.repeated) == ("token 1", 6, "nothing")
