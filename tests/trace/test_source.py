"""Traces and loads from scalar fields."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from nanoserve.specs.errors import ConfigError
from nanoserve.trace.load import ClosedLoop, OpenLoop
from nanoserve.trace.source import ARRIVALS, TraceSource, open_load, open_trace
from nanoserve.trace.synth import synthesize
from tests.trace.factories import AGENT, AZURE, same
from tests.trace.test_servegen import LENGTHS, RATES, write


def test_defaults_are_a_preset_twin():
    trace = open_trace(TraceSource(requests=50, seed=3))
    assert len(trace) == 50
    assert same(trace, open_trace(TraceSource(requests=50, seed=3)))


def test_every_field_is_a_scalar():
    for field in dataclasses.fields(TraceSource):
        assert isinstance(field.default, int | float | str | None)


@pytest.mark.parametrize("arrivals", ARRIVALS)
def test_every_process_has_the_rate_asked_for(arrivals):
    trace = open_trace(TraceSource(requests=20_000, arrivals=arrivals, rate_rps=8.0, period_s=100.0, burst_s=0.1))
    assert len(trace) / trace.arrival_s[-1] == pytest.approx(8.0, rel=0.06)


def test_sessions_share_the_request_rate():
    trace = open_trace(
        TraceSource(requests=20_000, arrivals="poisson", rate_rps=8.0, mean_turns=5.0, session_think_s=1.0)
    )
    assert trace.session is not None and trace.session.max() > 3000
    assert len(trace) / trace.arrival_s[-1] == pytest.approx(8.0, rel=0.06)


def test_lengths_of_the_preset_are_cut_and_replaced():
    trace = open_trace(TraceSource(requests=2000, max_prompt_tokens=900, output_median_tokens=50.0, output_sigma=0.0))
    assert trace.prompt_tokens.max() == 900
    assert set(trace.output_tokens.tolist()) == {50}


def test_a_path_wins_over_the_generator(tmp_path):
    (tmp_path / "t.csv").write_text(AZURE)
    assert open_trace(TraceSource(path=str(tmp_path / "t.csv"), requests=50)).prompt_tokens.tolist() == [374, 396, 879]


def test_window_then_limit_then_scale(tmp_path):
    (tmp_path / "t.jsonl").write_text(AGENT)
    source = TraceSource(path=str(tmp_path / "t.jsonl"), start_s=1.0, end_s=3.0, limit=1, time_scale=2.0)
    assert open_trace(source).arrival_s.tolist() == [0.5]


def test_time_unit_reaches_the_reader(tmp_path):
    (tmp_path / "t.jsonl").write_text(AGENT)
    assert open_trace(TraceSource(path=str(tmp_path / "t.jsonl"), time_unit="ms")).arrival_s[-1] == 0.002


def test_two_paths_are_servegen(tmp_path):
    rates, lengths = write(tmp_path, RATES, LENGTHS)
    trace = open_trace(TraceSource(path=rates, lengths_path=lengths, start_s=600.0, end_s=1200.0, rate_rps=2.0))
    assert len(trace) == 1200 and trace.client is not None


def test_the_loop_chooses_the_load():
    trace = open_trace(TraceSource(requests=5))
    ticks = lambda seconds: int(seconds * 1000)  # noqa: E731
    opened = open_load(TraceSource(), trace, ticks)
    assert isinstance(opened, OpenLoop) and opened.next_ticks() == ticks(trace.arrival_s[0])
    closed = open_load(TraceSource(loop="closed", clients=2), trace, ticks)
    assert isinstance(closed, ClosedLoop) and len(closed.take(0)) == 2


def test_time_scale_is_applied_once():
    source = TraceSource(requests=5, time_scale=0.5)
    trace = open_trace(source)
    load = open_load(source, trace, lambda seconds: round(seconds * 10**9))
    sent = [ticks for _, ticks in load.take(10**18)]
    np.testing.assert_allclose(sent, open_trace(TraceSource(requests=5)).arrival_s * 0.5e9, atol=1)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"arrivals": "posson"}, "TraceSource.arrivals = 'posson': must be one of poisson, gamma, onoff, diurnal. Did"),
        ({"loop": "close", "clients": 1}, "TraceSource.loop = 'close': must be one of open, closed"),
        ({"preset": "azure_conversations"}, "Did you mean 'azure_conversation'?"),
        ({"loop": "closed"}, "TraceSource.clients = None: must be set when loop = 'closed'"),
        ({"time_scale": 0.0}, "TraceSource.time_scale = 0.0"),
        ({"limit": 0}, "TraceSource.limit = 0"),
        ({"end_s": 0.0}, "TraceSource.end_s = 0.0: must be above start_s = 0.0"),
        ({"rate_rps": -1.0}, "TraceSource.rate_rps = -1.0"),
        ({"cv": 0.0}, "TraceSource.cv = 0.0"),
        ({"burst_factor": 9.0}, "TraceSource.burst_factor = 9.0: must be from 1 to 1 / burst_share = 5"),
        ({"burst_share": 1.0}, "TraceSource.burst_share = 1.0"),
        ({"amplitude": -0.1}, "TraceSource.amplitude = -0.1: must be from 0 to 1"),
        ({"correlation": 1.5}, "TraceSource.correlation = 1.5: must be from -1 to 1"),
        ({"mean_turns": 0.5}, "TraceSource.mean_turns = 0.5"),
        ({"max_output_tokens": 10**8}, "TraceSource.max_output_tokens = 100000000"),
        ({"prompt_sigma": float("nan")}, "TraceSource.prompt_sigma = nan"),
        ({"seed": -1}, "TraceSource.seed = -1"),
        ({"lengths_path": "x.tar"}, "TraceSource.lengths_path = 'x.tar'"),
        ({"time_unit": "hours"}, "TraceSource.time_unit = 'hours': must be one of s, ms, us, ns"),
    ],
)  # fmt: skip
def test_a_field_that_cannot_be_is_named(fields, says):
    with pytest.raises(ConfigError) as caught:
        TraceSource(**fields)
    assert says in str(caught.value)


def test_importing_the_room_loads_nothing_heavy():
    heavy = "{'jax', 'polars', 'scipy', 'matplotlib'}"
    code = f"import sys, nanoserve.trace.source; print(sorted({heavy} & set(sys.modules)))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "[]"


def test_the_generator_is_reachable_without_a_source():
    from nanoserve.trace.presets import twin

    assert len(synthesize(twin("azure_conversation", requests=3), 0)) == 3
