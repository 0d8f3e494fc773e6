"""The device's time, divided: nothing counted twice, nothing lost, each plan its own."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.profiled import Event, Profile, Ran, Window, busy, by_kind
from nanoserve.roofline.timing import BoundTimes

US = 1000.0  # ns
ONE_STEP = StepCounts(decode_seqs=1, sampled=1)


def event(op: str, start_us: float, end_us: float) -> Event:
    return Event(name=f"{op}_kernel", op=op, start_ns=start_us * US, end_ns=end_us * US)


def its_op(event: Event) -> str:
    return event.op


def seconds(found, *operations: str) -> dict[str, float]:
    """Microseconds of a window by operation."""
    total = dict.fromkeys(operations, 0.0)
    for (operation, _), time_s in found.kernels.items():
        total[operation] = total.get(operation, 0.0) + time_s * 1e6
    return {name: round(value, 6) for name, value in total.items()}


def test_kernels_one_after_the_other_have_their_own_time_and_gaps_none():
    (found,) = busy([Window(3, 0, 100 * US)], [event("qkv", 10, 20), event("out", 25, 40)], its_op)
    assert found.plan == 3
    assert seconds(found) == {"qkv": 10, "out": 15}
    assert found.span_s == pytest.approx(30e-6) and found.busy_s == pytest.approx(25e-6)


def test_streams_that_run_at_once_share_the_time_in_which_they_do():
    (found,) = busy([Window(0, 0, 100 * US)], [event("qkv", 0, 30), event("copies", 20, 40)], its_op)
    assert seconds(found) == {"qkv": 25, "copies": 15}
    assert found.busy_s == pytest.approx(found.span_s) == pytest.approx(40e-6)


def test_a_loop_has_only_the_time_in_which_nothing_inside_it_runs():
    events = [event("loops", 0, 50), event("loops", 10, 40), event("down", 12, 20), event("down", 30, 38)]
    (found,) = busy([Window(0, 0, 100 * US)], events, its_op)
    assert seconds(found) == {"loops": 34, "down": 16}


def test_an_event_is_of_the_plan_it_starts_in_and_ends_with_it_at_the_latest():
    windows = [Window(7, 0, 50 * US), Window(8, 60 * US, 100 * US)]
    late = [event("loops", 10, 90), event("head", 70, 80), event("sample", 55, 58)]
    first, second = busy(windows, late, its_op)
    assert seconds(first) == {"loops": 40}
    assert seconds(second) == {"head": 10}


@given(
    st.lists(
        st.tuples(st.sampled_from(["qkv", "out", "loops"]), st.integers(0, 99), st.integers(0, 60)),
        min_size=1,
        max_size=12,
    )
)
def test_the_parts_add_up_to_the_time_in_which_something_ran(drawn):
    events = [event(op, start, min(start + length, 120)) for op, start, length in drawn]
    (found,) = busy([Window(0, 0, 120 * US)], events, its_op)
    covered = sum(any(e.start_ns <= t * US < e.end_ns for e in events) for t in range(120))
    assert found.busy_s == pytest.approx(covered * 1e-6)
    assert found.busy_s <= found.span_s + 1e-12


# ---- laid beside prices ----


def priced(counts: StepCounts) -> dict[str, BoundTimes]:
    return {
        "qkv": BoundTimes(weights=8e-6 * counts.steps, overhead=1e-6 * counts.steps),
        "host": BoundTimes(overhead=2e-6 * counts.steps),
    }


def two_plans():
    windows = [Window(20, 0, 40 * US), Window(21, 50 * US, 100 * US)]
    events = [event("qkv", 5, 15), event("other", 20, 24), event("qkv", 60, 72)]
    ran = {20: Ran("decode", ONE_STEP, 45e-6), 21: Ran("decode", StepCounts(steps=3, decode_seqs=1), 55e-6)}
    return by_kind(busy(windows, events, its_op), ran, priced, priced)


def test_lines_add_up_to_the_duration_by_the_log_host_and_gaps_included():
    (kind,) = two_plans()
    assert (kind.kind, kind.plans, kind.steps) == ("decode", 2, 4)
    assert kind.duration_s == pytest.approx((45e-6 + 55e-6) / 4)
    measured = {line.operation: line.measured_s * 4e6 for line in kind.lines}
    assert measured == pytest.approx({"qkv": 22, "other": 4, "gap": 5, "host": (45 - 19) + (55 - 12)})
    assert kind.attributed == pytest.approx(22 / 26)
    measured_s = [line.measured_s for line in kind.lines]
    assert measured_s == sorted(measured_s, reverse=True)


def test_prices_stand_beside_their_operations_and_nowhere_else():
    (kind,) = two_plans()
    lines = {line.operation: line for line in kind.lines}
    assert lines["qkv"].calibrated_s == pytest.approx(9e-6) and lines["qkv"].bound == "weights"
    assert lines["qkv"].ratio == pytest.approx(22 / 36)
    assert lines["host"].calibrated_s == pytest.approx(2e-6) and lines["host"].bound == ""
    assert lines["other"].calibrated_s is None and math.isnan(lines["other"].ratio)
    assert kind.calibrated_s == pytest.approx(11e-6)
    assert lines["qkv"].kernels == (("qkv_kernel", pytest.approx(22e-6 / 4)),)


def test_kinds_are_kept_apart():
    windows = [Window(0, 0, 10 * US), Window(1, 10 * US, 20 * US)]
    ran = {0: Ran("prefill", ONE_STEP, 10e-6), 1: Ran("decode", ONE_STEP, 10e-6)}
    kinds = by_kind(busy(windows, [event("qkv", 1, 4)], its_op), ran, priced, priced)
    assert [kind.kind for kind in kinds] == ["prefill", "decode"]
    assert math.isnan(kinds[1].attributed)  # the device did nothing that was recorded


def test_a_profile_is_json_without_numbers_that_are_none():
    windows = [Window(0, 0, 10 * US)]
    kinds = by_kind(busy(windows, [], its_op), {0: Ran("decode", ONE_STEP, 10e-6)}, priced, priced)
    profile = Profile(first=0, end=1, device="a chip", calibrated_by="nobody", kinds=kinds, remarks=("one",))
    plain = profile.as_dict()
    assert plain["kinds"][0]["attributed"] is None
    assert plain["kinds"][0]["duration_s"] == pytest.approx(10e-6)
    assert plain["remarks"] == ("one",) and plain["end"] == 1
