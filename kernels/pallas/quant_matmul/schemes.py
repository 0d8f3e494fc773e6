"""The ways to store a weight matrix in fewer bits, as facts; no JAX, so that a cost model may ask for bytes.

A scheme stores each weight as a small number times a scale. A scale serves a group: `group` neighbours along D that
lead to the same output, or all D of them ("per channel"). Zero is always exact: no scheme has a zero point.

Next: `weight` (the arrays), `quantise` (how they are made).
"""

import dataclasses
from collections.abc import Mapping

from nanoserve.specs.errors import ConfigError, nearest

GROUPS = (32, 64, 128)  # weights that may share a scale, where not all of a column do


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scheme:
    """How weights are stored.

    Attributes:
      name: int8, int4 or fp8.
      values_dtype: of the small numbers.
      bits: that one of them takes in memory.
      largest: magnitude that the largest weight of a group is stored as.
      group: weights of one scale unless said otherwise; None for a whole column.
      scale_dtype: of the scales unless said otherwise. Values are rounded against the scale as stored, so a bf16 scale
        costs no accuracy that a group of 128 would notice: its largest weight moves by 2**-9 of itself at most.
    """

    name: str
    values_dtype: str
    bits: int
    largest: float
    group: int | None = None
    scale_dtype: str = "float32"


SCHEMES: Mapping[str, Scheme] = {
    "int8": Scheme(name="int8", values_dtype="int8", bits=8, largest=127),
    "int4": Scheme(name="int4", values_dtype="int4", bits=4, largest=7, group=128, scale_dtype="bfloat16"),
    "fp8": Scheme(name="fp8", values_dtype="float8_e4m3fn", bits=8, largest=448),
}


def scheme(name: str) -> Scheme:
    """The scheme called `name`.

    Raises:
      ConfigError: for a name that is none.
    """
    if name not in SCHEMES:
        raise ConfigError(f"no way to store weights is called '{name}'.{nearest(name, SCHEMES)}")
    return SCHEMES[name]


def group_of(name: str, group: int | None = None) -> int | None:
    """Weights that share a scale: `group`, or the scheme's own; None for a whole column.

    Raises:
      ConfigError: for a group that no kernel knows, or a scheme that has none.
    """
    known = scheme(name)
    if group is None:
        return known.group
    if group not in GROUPS:
        raise ConfigError(f"a scale serves {', '.join(map(str, GROUPS))} weights or a whole column, not {group}")
    if name == "fp8":
        raise ConfigError("fp8 weights have one scale per output channel: leave the group out, or choose int8 or int4")
    return group


def bytes_per_weight(name: str, inputs: int, group: int | None = None, scale_bytes: int | None = None) -> float:
    """Bytes that a weight takes on average, its share of a scale included.

    Args:
      name: of the scheme.
      inputs: D of the matrix, as one chip holds it.
      group: weights of one scale; None for the scheme's own.
      scale_bytes: of one scale; None for the scheme's own.
    """
    known = scheme(name)
    share = group_of(name, group) or inputs
    own_bytes = 2 if known.scale_dtype == "bfloat16" else 4
    return known.bits / 8 + (own_bytes if scale_bytes is None else scale_bytes) / share
