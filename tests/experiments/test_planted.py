"""Planted faults, kept sessions and failing memory through a whole replay: exact, said so, and refused where unreal."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from nanoserve.building import pools_of
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.snapshot import Outline, freeze, thaw
from nanoserve.experiment import Cluster, Disaggregation, Experiment, Faults, FleetConfig, resolve
from nanoserve.replay import Replay, prepare
from nanoserve.report.metrics import summarize
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.source import TraceSource
from nanoserve.trace.types import Trace

PAGES = 400
SESSIONS, TURNS = 12, 5


def conversation() -> Trace:
    """Sessions whose prompts contain what was said before; answers end sooner than the limit that clients state."""
    random = np.random.default_rng(0)
    rows = []
    for session in range(SESSIONS):
        prompt, now = 0, float(random.uniform(0, 20))
        for turn in range(TURNS):
            answer, new = (int(random.integers(*limits)) for limits in ((20, 120), (30, 200)))
            prompt += new
            rows.append((now, prompt, 256, answer, session, turn))
            prompt, now = prompt + answer, now + float(random.exponential(8))
    columns = [np.array(column) for column in zip(*sorted(rows), strict=True)]
    names = ("arrival_s", "prompt_tokens", "output_tokens", "answer_tokens", "session", "turn")
    return Trace(name="conversation", source="a test", **dict(zip(names, columns, strict=True))).validated()


def ready(faults: Faults | None = None, replicas: int = 1, **engine) -> Replay:
    settings = {"num_pages": PAGES, "max_seqs": 16, "max_step_tokens": 512, "max_horizon_steps": 8, **engine}
    experiment = Experiment(
        executor="roofline",
        cluster=Cluster(mesh={"data": replicas}),
        engine=EngineConfig(**settings),
        fleet=FleetConfig(router="session_affinity"),
        faults=faults or Faults(),
    )
    return prepare(experiment, conversation())


def replayed(faults: Faults | None = None, replicas: int = 1, **engine) -> Replay:
    replay = ready(faults, replicas, **engine)
    replay.run()
    return replay


def seconds_a_step(steps: pl.DataFrame) -> pl.DataFrame:
    """Decode steps of one row, which replicas have in common, by replica and KV positions."""
    alone = steps.filter((pl.col("kind") == "decode") & (pl.col("decode_seqs") == 1) & (pl.col("steps") == 1))
    return alone.group_by("replica", "decode_kv_tokens").agg(pl.col("duration_s").first())


def test_every_step_of_a_slow_replica_takes_so_many_times_as_long():
    replay = replayed(Faults(slow_replica=1, slow_factor=1.75), replicas=2, max_horizon_steps=1)
    times = seconds_a_step(replay.records().steps)
    both = times.filter(replica=0).join(times.filter(replica=1), on="decode_kv_tokens")
    assert len(both) > 20
    assert both["duration_s_right"].to_numpy() == pytest.approx(1.75 * both["duration_s"].to_numpy(), rel=1e-9)
    assert replay.choice.line.endswith("; planted: steps of replica 1 take 1.75 times as long")


def test_prices_of_a_slow_replica_stay_exact():
    """Steps priced together end when single ones do."""
    faults, trace = Faults(slow_replica=0, slow_factor=1.3), dataclasses.replace(conversation(), answer_tokens=None)
    tables = []
    for steps in (1, 64):
        engine = EngineConfig(num_pages=PAGES, keep_session_s=5.0, max_horizon_steps=steps)
        replay = prepare(Experiment(executor="roofline", engine=engine, faults=faults), trace)
        replay.run()
        tables.append(replay.records().requests)
    assert tables[0].equals(tables[1])


def test_a_leak_is_in_the_memory_of_the_run_and_in_what_it_says_of_itself():
    replay = replayed(Faults(leak_every=4, leak_pages=3))
    (member,) = replay.members
    assert member.engine.scheduler.pool.used_count == SESSIONS * TURNS // 4 * 3
    steps = replay.records().steps
    assert steps["pages_used"][-1] > steps["pages_used"][0] + 30
    assert "planted: one of every 4 requests that leave loses 3 of its pages" in replay.choice.line
    assert "planted" not in replayed().choice.line


@pytest.mark.parametrize("allocator", ["paged", "contiguous"])
def test_a_fleet_with_all_of_it_goes_on_from_a_snapshot(allocator: str):
    faults = Faults(leak_every=5, slow_replica=1, slow_factor=1.5)
    options = {"keep_session_s": 6.0, "when_full": "fail", "allocator": allocator, "num_pages": 120, "timeout_s": 20.0}
    whole, stopped, resumed = (ready(faults, replicas=2, **options) for _ in range(3))
    outline, kept = Outline(stopped.runner), []

    def observe(done: int, now: int) -> None:
        if done > SESSIONS * TURNS // 2 and not kept:
            assert any(member.engine.scheduler.memory.kept for member in stopped.members)
            kept.append(freeze(stopped.runner, outline))

    stopped.run(observe=observe)
    thaw(kept[0], Outline(resumed.runner))
    whole.run()
    resumed.run()
    ours, theirs = whole.records(), resumed.records()
    assert "out_of_memory" in ours.requests["finish_reason"]
    assert list(ours.event_lines()) == list(theirs.event_lines())
    assert ours.requests.equals(theirs.requests) and ours.steps.equals(theirs.steps)


@pytest.mark.parametrize("allocator", ["paged", "contiguous"])
def test_kept_sessions_save_the_history_and_show_in_the_memory(allocator: str):
    kept, forgotten = (replayed(allocator=allocator, keep_session_s=keep_s, num_pages=1600) for keep_s in (60.0, 0.0))
    summaries = []
    for replay in (kept, forgotten):
        records = replay.records()
        summaries.append(summarize(records.steps, records.requests, issued=replay.issued, page_tokens=16))
    assert summaries[0].prefix_hit_share > 0.6 and np.isnan(summaries[1].prefix_hit_share)
    assert summaries[0].useful_tokens < 0.6 * summaries[1].useful_tokens
    assert summaries[0].pages_used_mean > 2 * summaries[1].pages_used_mean
    assert 0 < summaries[0].kv_utilization <= 1


def test_what_a_request_held_and_wrote_is_in_its_record():
    paged, contiguous = (replayed(allocator=name).records().requests for name in ("paged", "contiguous"))
    for table in (paged, contiguous):
        assert (table["kv_tokens"] == table["prompt_tokens"] + table["output_tokens"] - 1).all()
    assert (paged["allocated_pages"] == (paged["kv_tokens"] + 15) // 16).all()
    worst = (contiguous["prompt_tokens"] + contiguous["max_output_tokens"] - 1 + 15) // 16
    assert (contiguous["allocated_pages"] == worst).all()


def test_requests_without_memory_are_counted_and_miss_the_objective():
    replay = replayed(when_full="fail", num_pages=80)
    records = replay.records()
    summary = summarize(records.steps, records.requests, issued=replay.issued, page_tokens=16)
    failed = records.requests.filter(finish_reason="out_of_memory")
    assert summary.finish_reasons["out_of_memory"] == len(failed) > 5
    assert summary.completed + len(failed) + summary.finish_reasons["refused"] == SESSIONS * TURNS
    assert failed["detail"].str.starts_with("tried to allocate ").all()


@pytest.mark.parametrize(
    ("faults", "message"),
    [
        ({"slow_replica": 1}, "slow_factor = 1.0 with Faults.slow_replica = 1"),
        ({"slow_factor": 2.0}, "slow_factor = 2.0 with Faults.slow_replica = None"),
        ({"slow_replica": 0, "slow_factor": 0.5}, "must be finite, more than 1"),
        ({"leak_every": 0}, "Faults.leak_every = 0: must be at least 1"),
        ({"leak_every": 2, "leak_pages": 0}, "Faults.leak_pages = 0"),
    ],
)
def test_faults_that_cannot_be_are_named(faults: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        Faults(**faults)


def test_what_does_not_go_together_is_named():
    with pytest.raises(ConfigError, match=r"slow_replica = 2: Cluster\.mesh has 2 replicas"):
        resolve(Experiment(cluster=Cluster(mesh={"data": 2}), faults=Faults(slow_replica=2, slow_factor=2.0)))
    apart = Disaggregation(decode_mesh={"data": 1})
    with pytest.raises(ConfigError, match="leave Disaggregation off"):
        resolve(Experiment(disaggregation=apart, faults=Faults(leak_every=5)))
    with pytest.raises(ConfigError, match="keep_session_s does not go with Disaggregation"):
        resolve(Experiment(disaggregation=apart, engine=EngineConfig(keep_session_s=1.0)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": EngineConfig(keep_session_s=1.0, num_pages=64)}, r"keep_session_s = 1\.0: .* Engine\.prefix_cache"),
        ({"faults": Faults(leak_every=3)}, "planted in simulated runs only"),
    ],
)
def test_an_executed_run_keeps_no_sessions_and_has_no_faults(options: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        prepare(
            Experiment(
                model="tiny-llama",
                executor="jax",
                cluster=Cluster(chip="cpu_2core"),
                trace=TraceSource(requests=2),
                **options,
            )
        )


def test_pools_carry_what_is_planted_in_them():
    faults = Faults(leak_every=3)
    (pool,) = pools_of(experiment := Experiment(faults=faults), resolve(experiment))
    assert pool.faults is faults
