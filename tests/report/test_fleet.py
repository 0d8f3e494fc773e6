"""Records of several engines: each is told apart, and what is said of all together is the sum."""

import functools

import polars as pl
import pytest

from nanoserve.engine.records import FLEET_COLUMNS, FLEET_REQUEST_COLUMNS
from nanoserve.experiment import Cluster, Disaggregation, Experiment
from nanoserve.replay import Replay, prepare
from nanoserve.report.content import ReportData, Roof
from nanoserve.report.fleet import EngineLoad, PoolShare, engine_loads, engine_table, pool_table
from nanoserve.report.html import render_html
from nanoserve.report.markdown import render_markdown
from nanoserve.report.metrics import Summary, engine_rows, plan_columns, pooled_gaps, request_columns, summarize
from nanoserve.trace.source import TraceSource

TOLERANCE = 1e-6  # relative; times are differences of doubles near the run's end
TRACE = TraceSource(requests=200, rate_rps=60.0)


@functools.cache
def _run(*, apart: bool) -> tuple[Replay, pl.DataFrame, pl.DataFrame, Summary]:
    """Three replicas of one chip: alike, or one that prefills and two that decode."""
    experiment = Experiment(
        executor="roofline",
        cluster=Cluster(mesh={"data": 1 if apart else 3}),
        disaggregation=Disaggregation(decode_mesh={"data": 2} if apart else None),
        trace=TRACE,
    )
    replay = prepare(experiment)
    replay.run()
    records = replay.records()
    summary = summarize(records.steps, records.requests, issued=replay.issued, page_tokens=16, engines=3)
    return replay, records.steps, records.requests, summary


def _loads(*, apart: bool) -> tuple[list[PoolShare], list[EngineLoad]]:
    replay, steps, _, summary = _run(apart=apart)
    pools = [PoolShare(name=pool.name, cluster=pool.cluster) for pool in replay.pools]
    return pools, engine_loads(steps, pools, summary.duration_s)


@pytest.mark.parametrize("apart", [False, True])
def test_tables_say_which_engine_did_what(apart):
    _, steps, requests, _ = _run(apart=apart)
    assert set(FLEET_COLUMNS) <= set(steps.columns)
    assert set(FLEET_REQUEST_COLUMNS) & set(requests.columns) == (set(FLEET_REQUEST_COLUMNS) if apart else {"replica"})
    for replica in range(3):
        step = steps.filter(steps["replica"] == replica).sort("start_s")
        assert (step["step"].diff().drop_nulls() == step["steps"][:-1]).all()


def test_a_single_engine_has_the_columns_it_always_had():
    replay = prepare(Experiment(executor="roofline", trace=TraceSource(requests=5)))
    replay.run()
    records = replay.records()
    assert not set(FLEET_COLUMNS) & set(records.steps.columns)
    assert not set(FLEET_REQUEST_COLUMNS) & set(records.requests.columns)


@pytest.mark.parametrize("apart", [False, True])
def test_what_engines_did_adds_up(apart):
    _, steps, requests, summary = _run(apart=apart)
    _, loads = _loads(apart=apart)
    assert sum(load.prefill_tokens for load in loads) == requests["prompt_tokens"].sum()
    assert sum(load.decode_tokens for load in loads) == (requests["output_tokens"] - 1).sum()
    assert sum(load.busy_fraction for load in loads) * summary.duration_s == pytest.approx(summary.busy_s)
    assert summary.busy_s + summary.idle_s == pytest.approx(3 * summary.duration_s)
    assert summary.mfu == pytest.approx((steps["mfu"] * steps["duration_s"]).sum() / steps["duration_s"].sum())


def test_gaps_of_replicas_are_those_that_their_requests_saw():
    _, steps, requests, _ = _run(apart=False)
    plans, done = plan_columns(steps), request_columns(requests)
    assert [len(set(plans["replica"][rows])) for rows in engine_rows(plans)] == [1, 1, 1]
    gaps_s, seqs = pooled_gaps(plans)
    assert seqs.sum() == (done["output_tokens"] - 1).sum()
    between_s = (done["finish_s"] - done["first_token_s"]).sum()
    assert (gaps_s * seqs).sum() == pytest.approx(between_s, rel=TOLERANCE)


def test_pools_cost_what_their_chips_cost():
    pools, loads = _loads(apart=True)
    _, _, _, summary = _run(apart=True)
    table = pool_table(pools, loads, summary)
    usd = {row[0]: float(row[3].replace(",", "")) for row in table.rows}
    per_chip = pools[0].cluster.chip.usd_per_hour / 3600 / summary.output_tokens_per_s * 1e6
    assert usd["prefill"] == pytest.approx(per_chip, rel=0.01)  # three digits are printed
    assert usd["decode"] == pytest.approx(2 * per_chip, rel=0.01)
    assert usd["both"] == pytest.approx(3 * per_chip, rel=0.01)


def test_reports_have_a_row_for_every_replica():
    replay, steps, requests, summary = _run(apart=True)
    pools, loads = _loads(apart=True)
    chip = replay.facts.cluster.chip
    data = ReportData(
        title="fleet",
        how="simulated",
        summary=summary,
        steps=steps,
        requests=requests,
        roof=Roof(
            chip=chip.name,
            chips=3,
            dtype="bf16",
            peak_flops_per_s=chip.peak("bf16"),
            hbm_bytes_per_s=chip.hbm_bytes_per_s,
        ),
        constants=[],
        operative="",
        environment={},
        fleet=[engine_table(loads), pool_table(pools, loads, summary)],
    )
    html, markdown = render_html(data), render_markdown(data)
    for name in ("prefill 0", "decode 1", "decode 2"):
        assert f"| {name} |" in markdown and f">{name}<" in html
