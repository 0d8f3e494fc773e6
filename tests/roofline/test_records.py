"""Cost columns of a run: every column, sums that hold row by row, and the same numbers as one plan at a time."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nanoserve.engine.records import COST_COLUMNS
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.matrices import attention_flops, matmul_flops
from nanoserve.roofline.op import totals
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.records import cost_columns
from nanoserve.roofline.timing import step_time
from nanoserve.specs.model_registry import model
from tests.roofline import factories as make


def steps_of(plans: list[StepCounts], duration_s, host_gap_s: float = 0.0) -> dict[str, np.ndarray]:
    columns = {f.name: np.array([getattr(p, f.name) for p in plans]) for f in dataclasses.fields(StepCounts)}
    return columns | {"duration_s": np.array(duration_s, float), "host_gap_s": np.full(len(plans), host_gap_s)}


@settings(max_examples=25)
@given(spec=make.models, cluster=make.clusters, precision=make.precisions, data=st.data())
def test_a_priced_run_is_explained_completely(spec, cluster, precision, data):
    plans = [data.draw(make.plans(spec)) for _ in range(3)]
    own = constants_for(cluster.chip, precision, "calibrated")
    durations = [step_time(step_ops(spec, cluster, precision, p), cluster, own) for p in plans]
    columns = cost_columns(steps_of(plans, durations), spec, cluster, precision, own)
    assert list(columns) == list(COST_COLUMNS)
    parts = sum(columns[f"{name}_s"] for name in ("compute", "weights", "kv", "activations", "link", "overhead"))
    np.testing.assert_allclose(parts, durations, rtol=1e-12)
    assert (columns["overhead_s"] >= own.host_gap_s * (1 - 1e-9)).all()
    assert (columns["roofline_fraction"] <= 1).all() and (columns["sol_s"] > 0).all()
    assert (columns["mfu"] <= 1).all() and (columns["mbu"] <= 1).all()


def test_columns_are_totals_of_all_chips_and_flops_of_useful_tokens():
    spec, cluster = model("llama-3.1-70b"), make.cluster(ways=8)
    plan = make.joined(make.decode_counts(12, 900), make.prefill_counts([(0, 500)], sampled=1))
    columns = cost_columns(
        steps_of([plan], [0.02]), spec, cluster, make.BF16, constants_for(cluster.chip, make.BF16, "sol")
    )
    one_chip = totals(step_ops(spec, cluster, make.BF16, plan))
    assert columns["matmul_flops"][0] == matmul_flops(spec, 512, 13)
    assert columns["attention_flops"][0] == attention_flops(spec, 12 * 900 + 500 * 501 // 2)
    assert columns["weight_bytes"][0] == 8 * one_chip.weight_bytes
    assert columns["link_bytes"][0] == 8 * one_chip.link_bytes > 0
    flops = columns["matmul_flops"][0] + columns["attention_flops"][0]
    assert columns["mfu"][0] == pytest.approx(flops / (8 * 989.4e12 * 0.02))
    moved = columns["weight_bytes"][0] + columns["kv_read_bytes"][0] + columns["kv_write_bytes"][0]
    assert columns["mbu"][0] == pytest.approx(moved / (8 * 3350e9 * 0.02))


def test_flops_of_a_sliding_window_are_of_the_positions_it_shows():
    spec, cluster = model("mistral-7b-v0.1"), make.cluster()
    plan = make.joined(make.decode_counts(3, 9000, window=4096), make.prefill_counts([(6000, 100)], window=4096))
    sol = constants_for(cluster.chip, make.BF16, "sol")
    columns = cost_columns(steps_of([plan], [0.1]), spec, cluster, make.BF16, sol)
    assert columns["attention_flops"][0] == attention_flops(spec, 3 * 4096 + 100 * 4096)


def test_the_bound_is_what_was_waited_for_longest():
    spec, cluster = model("llama-3.1-8b"), make.cluster()
    sol = constants_for(cluster.chip, make.BF16, "sol")
    plans = [make.decode_counts(1, 100), make.decode_counts(64, 8000), make.prefill_counts([(0, 4096)])]
    steps = steps_of(plans, [0.1] * 3)
    assert cost_columns(steps, spec, cluster, make.BF16, sol)["bound"].tolist() == ["weights", "kv", "compute"]
    waiting = steps_of(plans, [1.0] * 3, host_gap_s=0.9)
    assert cost_columns(waiting, spec, cluster, make.BF16, sol)["bound"].tolist() == ["host"] * 3


def test_what_a_measured_step_took_beyond_the_model_is_overhead():
    spec, cluster = model("llama-3.1-8b"), make.cluster()
    sol = constants_for(cluster.chip, make.BF16, "sol")
    columns = cost_columns(steps_of([make.decode_counts(4, 1000)], [0.02]), spec, cluster, make.BF16, sol)
    assert columns["overhead_s"][0] == pytest.approx(0.02 - columns["sol_s"][0])
    assert columns["link_s"].tolist() == [0.0]


def test_a_step_of_no_duration_has_no_utilisation():
    spec, cluster = model("llama-3.1-8b"), make.cluster()
    sol = constants_for(cluster.chip, make.BF16, "sol")
    columns = cost_columns(steps_of([make.decode_counts(4, 1000)], [0.0]), spec, cluster, make.BF16, sol)
    assert np.isnan([columns[name][0] for name in ("mfu", "mbu", "roofline_fraction")]).all()
