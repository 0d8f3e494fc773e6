"""The part `replay`: what is replayed, what it runs without, and that a device like the bench is predicted."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.bench.parts import replay, replay_cases
from experiments.bench.parts.replay_figures import BENCH, GOALS, PROGRAMS, Run, compared, described, figures_of
from experiments.bench.parts.replay_run import by_bench, left_behind
from nanoserve.executors.arrays import Ladders
from nanoserve.executors.roofline_executor import RooflineExecutor, in_buckets
from nanoserve.experiment import CONFIG_CLASSES
from nanoserve.replay import prepare, simulated_twin
from nanoserve.roofline.own_stack import calibrate
from nanoserve.specs.config import load
from tests.roofline import benchmark

REPOSITORY = Path(__file__).parents[2]
WHOLE = (replay_cases.LLAMA_8B, replay_cases.LLAMA_70B_INT4, replay_cases.TINY)
ABSENT = ("polars", "gin", "beartype", "gguf")  # on a machine that lends a chip
NOISE = 0.02
LADDERS = Ladders(
    decode_rows=(1, 4, 16, 32), prefill_tokens=(256, 768, 1400, 2048), prefill_rows=32, table_pages=1, loop_steps=1
)
TOY = "toy_llama70b_int4_h100x1"
SCRIPT = f"""
import json, sys, tempfile, time
from pathlib import Path
for name in {ABSENT!r}:
    sys.modules[name] = None
from experiments.bench.attention_timing import CPU
from experiments.bench.parts import Context, Shared, replay
assert "jax" not in sys.modules
import jax
given = dict(effort=CPU, clock=time.perf_counter, found={{}}, toy=True, scratch=Path(), shared=Shared())
context = Context(device=jax.devices()[0], **given)
record = replay.measure({{case.name: case for case in replay.cases(toy=True)}}[{TOY!r}], context)
print(json.dumps([record, replay.columns(record)]))
"""


@pytest.mark.parametrize("whole", WHOLE, ids=lambda whole: whole.name)
def test_an_experiment_is_what_its_config_loads_to(whole):
    pytest.importorskip("gin")
    path = REPOSITORY / "configs" / f"{whole.name}.gin"
    assert load(path, CONFIG_CLASSES, "Experiment").value == whole


def test_a_slice_changes_what_it_says_and_nothing_else():
    for case in (*replay.cases(toy=False), *replay.cases(toy=True)):
        sliced, whole = case.experiment("h200_sxm"), case.whole
        changed = case.sizes()["changed"]
        back = {"trace": {}, "engine": {}, "fields": {}}
        for name, value in changed.items():
            of, field = name.split(".")
            part = {"TraceSource": "trace", "Engine": "engine", "Experiment": "fields"}[of]
            there, before = (e if part == "fields" else getattr(e, part) for e in (sliced, whole))
            assert getattr(there, field) == value
            back[part][field] = getattr(before, field)
        restored = {part: dataclasses.replace(getattr(sliced, part), **back[part]) for part in ("trace", "engine")}
        restored |= back["fields"]
        cluster = dataclasses.replace(sliced.cluster, chip=whole.cluster.chip)
        assert dataclasses.replace(sliced, **restored, cluster=cluster, executor=whole.executor) == whole
        assert sliced.cluster.chip == "h200_sxm" and json.dumps(case.sizes())


def test_slots_and_pages_of_a_slice_are_never_short():
    """Else the slice would measure a queue that the whole experiment has not."""
    for case in replay.cases(toy=False):
        experiment = dataclasses.replace(case.experiment("h100_sxm"), executor="roofline")
        run = prepare(experiment)
        run.run()
        steps = left_behind(run).steps
        assert steps["running"].max() < experiment.engine.max_seqs and not steps["preemptions"].any()
        assert steps["pages_used"].max() < 0.8 * run.engine.scheduler.pool.num_pages


def test_int4_weights_and_fp8_kv_are_executed_and_simulated_at_toy_size_without_the_libraries_that_are_absent():
    quick = {"JAX_PLATFORMS": "cpu", "JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    environment = os.environ | quick | {"PYTHONPATH": str(REPOSITORY)}
    ran = subprocess.run(
        [sys.executable, "-c", SCRIPT], env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert not ran.returncode, ran.stderr[-2000:]
    record, cells = json.loads(ran.stdout.splitlines()[-1])
    assert cells["finished"] == "8 of 8" and record["finished"] == record["requests"] == 8
    assert sum(kind["plans"] for kind in record["steps_by_kind"].values()) > 8
    for simulated in (record["simulated"][BENCH], record["simulated"][PROGRAMS]):
        assert set(simulated["errors"]) == set(simulated["goals_met"]) == set(GOALS)
        for figure, error in simulated["errors"].items():
            assert simulated[figure] / record["real"][figure] - 1 == pytest.approx(error)
    assert "for the rest, cpu.generic" in record["simulated"][BENCH]["calibrated_by"]
    assert len(record["simulated"][PROGRAMS]["timed"]) == record["programs"] > 4


@pytest.fixture(scope="module")
def like_the_bench():
    """A slice on a device that takes what `benchmark.KNOWN` says; its bench was noisy."""
    case = replay.cases(toy=False)[0]
    prepared = prepare(dataclasses.replace(case.experiment("h100_sxm"), executor="roofline"))
    padded, pool = in_buckets(LADDERS.shape, LADDERS.prefill_rows), prepared.members[0].pool
    device = RooflineExecutor(pool.model, pool.cluster, pool.precision, benchmark.KNOWN, padded=padded)
    twin = simulated_twin(prepared, device)
    twin.run()
    own = calibrate(benchmark.results(NOISE)["parts"], benchmark.H100, source="this file")
    real = left_behind(twin)
    return real, by_bench(prepared, real, own, padded)


def test_a_device_like_the_bench_is_predicted_within_the_goals(like_the_bench):
    real, found = like_the_bench
    assert all(found["goals_met"].values()), found["errors"]
    assert len(real.requests["request"]) == 150 and real.requests["completed"].all()
    whole = found["plans"][-1]
    assert whole["kind"] == "all" and whole["mean_abs_error"] < 2 * NOISE


def test_the_record_says_what_constants_were_used_and_what_stands_for_the_rest(like_the_bench):
    _, found = like_the_bench
    assert found["calibrated_by"].endswith(" whole steps of this file; for the rest, h100_sxm.vllm")
    assert set(found["operations"]) >= {
        *("attention_decode bf16", "attention_prefill bf16"),
        *("matmul bf16", "matmul bf16_int4"),
    }
    assert found["host"]["call_s"] == pytest.approx(benchmark.KNOWN.host_call_s, rel=0.2)
    assert found["held_out_steps"]["rows"] >= 6
    assert all("KV: 1 rows" in why for why in found["left_out"])


def slowed(run: Run, factor: float) -> Run:
    times = {name: factor * run.requests[name] for name in run.requests if name.endswith("_s")}
    return run._replace(requests={**run.requests, **times})


def test_a_slower_simulation_is_off_by_as_much_in_everything_and_misses_the_goals(like_the_bench):
    real, _ = like_the_bench
    for factor, met in ((1.04, True), (1.2, False)):
        found = compared(real, slowed(real, factor), factor * real.steps["duration_s"])
        assert found["errors"] == pytest.approx(dict.fromkeys(GOALS, factor - 1))
        assert set(found["goals_met"].values()) == {met}
        assert found["plans"][-1]["error"] == pytest.approx(factor - 1)


def test_a_runs_own_figures_add_up(like_the_bench):
    real, _ = like_the_bench
    found = described(real)
    assert found["real"] == figures_of(real.requests)
    assert sum(kind["seconds"] for kind in found["steps_by_kind"].values()) == pytest.approx(found["busy_s"])
    assert sum(kind["plans"] for kind in found["steps_by_kind"].values()) == len(real.steps["kind"])
    assert 0 < found["host_gap_share"] < 0.1 and 0 < found["padding_share"] < 1
    assert found["between_plans_s"] == pytest.approx(0, abs=1e-9)  # no scheduler takes time on a virtual clock
    late = {**real.steps, "start_s": real.steps["start_s"] + 1e-3 * np.arange(len(real.steps["start_s"]))}
    waiting = (real.steps["decode_seqs"][1:] > 0).sum()
    assert described(real._replace(steps=late))["between_plans_s"] == pytest.approx(1e-3 * waiting, rel=0.01)
