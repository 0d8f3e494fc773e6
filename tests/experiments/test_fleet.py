"""The page of replicas and pools: every way to use the chips serves the same requests, and the command writes it."""

import pytest

from experiments import fleet

TRACES = (fleet.TRACE, fleet.PREFIX_TRACE)
needs_traces = pytest.mark.skipif(
    not all(trace.exists() for trace in TRACES), reason="the published traces are not in ../shared/traces"
)


@needs_traces
def test_every_layout_has_sixteen_chips_and_serves_the_same_requests():
    served = set()
    for layout in fleet.LAYOUTS:
        outcome = fleet.outcome_of(fleet.experiment_of(layout, str(fleet.TRACE), 40, 0.5))
        assert sum(pool.cluster.count for pool in outcome.replay.pools) == 16
        served.add((outcome.summary.completed, outcome.summary.output_tokens))
    assert len(served) == 1


@needs_traces
def test_the_command_writes_every_part(tmp_path, monkeypatch):
    monkeypatch.setattr(fleet, "TIME_SCALES", (0.5,))
    monkeypatch.setattr(fleet, "LAYOUTS", fleet.LAYOUTS[:2])
    monkeypatch.setattr(fleet, "ROUTERS", ("prefix_affinity",))
    page = tmp_path / "page.md"
    assert fleet.main(["fleet.py", "--requests=30", f"--out={page}"]) == 0
    text = page.read_text()
    for row in ("| 2 x 8, together |", "| 1 x 8 prefill, 1 x 8 decode, layers |", "| `prefix_affinity`, cache lru |"):
        assert row in text


def test_a_trace_that_is_not_there_is_one_line(capsys):
    assert fleet.main(["fleet.py", "--trace=/no/such.csv"]) == 2
    assert capsys.readouterr().err.startswith("error: ")
