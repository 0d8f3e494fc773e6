"""Out-of-memory errors: the evidence line is read, and each kind of shortage is told from the others."""

import polars as pl
import pytest

from nanoserve.analysis.failures.oom import KINDS, evidence, out_of_memory, shortage_kinds
from nanoserve.analysis.service import Service
from tests.analysis.failures.factories import memory_error, requests_of
from tests.analysis.logs.factories import MONDAY


def service_of(*tracebacks, error_type="OutOfMemory") -> Service:
    errors = pl.DataFrame(
        {
            "time_s": [86400.0 * day for day in range(len(tracebacks))],
            "error_type": [error_type] * len(tracebacks),
            "traceback": list(tracebacks),
        }
    )
    requests = requests_of(time_s=[0.0], prompt_tokens=[1], response_tokens=[1]).requests
    return Service(start=MONDAY, requests=requests, errors=errors, block_tokens=16)


def test_the_line_is_read_to_the_last_number():
    text = memory_error(132, 310, 2048, 96, 1402, 336, sequences=14, sessions=22)
    row = evidence(service_of(text)).row(0, named=True)
    names = ("tried", "free", "total", "run", "sequences", "running", "sessions", "kept")
    assert [row[name] for name in names] == [132, 310, 2048, 96, 14, 1402, 22, 336]
    assert (row["holder"], row["holder_blocks"]) == ("session 1833", 160)


@pytest.mark.parametrize(
    ("kind", "line", "written"),
    [
        ("external", {"tried": 100, "free": 150, "total": 1000, "run": 60, "running": 850, "kept": 0}, 1.0),
        ("leaked", {"tried": 100, "free": 50, "total": 1000, "run": 50, "running": 850, "kept": 0}, 1.0),
        ("internal", {"tried": 100, "free": 50, "total": 1000, "run": 50, "running": 900, "kept": 50}, 0.5),
        ("kept", {"tried": 100, "free": 50, "total": 1000, "run": 50, "running": 650, "kept": 300}, 1.0),
        ("full", {"tried": 100, "free": 50, "total": 1000, "run": 50, "running": 930, "kept": 20}, 1.0),
    ],
)
def test_each_kind_is_told_from_the_others(kind, line, written):
    assert shortage_kinds(evidence(service_of(memory_error(**line))), written).to_list() == [kind]


def test_counts_add_up_to_the_errors_with_evidence():
    roomy = memory_error(100, 150, 1000, 60, 850, 0)
    full = memory_error(100, 50, 1000, 50, 930, 20)
    finding = out_of_memory(service_of(roomy, full, "OutOfMemoryError: no idea"), 1.0)
    assert finding.values["errors"] == 3
    assert sum(finding.values[kind] for kind in KINDS) == finding.rows == 2
    assert finding.series["external"].tolist() == [1, 0]
    assert finding.series["full"].tolist() == [0, 1]


def test_errors_without_evidence_are_counted_and_said_to_be_unknown():
    finding = out_of_memory(service_of("CUDA out of memory"), 1.0)
    assert finding.missing is not None
    assert finding.missing.startswith("1 errors")


def test_without_such_errors_nobody_ran_out():
    assert out_of_memory(service_of("older than 30 s", error_type="Timeout"), 1.0).values == {"errors": 0}
