"""Fits: known constants are found again, unseen shapes stay unseen, shipped constants are what the data gives."""

import dataclasses

import numpy as np
import pytest

from nanoserve.roofline import constants_files
from nanoserve.roofline.efficiency import Kernel
from nanoserve.roofline.fit import HELD_OUT_SHARE, ROBUST_SCALE, fit, held_out_rows, minimise, rule_for, select
from nanoserve.roofline.measured_tables import read
from nanoserve.roofline.timing import kernel_times
from tests.roofline import tables

pytest.importorskip("polars")
FOUND = 0.01  # relative; constants are written with three digits
KNOWN = {
    "matmul": ("gemm", tables.PRODUCT),
    "attention_decode": ("generation_attention", tables.DECODE),
    "attention_prefill": ("context_attention", tables.PREFILL),
    "grouped_matmul": ("moe", Kernel(20e-6, 0.9, 0.5, overlap=0.0)),
}


@pytest.mark.parametrize("kind", KNOWN)
def test_constants_that_made_the_times_are_found_again(kind, tmp_path):
    table, kernel = KNOWN[kind]
    found = fit(tables.timed(tmp_path, table, kind, kernel), tables.H100)
    for name, value in found.constants.items():
        assert value == pytest.approx(getattr(kernel, name), rel=FOUND), name
    assert found.test.p90 < FOUND


def test_a_few_wild_rows_do_not_move_the_constants(tmp_path):
    group = tables.timed(tmp_path, "gemm", "matmul", tables.PRODUCT, noise=0.05)
    wild = group.seconds.copy()
    wild[::40] *= 10
    clean, dirty = (fit(g, tables.H100).constants for g in (group, dataclasses.replace(group, seconds=wild)))
    for name in clean:
        assert dirty[name] == pytest.approx(clean[name], rel=0.03), name


def test_a_share_above_the_datasheets_is_never_the_answer(tmp_path):
    """Rows that were faster than the chip can be: a clock that ran high, or matrices that lay in a cache."""
    group = tables.timed(tmp_path, "gemm", "matmul", tables.PRODUCT)
    found = fit(dataclasses.replace(group, seconds=0.5 * group.seconds), tables.H100).constants
    assert found["memory_share"] <= 1 and found["compute_share"] <= 1


def test_the_search_ends_where_an_independent_one_does(tmp_path):
    """SciPy's trust-region least squares with the same robust loss."""
    optimize = pytest.importorskip("scipy.optimize")
    group = tables.timed(tmp_path, "generation_attention", "attention_decode", tables.DECODE, noise=0.3)
    start = dict(rule_for(group).start)

    def ratio(constants):
        return kernel_times(group.op, tables.H100, Kernel(**constants)).total / group.seconds

    def residuals(logs):
        return np.log(ratio(dict(zip(start, np.exp(logs), strict=True))))

    other = optimize.least_squares(residuals, np.log(list(start.values())), loss="soft_l1", f_scale=ROBUST_SCALE)
    ours = minimise(ratio, start)
    for name, log in zip(start, other.x, strict=True):
        assert ours[name] == pytest.approx(np.exp(log), rel=1e-3), name


def test_held_out_rows_are_whole_shapes_about_a_third_of_them_and_always_the_same(tmp_path):
    group = tables.group(tables.write(tmp_path, "gemm"), "matmul", "bf16")
    held_out = held_out_rows(group)
    sides = {}
    for n, k, side in zip(group.shape["n"], group.shape["k"], held_out, strict=True):
        sides.setdefault((n, k), set()).add(bool(side))
    assert all(len(side) == 1 for side in sides.values())
    assert abs(held_out.mean() - HELD_OUT_SHARE) < 0.15
    shuffled = select(group, np.random.default_rng(1).permutation(len(group)))
    assert np.array_equal(
        held_out_rows(shuffled),
        np.array([next(iter(sides[n, k])) for n, k in zip(shuffled.shape["n"], shuffled.shape["k"], strict=True)]),
    )


def test_held_out_rows_do_not_touch_the_constants(tmp_path):
    group = tables.timed(tmp_path, "gemm", "matmul", tables.PRODUCT, noise=0.1)
    changed = np.where(held_out_rows(group), 7 * group.seconds, group.seconds)
    assert fit(dataclasses.replace(group, seconds=changed), tables.H100).constants == fit(group, tables.H100).constants


def test_errors_are_of_the_held_out_rows_of_the_domain(tmp_path):
    group = tables.timed(tmp_path, "gemm", "matmul", tables.PRODUCT, noise=0.1)
    found = fit(group, tables.H100)
    off = np.abs(found.ratio[found.used & found.held_out] - 1)
    assert found.test.p50 == pytest.approx(np.median(off)) and found.test.p90 == pytest.approx(np.quantile(off, 0.9))
    assert sum(bucket.rows for bucket in found.buckets) == len(off)


# ---- the shipped constants, on the tables that they were fitted to ----


def test_the_shipped_constants_are_what_the_tables_give():
    """One kind of each sort; the command that is written in the file makes them all."""
    if not tables.SHARED.is_dir():
        pytest.skip(f"no measured profile at {tables.SHARED}")
    file = constants_files.read("h100_sxm", "vllm")
    wanted = {("attention_decode", "bf16"), ("all_reduce", "8")}
    groups = [g for g in read(tables.SHARED, tables.H100, "vllm") if (g.kind, g.variant) in wanted]
    assert len(groups) == len(wanted)
    for group in groups:
        found, entry = fit(group, tables.H100), file.entry(group.kind, group.variant)
        for name, value in found.constants.items():
            assert entry[name] == pytest.approx(value, rel=FOUND), (group.kind, name)
        assert entry["fit"]["held_out"]["p50"] == pytest.approx(found.test.p50, abs=FOUND)
