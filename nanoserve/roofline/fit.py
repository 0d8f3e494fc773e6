"""Constants fitted to measured operations: the rules of `timing`, differentiated.

What is minimised is the mean of a robust function of log(predicted / measured): twice too slow weighs as much as twice
too fast, small operations as much as large ones, and a few odd rows hardly anything. Constants are searched for as
logarithms, so they stay positive; a share that would leave the datasheet behind is put back to 1 at every step. A third
of the shapes is held out, chosen by a hash of the shape: the rows of a shape are all on one side, and the same shapes
are held out on every machine. Where a shape is one number, every third of them in its order is.

Invariant: the same rows give the same constants, to the digits that are written. Next: `experiments/calibrate.py`.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from nanoserve.roofline.efficiency import Collective, Errors, Kernel
from nanoserve.roofline.measured import Measured, select
from nanoserve.roofline.numeric import Number
from nanoserve.roofline.timing import kernel_times
from nanoserve.specs.chips import ChipSpec
from nanoserve.specs.errors import ConfigError

HELD_OUT_SHARE = 1 / 3
_EVERY = 3
ROBUST_SCALE = 0.1  # relative errors beyond it count by their size, not by its square
DIGITS = 3
_STEPS, _FIRST_STEP = 600, 0.05  # of logarithms: far enough for a factor of e^15, and fine at the end
_HEAD_SIZE = 128
_FEWEST_ROWS = 3  # to fit to


class TooFewRowsError(ConfigError):
    """What was measured is too little to fit constants to and to hold some of it out."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Bucket:
    """Errors of the rows whose size is below `below` and not in the bucket before."""

    below: float
    rows: int
    errors: Errors
    bias: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """Constants of one kind and variant, and how well they do.

    Attributes:
      group: what was measured. used: rows in the domain of the fit, which `domain` says in words.
      held_out: rows of shapes that the fit has not seen. constants: by the names of a file of constants.
      predicted: seconds, of all rows of the group. train, test: errors within the domain.
      buckets: of the held-out rows, by size.
    """

    group: Measured
    domain: str
    used: np.ndarray
    held_out: np.ndarray
    constants: Mapping[str, float]
    predicted: np.ndarray
    train: Errors
    test: Errors
    buckets: tuple[Bucket, ...]

    @property
    def ratio(self) -> np.ndarray:
        """Predicted over measured, of all rows."""
        return self.predicted / self.group.seconds


_ALL_ROWS = "all rows"


def _all_rows(group: Measured) -> np.ndarray:
    return np.ones(len(group), dtype=bool)


@dataclasses.dataclass(frozen=True)
class Rule:
    """How a kind is fitted.

    Attributes:
      start: constants to fit, with values to start from. fixed: constants that are not fitted.
      seconds: predicts a group's rows from constants.
      domain: which rows are like a model's; `said`: the same in words.
      edges: of the buckets that errors are reported by, on `Measured.size`.
    """

    start: Mapping[str, float]
    seconds: Callable[[Measured, ChipSpec, Mapping[str, Number]], Number]
    edges: tuple[float, ...]
    domain: Callable[[Measured], np.ndarray] = _all_rows
    said: str = _ALL_ROWS
    fixed: Mapping[str, float] = dataclasses.field(default_factory=dict)


def fit(group: Measured, chip: ChipSpec) -> Fit:
    """Fits the constants of a group.

    Raises:
      TooFewRowsError: too few rows in the domain of the kind. ConfigError: no rule for the kind.
    """
    rule = rule_for(group)
    used, held_out = rule.domain(group), held_out_rows(group)
    train = used & ~held_out
    if train.sum() < _FEWEST_ROWS or not (used & held_out).any():
        raise TooFewRowsError(f"{group.rows}: {used.sum()} rows ({rule.said}) are too few to fit and to hold some out")
    seen = select(group, train)
    found = minimise(lambda constants: rule.seconds(seen, chip, {**constants, **rule.fixed}) / seen.seconds, rule.start)
    constants = {**{name: rounded(value) for name, value in found.items()}, **rule.fixed}
    predicted = np.asarray(rule.seconds(group, chip, constants), dtype=np.float64)
    ratio = predicted / group.seconds
    return Fit(
        group=group,
        domain=rule.said,
        used=used,
        held_out=held_out,
        constants=constants,
        predicted=predicted,
        train=errors(ratio[train]),
        test=errors(ratio[used & held_out]),
        buckets=tuple(_buckets(group.size, ratio, used & held_out, rule.edges)),
    )


def minimise(ratio: Callable[[Mapping[str, Number]], Number], start: Mapping[str, float]) -> dict[str, float]:
    """Returns the constants whose predictions are nearest to what was measured.

    Adam with a step that decays to nothing: rules have kinks (a longer of two), at which line searches stall.

    Args:
      ratio: predicted over measured of every row, from constants; differentiated by JAX.
      start: positive values to start from. What ends with `_share` is at most 1.
    """
    import jax
    import jax.numpy as jnp
    import optax

    names = tuple(start)
    largest = np.array([0.0 if name.endswith("_share") else np.inf for name in names])

    def loss(logs: Any) -> Number:
        values = jnp.exp(logs)
        error = jnp.log(ratio({name: values[i] for i, name in enumerate(names)})) / ROBUST_SCALE
        return jnp.mean(jnp.sqrt(1 + error**2) - 1)

    with jax.enable_x64(True):
        solver = optax.adam(optax.cosine_decay_schedule(_FIRST_STEP, _STEPS))

        def step(state: Any, _: None) -> tuple[Any, None]:
            logs, memory = state
            updates, memory = solver.update(jax.grad(loss)(logs), memory)
            moved: Any = optax.apply_updates(logs, updates)
            return (jnp.minimum(moved, largest), memory), None

        logs = jnp.log(jnp.array([start[name] for name in names]))
        (logs, _), _ = jax.jit(lambda state: jax.lax.scan(step, state, length=_STEPS))((logs, solver.init(logs)))
        return dict(zip(names, np.exp(np.asarray(logs)).tolist(), strict=True))


def held_out_rows(group: Measured) -> np.ndarray:
    """Returns which rows are held out: those of a third of the shapes, by a hash of the shape.

    Where a shape is one number, as the size of a message, it is every third: a few points of one curve.
    """
    if len(group.shape) == 1:
        (sizes,) = group.shape.values()
        from_the_largest = np.unique(-sizes, return_inverse=True)[1]
        return from_the_largest.reshape(-1) % _EVERY == 1
    shapes = np.stack([column.astype(np.int64) for column in group.shape.values()], axis=1)
    distinct, index = np.unique(shapes, axis=0, return_inverse=True)
    hashes = np.array([zlib.crc32(repr(shape.tolist()).encode()) for shape in distinct])
    return (hashes / 2**32 < HELD_OUT_SHARE)[index.reshape(-1)]


def errors(ratio: np.ndarray) -> Errors:
    """Returns the absolute relative errors of predictions, given predicted over measured."""
    off = np.abs(ratio - 1)
    return Errors(mean_abs=float(off.mean()), p50=float(np.median(off)), p90=float(np.quantile(off, 0.9)))


def not_negative(factors: np.ndarray, wanted: np.ndarray) -> list[float]:
    """Least squares with no term below zero: what would be is left out, and the others are fitted again.

    Args:
      factors: [rows, terms]. wanted: [rows].
    """
    kept = [column for column in range(factors.shape[1]) if factors[:, column].any()]
    while True:
        solution = np.linalg.lstsq(factors[:, kept], wanted, rcond=None)[0]
        if (solution >= 0).all():
            return [float(solution[kept.index(c)]) if c in kept else 0.0 for c in range(factors.shape[1])]
        kept.remove(kept[int(np.argmin(solution))])


def rounded(value: float) -> float:
    """A constant to the digits that its fit deserves."""
    return float(f"{value:.{DIGITS}g}")


def _buckets(size: np.ndarray, ratio: np.ndarray, rows: np.ndarray, edges: tuple[float, ...]) -> Any:
    low = 0.0
    for below in (*edges, math.inf):
        inside = rows & (size >= low) & (size < below)
        if inside.any():
            found = ratio[inside]
            yield Bucket(below=below, rows=int(inside.sum()), errors=errors(found), bias=float(np.median(found) - 1))
        low = below


# ---- rules ----


def _kernel_seconds(group: Measured, chip: ChipSpec, constants: Mapping[str, Number]) -> Number:
    return kernel_times(group.op, chip, Kernel(**constants)).total


def _collective_seconds(group: Measured, chip: ChipSpec, constants: Mapping[str, Number]) -> Number:
    link = chip.link_bytes_per_s
    bulk = Collective(constants["bulk_overhead_s"], constants["bulk_link_share"] * link)
    collective = Collective(constants["overhead_s"], constants["link_share"] * link, bulk)
    return sum(collective.times(group.op.link_bytes, group.op.launches))


def _layer_like(group: Measured) -> np.ndarray:
    """Weights as large and as oblong as a model's layers, whole or divided."""
    n, k = group.keys["n"], group.keys["k"]
    return (np.maximum(n, k) <= 8 * np.minimum(n, k)) & (n * k >= 1 << 23) & (n * k <= 1 << 29)


_MATMUL = Rule(
    start={"overhead_s": 4e-6, "memory_share": 0.8, "compute_share": 0.7},
    seconds=_kernel_seconds,
    domain=_layer_like,
    said="weights of 8 Mi to 512 Mi elements, at most 8 times as long as wide",
    edges=(65, 513, 4097),
)
_EIGHT_BIT_MATMUL = dataclasses.replace(
    _MATMUL,
    start={**_MATMUL.start, "quantise_share": 0.3},
    fixed={
        "tile_tokens": 256
    },  # 257 tokens take as long as 512, 513 as 768 and more; 16-bit products have no such step
)


def _usual_heads(group: Measured) -> np.ndarray:
    return group.keys["head_dim" if "head_dim" in group.keys else "head_size"] == _HEAD_SIZE


_DECODE = Rule(
    start={"overhead_s": 12e-6, "memory_share": 0.8, "item_s": 2e-8},
    seconds=_kernel_seconds,
    domain=_usual_heads,
    said=f"heads of {_HEAD_SIZE}",
    edges=(4e6, 32e6, 256e6),
)
_PREFILL = Rule(
    start={"overhead_s": 13e-6, "memory_share": 0.4, "compute_share": 0.6},
    fixed={"overlap": 0.0},
    seconds=_kernel_seconds,
    domain=_usual_heads,
    said=f"heads of {_HEAD_SIZE}",
    edges=(257, 1025, 4097),
)
_EXPERTS = Rule(
    start={"overhead_s": 25e-6, "memory_share": 0.7, "compute_share": 0.3},
    fixed={"overlap": 0.0},
    seconds=_kernel_seconds,
    edges=(65, 513, 4097),
)


def _all_reduce(group: Measured) -> Rule:
    """Two algorithms, started from the group's own scale: the overhead of the shortest message, and thrice it."""
    least_s = float(group.seconds.min())
    return Rule(
        start={"overhead_s": least_s, "link_share": 0.2, "bulk_overhead_s": 3 * least_s, "bulk_link_share": 0.7},
        seconds=_collective_seconds,
        edges=(1 << 18, 1 << 22),
    )


def rule_for(group: Measured) -> Rule:
    """Returns how a group's kind is fitted.

    Raises:
      ConfigError: it has no rule.
    """
    rule = _rule_for_kind(group)
    return dataclasses.replace(rule, domain=_all_rows, said=_ALL_ROWS) if group.of_models else rule


def _rule_for_kind(group: Measured) -> Rule:
    match group.kind:
        case "matmul" if group.of_models:  # kernels of our own compute no tile of tokens that is not there
            return _MATMUL
        case "matmul":
            return _EIGHT_BIT_MATMUL if group.variant in ("fp8", "int8") else _MATMUL
        case "grouped_matmul":
            return _EXPERTS
        case "attention_decode":
            return _DECODE
        case "attention_prefill":
            return _PREFILL
        case "all_reduce" | "all_reduce_nccl":
            return _all_reduce(group)
    raise ConfigError(f"{group.rows}: no rule says how '{group.kind}' is fitted")
