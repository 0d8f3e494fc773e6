"""Tables: measured points are exact, the rest lies between or goes on as the datasheet says, and steps add up."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.roofline import constants_files
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.measured import select
from nanoserve.roofline.measured_tables import read
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.pricing import Pricer
from nanoserve.roofline.table import Grid, Table
from nanoserve.roofline.table_pricing import TablePricer, pricer_for
from nanoserve.roofline.timing import bound_times, op_times, step_time
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.errors import ConfigError
from tests.roofline import factories as make
from tests.roofline import tables

pytest.importorskip("polars")
EXACT = 1e-12
MODEL, CLUSTER = make.model("llama-3.1-70b"), make.cluster(ways=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    names = ("gemm", "generation_attention", "context_attention", "nccl", "custom_allreduce")
    return tables.write(tmp_path_factory.mktemp("tables"), *names)


@pytest.fixture(scope="module")
def calibration(folder):
    return constants_for(tables.H100, make.BF16, "table", table=str(folder))


def as_ops(group, **fields):
    """The rows of a group, as `seconds` takes them: launches one a row."""
    return dataclasses.replace(group.op, launches=np.ones(len(group)), **fields)


# ---- looking up ----


def test_measured_products_are_exact(folder, calibration):
    for variant in ("bf16", "fp8"):
        group = tables.group(folder, "matmul", variant)
        assert calibration.table.seconds(as_ops(group)) == pytest.approx(group.seconds, rel=EXACT)


@pytest.mark.parametrize("kind", ["attention_decode", "attention_prefill"])
def test_measured_attention_is_exact(folder, calibration, kind):
    group = tables.group(folder, kind, "bf16")
    heads = (32, 4, 128)
    rows = select(group, (group.keys["num_heads"] == heads[0]) & (group.keys["num_key_value_heads"] == heads[1]))
    assert len(rows) > 5
    assert calibration.table.seconds(as_ops(rows, heads=heads)) == pytest.approx(rows.seconds, rel=EXACT)


def test_all_reduces_are_the_stacks_own_up_to_its_limit_and_nccls_beyond(folder, calibration):
    own, nccl = (tables.group(folder, kind, "8") for kind in ("all_reduce", "all_reduce_nccl"))
    limit = constants_files.load("h100_sxm", "vllm").entry("all_reduce", "8")["longest_message_bytes"]
    short, long = select(own, own.size <= limit), select(nccl, nccl.size > limit)
    for rows in (short, long):
        assert len(rows) and calibration.table.seconds(as_ops(rows)) == pytest.approx(rows.seconds, rel=EXACT)


def test_between_two_points_a_utilisation_is_between_theirs():
    grid = Grid([np.array([1.0, 4.0, 1.0, 4.0]), np.array([1.0, 1.0, 16.0, 16.0])], np.array([0.1, 0.4, 0.2, 0.8]))
    assert grid(2, 1) == pytest.approx(0.2)
    assert grid(2, 4) == pytest.approx((0.2 * 0.4) ** 0.5)


def test_beyond_the_points_the_nearest_ones_utilisation_stays():
    grid = Grid([np.array([1.0, 4.0])], np.array([0.1, 0.4]))
    assert grid(0.5) == pytest.approx(0.1) and grid(1 << 30) == pytest.approx(0.4)


def test_a_combination_that_was_not_measured_has_its_nearest_neighbours_utilisation():
    sizes = [np.array([1.0, 1.0, 64.0]), np.array([1.0, 2.0, 1.0])]  # (64, 2) is missing; (64, 1) is nearest
    assert Grid(sizes, np.array([0.1, 0.2, 0.7]))(64, 2) == pytest.approx(0.7)


def test_what_no_table_has_is_priced_by_constants(calibration):
    """Windows, latent attention, element-wise kernels and the host; a model's other heads take the nearest ones."""
    constants = constants_for(tables.H100, make.BF16, "calibrated")
    counts = make.joined(make.decode_counts(8, 500), make.prefill_counts([(0, 700)]))
    asked = {}
    for name in ("mistral-7b-v0.1", "llama-3.1-70b"):
        ops = step_ops(make.model(name), make.cluster(), make.BF16, counts)
        asked[name] = {op.name for op in ops if calibration.table.seconds(op) is not None}
        for op in ops:
            same = op_times(op, make.cluster(), calibration) == op_times(op, make.cluster(), constants)
            assert same == (op.name not in asked[name]), op.name
    assert {"attention_decode", "attention_prefill", "qkv", "head"} <= asked["llama-3.1-70b"]
    assert "attention_decode" not in asked["mistral-7b-v0.1"] and "qkv" in asked["mistral-7b-v0.1"]
    assert not {"elementwise", "host", "embed"} & asked["llama-3.1-70b"]


def test_bounds_add_up_to_what_the_table_says(calibration):
    ops = step_ops(MODEL, CLUSTER, make.BF16, make.decode_counts(16, 1000))
    (qkv,) = (op for op in ops if op.name == "qkv")
    assert op_times(qkv, CLUSTER, calibration).total == pytest.approx(calibration.table.seconds(qkv), rel=EXACT)


def test_many_plans_at_once_are_priced_as_one_by_one(calibration):
    plans = [
        make.decode_counts(rows, context) for rows, context in ((1, 10), (3, 129), (16, 128), (64, 9000), (200, 99))
    ]
    plans += [make.prefill_counts([(0, 128), (500, 77)], sampled=1)]
    stacked = StepCounts(
        **{
            field.name: np.array([getattr(plan, field.name) for plan in plans])
            for field in dataclasses.fields(StepCounts)
        }
    )
    many = bound_times(step_ops(MODEL, CLUSTER, make.BF16, stacked), CLUSTER, calibration).total
    for plan, seconds in zip(plans, many, strict=True):
        assert step_time(step_ops(MODEL, CLUSTER, make.BF16, plan), CLUSTER, calibration) == pytest.approx(seconds)


# ---- ticks ----


@pytest.fixture(scope="module")
def pricer(calibration):
    found = pricer_for(MODEL, CLUSTER, make.BF16, calibration)
    assert isinstance(found, TablePricer)
    return found


@given(rows=st.integers(1, 200), context=st.integers(1, 20_000), steps=st.integers(2, 400), cut=st.integers(1, 399))
def test_a_plan_costs_exactly_what_any_cut_of_it_costs(pricer, rows, context, steps, cut):
    cut = min(cut, steps - 1)
    parts = make.decode_counts(rows, context, cut), make.decode_counts(rows, context + cut, steps - cut)
    assert pricer.plan_ticks(make.decode_counts(rows, context, steps)) == sum(map(pricer.plan_ticks, parts))


@given(rows=st.integers(1, 200), context=st.integers(1, 20_000), steps=st.integers(1, 300))
def test_the_first_step_costs_what_it_costs_alone(pricer, rows, context, steps):
    counts = make.decode_counts(rows, context, steps)
    assert pricer.first_step_ticks(counts, rows) == pricer.plan_ticks(make.decode_counts(rows, context))


@given(rows=st.integers(1, 200), context=st.integers(1, 20_000), steps=st.integers(1, 300))
def test_ticks_are_the_seconds_of_timing(pricer, calibration, rows, context, steps):
    counts = make.decode_counts(rows, context, 1)
    seconds = step_time(step_ops(MODEL, CLUSTER, make.BF16, counts), CLUSTER, calibration)
    assert abs(pricer.plan_ticks(counts) - seconds * (1 << 60)) <= 1e-9 * seconds * (1 << 60)
    mixed = make.joined(counts, make.prefill_counts([(context, steps)], sampled=1))
    seconds = step_time(step_ops(MODEL, CLUSTER, make.BF16, mixed), CLUSTER, calibration)
    assert pricer.plan_ticks(mixed) == pytest.approx(seconds * (1 << 60), rel=1e-9)


@given(rows=st.integers(1, 200), context=st.integers(1, 20_000), steps=st.integers(1, 300), early=st.booleans())
def test_steps_before_is_the_number_of_steps_that_start_within_the_span(pricer, rows, context, steps, early):
    lasting = pricer.plan_ticks(make.decode_counts(rows, context, steps))
    found = pricer.steps_before(make.decode_counts(rows, context), lasting if early else lasting + 1, rows)
    assert found == (steps if early else steps + 1)


def test_a_model_whose_attention_is_in_no_table_is_priced_in_closed_form(calibration):
    assert isinstance(pricer_for(make.model("mistral-7b-v0.1"), CLUSTER, make.BF16, calibration), Pricer)
    constants = constants_for(tables.H100, make.BF16, "calibrated")
    assert isinstance(pricer_for(MODEL, CLUSTER, make.BF16, constants), Pricer)


# ---- what a user can get wrong ----


def test_the_mode_without_its_folder_says_what_to_do(folder):
    with pytest.raises(ConfigError, match=r"needs Pricing\.table.*or choose Pricing\.mode = 'calibrated'"):
        constants_for(tables.H100, make.BF16, "table")
    with pytest.raises(ConfigError, match="no such folder"):
        constants_for(tables.H100, make.BF16, "table", table=str(folder / "nowhere"))
    with pytest.raises(ConfigError, match="no table of h200_sxm"):
        constants_for(chip("h200_sxm"), make.BF16, "table", table=str(folder))


def test_the_published_tables_are_reproduced_where_they_were_measured():
    if not tables.SHARED.is_dir():
        pytest.skip(f"no measured profile at {tables.SHARED}")
    groups = [g for g in read(tables.SHARED, tables.H100, "vllm") if g.kind == "matmul"]
    table = Table(tables.H100, groups, "bf16", {})
    for group in groups:
        assert table.seconds(as_ops(group)) == pytest.approx(group.seconds, rel=1e-9)
