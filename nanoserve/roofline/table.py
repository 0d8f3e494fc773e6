"""Measured operations, looked up: the mode `table`.

A table holds utilisations: what the datasheet's limit would take, over what was measured. Between measured points the
logarithm of the utilisation is interpolated over the logarithms of the sizes; outside them it is that of the nearest
point. So measured points are exact, and far away the limit takes over with the utilisation of the edge. Over the KV
positions of a decode batch the *time* is interpolated instead, in straight lines from one measured context to the
next: that is how reading grows, and `table_pricing` can then sum steps exactly.

What is not in the tables is not answered (`seconds` returns None) and is priced by constants: other dtypes, windows,
latent attention, routed experts (their tables are by model), element-wise kernels, the host. Writing KV is no part of a
measured attention kernel: it is added at full bandwidth. NumPy and SciPy only: a table cannot be traced by JAX.

Next: `table_pricing`; `measured`, which reads the rows.
"""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from nanoserve.roofline.efficiency import Kernel
from nanoserve.roofline.links import ideal_bus_bytes_per_s
from nanoserve.roofline.measured import Measured, select
from nanoserve.roofline.numeric import Number
from nanoserve.roofline.op import Op
from nanoserve.roofline.timing import kernel_times
from nanoserve.specs.chips import BYTES_PER_ELEMENT, ChipSpec

_LIMIT = Kernel(0.0, 1.0)
_HEADS = ("num_heads", "num_key_value_heads", "head_dim")
Heads = tuple[int, int, int]


class Grid:
    """Utilisations over a grid of sizes; combinations that were not measured have their nearest neighbour's."""

    def __init__(self, sizes: Sequence[np.ndarray], utilisation: np.ndarray):
        """Takes one array a size and the utilisation of each row."""
        from scipy.interpolate import RegularGridInterpolator

        logs = np.stack([np.log2(size) for size in sizes], axis=1)
        self.axes = [np.unique(column) for column in logs.T]
        values = np.full([len(axis) for axis in self.axes], np.nan)
        values[tuple(np.searchsorted(axis, column) for axis, column in zip(self.axes, logs.T, strict=True))] = np.log(
            utilisation
        )
        self._find = RegularGridInterpolator(self.axes, _filled(self.axes, values, logs, np.log(utilisation)))

    def __call__(self, *sizes: Number) -> np.ndarray:
        """Returns the utilisation at sizes, which are broadcast; beyond the grid, that of its edge."""
        logs = (np.log2(np.maximum(size, 1)) for size in sizes)
        inside = (np.clip(log, axis[0], axis[-1]) for log, axis in zip(logs, self.axes, strict=True))
        points = np.stack(np.broadcast_arrays(*inside), axis=-1)
        return np.exp(self._find(points)).reshape(points.shape[:-1])


def _filled(axes: Sequence[np.ndarray], values: np.ndarray, points: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The grid with each missing value taken from the nearest point."""
    from scipy.spatial import KDTree

    missing = np.argwhere(np.isnan(values))
    if len(missing):
        at = np.stack([axis[index] for axis, index in zip(axes, missing.T, strict=True)], axis=1)
        values[tuple(missing.T)] = known[KDTree(points).query(at)[1]]
    return values


class Table:
    """Answers what measured kernels take; implements `efficiency.OpTable`."""

    def __init__(self, chip: ChipSpec, groups: Sequence[Measured], kv: str, longest_bytes: Mapping[int, float]):
        """Makes the grids.

        Args:
          chip: that was measured. groups: from `measured_tables.read`.
          kv: `bf16` or `fp8`: whose attention is taken.
          longest_bytes: ways -> ring bytes of the longest message that is the stack's own, and not NCCL's.
        """
        self.chip, self._kv_bytes = chip, BYTES_PER_ELEMENT[kv]
        by_kind = {(group.kind, group.variant): group for group in groups}
        self.products = {
            variant: Grid([group.keys[name] for name in "mnk"], _utilisation(group, chip))
            for (kind, variant), group in by_kind.items()
            if kind == "matmul"
        }
        self.decode = _by_heads(by_kind.get(("attention_decode", kv)), chip, "step", offset=1)
        self.prefill = _by_heads(by_kind.get(("attention_prefill", kv)), chip, "isl", offset=0)
        self.collectives = dict(_collectives(by_kind, chip, longest_bytes))

    def seconds(self, op: Op) -> Number | None:
        """Returns the seconds of an operation; None where nothing like it was measured."""
        match op.kind:
            case "matmul" if op.compute in self.products and np.all(op.rows):
                return self._product(op, self.products[op.compute])
            case "attention_decode" if op.heads and (grid := nearest_heads(self.decode, op.heads)):
                return self._decode(op, op.heads, grid)
            case "attention_prefill" if op.heads and (grid := nearest_heads(self.prefill, op.heads)):
                return self._prefill(op, op.heads, grid)
            case "collective" if op.ways in self.collectives:
                return self._collective(op, self.collectives[op.ways])
        return None

    def decode_contexts_of(self, op: Op) -> tuple[int, ...]:
        """Returns the contexts between which decode attention takes a straight line; none if it is in no table."""
        grid = nearest_heads(self.decode, op.heads) if op.heads else None
        return () if grid is None else tuple(sorted({1, *(round(2**log) for log in grid.axes[1])}))

    def without_attention(self) -> "Table":
        """Returns a table of all else."""
        other = copy.copy(self)
        other.decode, other.prefill = {}, {}
        return other

    def _product(self, op: Op, grid: Grid) -> Number:
        tokens = op.flops / (2 * op.rows * op.columns * _some(op.launches))
        return _limit_s(op, self.chip) / grid(tokens, op.columns, op.rows)

    def _decode(self, op: Op, heads: Heads, grid: Grid) -> Number:
        """Straight lines between the measured contexts, for each batch its own."""
        queries, kv_heads, size = heads
        pairs = op.flops / (4 * queries * size)  # of all sequences and launches
        rows = op.work_items / (kv_heads * _some(op.launches))
        context = pairs / _some(rows * op.launches)
        contexts = 2 ** grid.axes[1]
        at = np.clip(np.searchsorted(contexts, context), 1, len(contexts) - 1)
        low, high = contexts[at - 1], contexts[at]
        share = np.clip((context - low) / (high - low), 0, None) * (context <= contexts[-1])
        start, end = (
            _reading_to(op, reached * rows * op.launches, pairs, self.chip) / grid(rows, reached)
            for reached in (low, high)
        )
        inside = start + share * (end - start)
        edge = np.clip(context, contexts[0], contexts[-1])
        outside = _limit_s(_without_write(op), self.chip) / grid(rows, edge)
        return np.where(context == edge, inside, outside) + op.kv_write_bytes / self.chip.hbm_bytes_per_s

    def _prefill(self, op: Op, heads: Heads, grid: Grid) -> Number:
        """By sequences, and by the chunk without a past that would use each position read as often."""
        queries, kv_heads, size = heads
        pairs, positions = op.flops / (4 * queries * size), op.kv_read_bytes / (2 * kv_heads * size * self._kv_bytes)
        rows = op.work_items / (kv_heads * _some(op.launches))
        utilisation = grid(rows, 2 * pairs / _some(positions) - 1)
        return _limit_s(_without_write(op), self.chip) / utilisation + op.kv_write_bytes / self.chip.hbm_bytes_per_s

    def _collective(self, op: Op, grid: Grid) -> Number:
        sent = op.link_bytes / op.link_share
        return sent / ideal_bus_bytes_per_s(self.chip, op.ways) / grid(sent / _some(op.launches))


def nearest_heads(grids: Mapping[Heads, Grid], heads: Heads) -> Grid | None:
    """Returns the grid of these heads, or of the nearest numbers of heads of the same size; None without any."""
    same = [known for known in grids if known[2] == heads[2]]
    return grids[min(same, key=lambda known: (_distance(known, heads), known))] if same else None


def _distance(a: Heads, b: Heads) -> float:
    return math.hypot(*(math.log2(x / y) for x, y in zip(a[:2], b[:2], strict=True)))


def _by_heads(group: Measured | None, chip: ChipSpec, size: str, offset: int) -> dict[Heads, Grid]:
    """One grid over batch and `size` + `offset` for each combination of heads."""
    if group is None:
        return {}
    heads = np.stack([group.keys[name] for name in _HEADS], axis=1).astype(int)
    grids = {}
    for combination in np.unique(heads, axis=0):
        rows = select(group, (heads == combination).all(axis=1))
        sizes = [rows.keys["batch_size"], rows.keys[size] + offset]
        if all(len(np.unique(values)) > 1 for values in sizes):
            grids[tuple(combination.tolist())] = Grid(sizes, _utilisation(rows, chip))
    return grids


def _collectives(
    by_kind: Mapping[tuple[str, str], Measured], chip: ChipSpec, longest_bytes: Mapping[int, float]
) -> Iterator[tuple[int, Grid]]:
    """All-reduces by ways: the stack's own up to its longest message, NCCL's beyond."""
    for ways in sorted({int(variant) for kind, variant in by_kind if kind.startswith("all_reduce")}):
        own, other = (by_kind.get((kind, str(ways))) for kind in ("all_reduce", "all_reduce_nccl"))
        limit = longest_bytes.get(ways, math.inf) if own is not None else 0.0
        parts = [select(g, (g.op.link_bytes <= limit) == short) for g, short in ((own, True), (other, False)) if g]
        sent = np.concatenate([part.op.link_bytes for part in parts])
        seconds = np.concatenate([part.seconds for part in parts])
        yield ways, Grid([sent], sent / ideal_bus_bytes_per_s(chip, ways) / seconds)


def _utilisation(group: Measured, chip: ChipSpec) -> np.ndarray:
    return _limit_s(group.op, chip) / group.seconds


def _limit_s(op: Op, chip: ChipSpec) -> Number:
    return kernel_times(op, chip, _LIMIT).total


def _reading_to(op: Op, reached: Number, pairs: Number, chip: ChipSpec) -> Number:
    """The limit of decode attention over `reached` query-key pairs instead of its own."""
    factor = reached / _some(pairs)
    changed = {"flops": factor * op.flops, "kv_read_bytes": factor * op.kv_read_bytes}
    return _limit_s(dataclasses.replace(_without_write(op), **changed), chip)


def _without_write(op: Op) -> Op:
    return dataclasses.replace(op, kv_write_bytes=0)


def _some(count: Number) -> Number:
    """A divisor: where there is none of something, one, of which nothing is taken."""
    return count + (count == 0)
