"""Names that services use are found, with the unit that they carry, and ambiguity is never settled in silence."""

import pytest

from nanoserve.analysis.logs import names, schema
from nanoserve.analysis.logs.match import match
from nanoserve.specs.errors import ConfigError, TraceError


@pytest.mark.parametrize(
    ("name", "log", "column", "unit"),
    [
        ("ContextTokens", "api", "prompt_tokens", None),
        ("Request tokens", "api", "prompt_tokens", None),
        ("usage.completion_tokens", "api", "response_tokens", None),
        ("E2E Latency (ms)", "api", "latency_s", "ms"),
        ("latencyMs", "api", "latency_s", "ms"),
        ("latency_s", "api", "latency_s", "s"),
        ("latency", "api", "latency_s", None),
        ("memory.used [MiB]", "telemetry", "memory_bytes", "mib"),
        ("GPU Util %", "telemetry", "compute", "percent"),
        ("utilization.gpu [%]", "telemetry", "compute", "percent"),
        ("exceptionType", "errors", "error_type", None),
        ("conversation_id", "app", "session_id", None),
    ],
)
def test_a_name_is_its_column_with_its_unit(name: str, log: str, column: str, unit: str | None):
    assert (column, unit) in [(meaning.column, meaning.unit) for meaning in names.meanings(name, log)]


@pytest.mark.parametrize("log", list(schema.COLUMNS))
def test_canonical_names_are_their_own_columns(log: str):
    matched = match("file", list(schema.COLUMNS[log]))
    assert matched.log == log
    assert all(source == column for column, (source, _) in matched.columns.items())
    assert not matched.unused


def test_every_synonym_means_one_column_of_its_log():
    for log, synonyms in names.SYNONYMS.items():
        words = [word for text in synonyms.values() for word in text.split()]
        assert len(words) == len(set(words)), log
        assert synonyms.keys() == schema.COLUMNS[log].keys()


def test_of_two_names_for_a_column_the_better_is_taken_and_the_other_reported():
    matched = match("file", ["created_at", "timestamp", "prompt_tokens", "output_tokens"])
    assert matched.columns["time_s"] == ("timestamp", None)
    assert matched.unused == ("created_at",) and "not used: created_at" in matched.sentence()


def test_what_the_caller_says_a_column_is_comes_first():
    matched = match("file", ["timestamp", "sent", "prompt_tokens", "output_tokens"], {"time_s": "sent"})
    assert matched.columns["time_s"] == ("sent", None)


def test_a_joined_table_keeps_the_columns_of_the_application():
    matched = match("file", list(schema.SAMPLE_COLUMNS))
    assert matched.log == "api" and {"user_id", "session_id", "turn", "region"} <= matched.columns.keys()


def test_a_column_that_no_log_has_cannot_be_named():
    with pytest.raises(ConfigError, match="Did you mean 'latency_s'"):
        match("file", ["timestamp"], {"latncy_s": "x"})


def test_a_column_that_has_its_meaning_is_not_suggested_for_another():
    with pytest.raises(TraceError, match="For prompt_tokens: Did you mean 'promt'"):
        match("file", ["timestamp", "promt", "response_tokens"])


def test_a_file_of_nothing_known_lists_what_it_has():
    with pytest.raises(TraceError, match=r"Columns in the file: 'a', 'b'\. Matched: nothing"):
        match("file", ["a", "b"])
