"""How fast the chips of one mesh axis can exchange bytes: an NVLink switch, an ICI torus, PCIe, and networks beyond.

`axis_links` places an axis of the mesh on the wires; `Axis.rate` is then the most bytes per second that a chip sends
while a collective runs over it, counted as a ring counts them (`sent_bytes`), whatever algorithm moves them. A
calibration knows what share of the best all-reduce is reached; `Axis.share` is what the pattern and the topology leave
of that, so that seconds = sent bytes / (calibrated rate x share).

- **NVLink**: a switch that can add and copy, so an all-reduce sends a message once and shows 2 (n-1)/n times the link.
  Beyond `ChipSpec.switch_chips` a collective runs inside each switch first and then, with each chip its part, over the
  network.
- **ICI**: a box of chips, two links a dimension, one ring for each dimension that the axis has; all of them work at
  once. A dimension that does not wrap is a line: it carries half as much. They wrap at 16 chips (2-D: v5e, v6e) or at
  multiples of 4 in slices of whole cubes (3-D: v4, v5p).
- **PCIe**: one link a chip, no reduction on the way.

Pure numbers. Next: `ops`, which sends bytes; `timing`.

Source: Austin et al., "How to Scale Your Model", chapters on TPUs and on sharding (collectives on tori); Klenk et al.,
"An In-Network Architecture for Accelerating Shared-Memory Multiprocessor Collectives", 2020 (reduction in the switch).
"""

import dataclasses
import functools
import math
from typing import Literal

from nanoserve.roofline.numeric import Number
from nanoserve.roofline.split import Split, split_of
from nanoserve.specs.chips import ChipSpec, ClusterSpec

Pattern = Literal["all_reduce", "all_gather", "reduce_scatter", "all_to_all", "send"]

_AXES = ("tensor", "expert", "pipeline")  # from neighbours outwards
_WRAP_2D, _WRAP_3D = 16, 4


@dataclasses.dataclass(frozen=True, slots=True)
class Ring:
    """One torus dimension as far as an axis has it."""

    chips: int
    wraps: bool


@dataclasses.dataclass(frozen=True, slots=True)
class Axis:
    """One mesh axis on its wires.

    Attributes:
      chip: what is connected. ways: chips along the axis.
      rings: of a torus, the dimensions that the axis has. inside: of the ways, those behind one switch.
    """

    chip: ChipSpec
    ways: int
    rings: tuple[Ring, ...] = ()
    inside: int = 1

    def rate(self, pattern: Pattern) -> float:
        """Returns the most bytes that one chip sends a second, as `sent_bytes` counts them; infinite for one chip."""
        if self.ways == 1:
            return math.inf
        if self.rings:
            return _torus_rate(self.chip, self.rings, pattern, self.ways)
        return _two_level_rate(self, pattern)

    def share(self, pattern: Pattern) -> float:
        """Returns `rate` as a share of `ideal_bus_bytes_per_s`, which calibrated bus bandwidths are shares of too."""
        return 1.0 if self.ways == 1 else self.rate(pattern) / ideal_bus_bytes_per_s(self.chip, self.ways)


def sent_bytes(pattern: Pattern, message_bytes: Number, ways: int) -> Number:
    """Returns the bytes that each chip of a ring sends.

    Args:
      pattern: the collective.
      message_bytes: of an all-reduce, what each chip has; of an all-gather or reduce-scatter, the whole; of an
        all-to-all, what each chip has for all; of a send, what goes to the next chip. A number or an array.
      ways: chips.

    Source: Thakur et al., "Optimization of Collective Communication Operations in MPICH", 2005, sections 4.1 to 4.5.
    """
    if pattern == "send":
        return message_bytes
    return (2 if pattern == "all_reduce" else 1) * (ways - 1) * message_bytes / ways


def ideal_bus_bytes_per_s(chip: ChipSpec, ways: int) -> float:
    """Returns the largest bus bandwidth an all-reduce can show over `ways` chips: all links of a chip busy.

    A ring keeps every link busy: the link bandwidth itself. An NVLink switch can add up in the network, so that each
    chip sends a message once instead of 2 (n-1)/n times, and the ring's formula then shows more than the links carry.
    """
    return chip.link_bytes_per_s * (2 * (ways - 1) / ways if chip.link_kind == "nvlink" else 1)


def axis_links(cluster: ClusterSpec, axis: str) -> Axis:
    """Returns where an axis of a cluster's mesh lies.

    Args:
      cluster: chips and mesh. axis: `tensor`, `expert` or `pipeline`; replicas exchange nothing in a step.

    Raises:
      ConfigError: the mesh has an axis that does not exist.
    """
    return _placed(cluster.chip, split_of(cluster), axis)


@functools.cache
def _places(dims: int, sizes: tuple[int, ...]) -> tuple[tuple[Ring, ...], ...]:
    """The rings of each axis, from neighbours outwards."""
    box = slice_shape(math.prod(sizes), dims)
    left, placed = list(box), []
    for ways in sizes:
        rings = []
        for index in sorted(range(dims), key=lambda i: -left[i]):
            part = math.gcd(ways, left[index])
            if part > 1:
                rings.append(Ring(part, wraps=part == box[index] and _wraps(part, box)))
                ways, left[index] = ways // part, left[index] // part
        placed.append((*rings, *([Ring(ways, wraps=False)] if ways > 1 else [])))
    return tuple(placed)


def slice_shape(chips: int, dims: int) -> tuple[int, ...]:
    """Returns the box of a slice, as near to a cube as its number of chips allows, longest dimension first.

    8 chips are 4x2 in two dimensions and 2x2x2 in three, 32 are 8x4 and 4x4x2: the shapes that are sold.
    """
    box = [1] * dims
    for factor in _prime_factors(chips):
        box[box.index(min(box))] *= factor
    return tuple(sorted(box, reverse=True))


def _placed(chip: ChipSpec, split: Split, axis: str) -> Axis:
    sizes = tuple(getattr(split, name) for name in _AXES)
    index = _AXES.index(axis)
    ways = sizes[index]
    if chip.link_kind == "ici":
        return Axis(chip, ways, rings=_places(chip.torus_dims, sizes)[index])
    room = ways if chip.switch_chips is None else max(1, chip.switch_chips // math.prod(sizes[:index]))
    return Axis(chip, ways, inside=math.gcd(ways, room))


def _wraps(chips: int, box: tuple[int, ...]) -> bool:
    if len(box) == 2:
        return chips % _WRAP_2D == 0
    return chips % _WRAP_3D == 0 and all(side % _WRAP_3D == 0 for side in box)


def _torus_rate(chip: ChipSpec, rings: tuple[Ring, ...], pattern: Pattern, ways: int) -> float:
    link = chip.link_bytes_per_s / chip.link_count
    if pattern == "send":
        return link
    if pattern == "all_to_all":
        # half of all bytes cross the middle of the longest dimension: over two links each way in a ring, one in a line
        seconds_per_byte = max(ring.chips / ((8 if ring.wraps else 4) * link) for ring in rings)
        return (ways - 1) / ways / seconds_per_byte
    return sum((2 if ring.wraps else 1) * link for ring in rings)


def _two_level_rate(axis: Axis, pattern: Pattern) -> float:
    """Inside the switch at the links' rate, beyond it each chip its part over the network; both at once."""
    chip, ways, inside = axis.chip, axis.ways, axis.inside
    outside = ways // inside
    if pattern == "send":
        return chip.link_bytes_per_s if inside > 1 else _network(chip)
    if pattern == "all_to_all" and outside > 1:  # nobody else can send what is for another switch
        return _network(chip) * sent_bytes(pattern, 1, ways) / sent_bytes(pattern, 1, outside)
    bus = ideal_bus_bytes_per_s(chip, inside) if pattern == "all_reduce" else chip.link_bytes_per_s
    seconds_per_byte = sent_bytes(pattern, 1, inside) / bus if inside > 1 else 0.0
    if outside > 1:
        seconds_per_byte = max(seconds_per_byte, sent_bytes(pattern, 1 / inside, outside) / _network(chip))
    return sent_bytes(pattern, 1, ways) / seconds_per_byte


def _network(chip: ChipSpec) -> float:
    """Beyond the switch; a chip without a network of its own uses its links, as over PCIe."""
    return chip.network_bytes_per_s or chip.link_bytes_per_s


def _prime_factors(number: int) -> list[int]:
    """Largest first."""
    factors, divisor = [], 2
    while number > 1:
        while number % divisor == 0:
            factors.append(divisor)
            number //= divisor
        divisor += 1
    return factors[::-1]
