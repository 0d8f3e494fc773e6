"""Floats to small numbers with scales, and back: weights once, when they are loaded; activations in every step.

Rounding is to nearest; the scale of a group is its largest magnitude over the largest number that can be stored, so
nothing is clipped, and an integer is within half a step (half a scale) of the weight it stands for. A NaN makes its
group's scale NaN: it is seen, and stays in its group.

Next: `schemes` for what there is, `weight` for how it lies in memory.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Num

from kernels.pallas.quant_matmul import schemes
from kernels.pallas.quant_matmul.weight import QuantWeight
from nanoserve.specs.errors import ConfigError


def quantise(
    w_DF: Float[Array, "*L D F"], scheme: str, group: int | None = None, scale_dtype: DTypeLike | None = None
) -> QuantWeight:
    """Quantises a weight matrix, or a stack of them.

    Args:
      w_DF: weights; the product is `x @ w`.
      scheme: a name in `schemes.SCHEMES`.
      group: weights along D that share a scale, for integers; None for the scheme's own choice.
      scale_dtype: float32 or bfloat16; None for the scheme's own choice.

    Raises:
      ConfigError: for a scheme or group that does not exist, or a D that is not a multiple of the group.
    """
    known = schemes.scheme(scheme)
    inputs = w_DF.shape[-2]
    group = schemes.group_of(scheme, group) or inputs
    if inputs % group:
        raise ConfigError(f"{inputs} inputs are not a multiple of a group of {group}: choose a smaller one, or int8")
    w_FGd = jnp.swapaxes(w_DF, -1, -2).astype(jnp.float32)
    w_FGd = w_FGd.reshape(*w_FGd.shape[:-1], inputs // group, group)
    scales_FG = _scales(w_FGd, known.largest).astype(scale_dtype or known.scale_dtype)
    values_FGd = _rounded(w_FGd / scales_FG[..., None].astype(jnp.float32), known.values_dtype, known.largest)
    return QuantWeight(values=values_FGd.reshape(*w_FGd.shape[:-2], inputs), scales=jnp.swapaxes(scales_FG, -1, -2))


def dequantise(weight: QuantWeight) -> Float[Array, "*L D F"]:
    """The float32 weights that `weight` stands for, exact."""
    values_FD = weight.values.astype(jnp.float32)
    scales_DF = jnp.repeat(weight.scales.astype(jnp.float32), weight.group, axis=-2)
    return jnp.swapaxes(values_FD, -1, -2) * scales_DF


def quantise_rows(x_TD: Float[Array, "T D"], scheme: str) -> tuple[Num[Array, "T D"], Float[Array, " T"]]:
    """Activations as int8 or fp8 with a float32 scale per row, chosen from the row's own largest magnitude.

    Args:
      x_TD: activations.
      scheme: int8 or fp8.
    """
    known = schemes.scheme(scheme)
    x_TD = x_TD.astype(jnp.float32)
    scales_T = _scales(x_TD, known.largest)
    return _rounded(x_TD / scales_T[:, None], known.values_dtype, known.largest), scales_T


def _scales(groups: jax.Array, largest: float) -> jax.Array:
    """A scale for each row of the last axis; 1 where all is zero."""
    magnitudes = jnp.max(jnp.abs(groups), axis=-1)
    return jnp.where(magnitudes == 0, 1.0, magnitudes / largest)


def _rounded(quotients: jax.Array, dtype: str, largest: float) -> jax.Array:
    """The nearest numbers of `dtype`; a quotient may be above `largest` by a rounding of its scale."""
    if jnp.issubdtype(jnp.dtype(dtype), jnp.integer):
        quotients = jnp.round(quotients)
    return jnp.clip(quotients, -largest, largest).astype(dtype)
