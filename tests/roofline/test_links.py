"""Axes on wires: against a simulation that moves every byte hop by hop, published slices, and datasheet limits."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.roofline.links import Axis, Ring, axis_links, ideal_bus_bytes_per_s, sent_bytes, slice_shape
from nanoserve.specs.chip_registry import chip, chip_names
from nanoserve.specs.chips import ClusterSpec

PATTERNS = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send")
GBPS = 1e9


def axis(name: str, axis: str = "tensor", **mesh: int) -> Axis:
    return axis_links(ClusterSpec(chip=chip(name), mesh=mesh), axis)


def busiest_link_bytes(ring: Ring) -> float:
    """What the busiest directed link carries if each chip sends each other a byte the shortest way, ties split."""
    n = ring.chips
    carried: dict[tuple[int, int], float] = {}
    for source, target in itertools.permutations(range(n), 2):
        ways = [range(source, target, 1 if target > source else -1)]
        if ring.wraps:
            forward = (target - source) % n
            ways = [range(source, source + forward)] if 2 * forward <= n else []
            ways += [range(source, source - (n - forward), -1)] if 2 * forward >= n else []
        for way in ways:
            for chip_index in way:
                link = (chip_index % n, (chip_index + way.step) % n)
                carried[link] = carried.get(link, 0) + 1 / len(ways)
    return max(carried.values())


@pytest.mark.parametrize("ring", [Ring(2, False), Ring(4, False), Ring(8, False), Ring(4, True), Ring(16, True)])
def test_an_all_to_all_takes_what_its_busiest_link_carries(ring):
    v5e = chip("tpu_v5e")
    link_bytes_per_s = v5e.link_bytes_per_s / v5e.link_count
    seconds = busiest_link_bytes(ring) / link_bytes_per_s
    message = ring.chips  # one byte for each, itself included
    sent = sent_bytes("all_to_all", message, ring.chips)
    assert sent / Axis(v5e, ring.chips, (ring,)).rate("all_to_all") == pytest.approx(seconds)


def test_a_gather_over_a_line_takes_what_its_last_chip_has_to_receive():
    """Over one link; in a ring over two."""
    line, ring = (Axis(chip("tpu_v5e"), 4, (Ring(4, wraps),)) for wraps in (False, True))
    sent = sent_bytes("all_gather", 4e9, 4)
    assert sent / line.rate("all_gather") == pytest.approx(3e9 / (50 * GBPS))
    assert sent / ring.rate("all_gather") == pytest.approx(1.5e9 / (50 * GBPS))


@pytest.mark.parametrize(
    ("chips", "two", "three"),
    [
        (4, (2, 2), (2, 2, 1)),
        (8, (4, 2), (2, 2, 2)),
        (16, (4, 4), (4, 2, 2)),
        (32, (8, 4), (4, 4, 2)),
        (64, (8, 8), (4, 4, 4)),
        (128, (16, 8), (8, 4, 4)),
        (256, (16, 16), (8, 8, 4)),
    ],
)
def test_slices_have_the_shapes_that_are_sold(chips, two, three):
    """cloud.google.com/tpu/docs v5e and v5p, tables of topologies (sides in any order)."""
    assert (slice_shape(chips, 2), slice_shape(chips, 3)) == (two, three)


def test_only_whole_sides_of_large_slices_wrap():
    """Scaling book, chapter on TPUs: v5e wraps at 16, v5p in multiples of 4x4x4."""
    assert [ring.wraps for ring in axis("tpu_v5e", tensor=8).rings] == [False, False]
    assert [ring.wraps for ring in axis("tpu_v5e", tensor=128).rings] == [True, False]
    assert [ring.wraps for ring in axis("tpu_v5p", tensor=16).rings] == [False, False, False]
    assert [ring.wraps for ring in axis("tpu_v5p", tensor=64).rings] == [True, True, True]
    assert [ring.wraps for ring in axis("tpu_v5p", tensor=2, pipeline=32).rings] == [False]


@given(
    name=st.sampled_from(["tpu_v5e", "tpu_v5p"]),
    sizes=st.tuples(*[st.sampled_from([1, 2, 4, 8])] * 3),
)
def test_axes_of_a_torus_have_all_its_chips_and_no_more_links_than_there_are(name, sizes):
    mesh = dict(zip(("tensor", "expert", "pipeline"), sizes, strict=True))
    axes = [axis(name, each, **mesh) for each in mesh]
    for placed, ways in zip(axes, sizes, strict=True):
        product = 1
        for ring in placed.rings:
            product *= ring.chips
        assert product == ways == placed.ways
    for placed in axes:
        if placed.ways > 1:
            assert placed.rate("all_gather") <= placed.chip.link_bytes_per_s


def test_a_switch_reduces_on_the_way_and_does_nothing_for_a_gather():
    h100 = axis("h100_sxm", tensor=8)
    seconds = sent_bytes("all_reduce", 450e9, 8) / h100.rate("all_reduce")
    assert seconds == pytest.approx(1)  # each chip sends its message once
    assert h100.rate("all_gather") == h100.rate("all_to_all") == h100.rate("send") == 450 * GBPS
    assert h100.share("all_reduce") == 1


def test_beyond_the_switch_the_network_decides():
    """Two boards of eight: each chip reduces an eighth of the message with its partner over 50 GB/s."""
    h100 = axis("h100_sxm", tensor=16)
    assert h100.inside == 8
    assert sent_bytes("all_reduce", 8 * 50e9, 16) / h100.rate("all_reduce") == pytest.approx(1)
    assert sent_bytes("all_to_all", 2 * 50e9, 16) / h100.rate("all_to_all") == pytest.approx(1)
    assert axis("h100_sxm", "pipeline", tensor=8, pipeline=2).rate("send") == 50 * GBPS
    assert axis("h100_sxm", "pipeline", tensor=4, pipeline=2).rate("send") == 450 * GBPS


@given(
    name=st.sampled_from(chip_names()), ways=st.sampled_from([2, 4, 8, 16, 32, 64]), pattern=st.sampled_from(PATTERNS)
)
def test_no_pattern_is_faster_than_the_best_all_reduce(name, ways, pattern):
    links = axis(name, tensor=ways)
    assert 0 < links.share(pattern) <= 1 + 1e-12
    assert links.rate(pattern) <= ideal_bus_bytes_per_s(chip(name), ways) * (1 + 1e-12)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_one_chip_waits_for_nobody(pattern):
    alone = axis("h100_sxm", tensor=1)
    assert alone.share(pattern) == 1
    assert 1 / alone.rate(pattern) == 0
