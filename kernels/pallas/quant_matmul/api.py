"""Matrix products with quantised weights: the contract, its checks, and the choice of an implementation.

`x @ w` for a weight that `quantise.quantise` made. `quant_matmul` takes activations as they are; `int8_matmul` and
`fp8_matmul` first quantise each row of them, so that both operands are 8-bit and the chip's 8-bit units multiply them.
Every implementation keeps three promises:

1. One order of arithmetic. The products of one group are summed: in float32, or in int32 where both are integers. The
   sum is multiplied by the group's scale in float32, groups are added in float32, the row's scale comes last, and the
   result is rounded once. Stored weights are never rounded on the way: int4, int8 and fp8 are exact in bf16 and f16.
   Only the order of float32 sums differs between implementations.
2. A row's result depends on that row alone; a NaN in one stays there.
3. Nothing is summed that is not in the arrays: what a kernel pads, it masks.

Next: `weight` (how it lies in memory), `reference` (NumPy), `xla` (any chip), `tpu` and `gpu` (Mosaic), `arg_specs`
(the shapes that tests and benchmarks share).
"""

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, DTypeLike, Float, Int32, Num

from kernels.pallas import choosing
from kernels.pallas.choosing import Choice
from kernels.pallas.quant_matmul import gpu, gpu_interpret, tpu, tpu_interpret, xla
from kernels.pallas.quant_matmul.quantise import quantise_rows
from kernels.pallas.quant_matmul.weight import QuantWeight
from nanoserve.specs.errors import ConfigError

IMPLEMENTATIONS: Mapping[str, ModuleType] = {
    "xla": xla,
    "pallas_tpu": tpu,
    "pallas_tpu_interpret": tpu_interpret,
    "pallas_gpu": gpu,
    "pallas_gpu_interpret": gpu_interpret,
}
OPERATION = "quant_matmul"


@jax.named_scope("quant_matmul")
def quant_matmul(
    x_TD: Float[Array, "T D"],
    weight: QuantWeight,
    *,
    layer: Int32[Array, ""] | None = None,
    out_dtype: DTypeLike | None = None,
    implementation: str,
) -> Float[Array, "T F"]:
    """`x @ w` with activations as they are: a quarter to half of the bytes of bf16 weights, at the rate of `x`'s dtype.

    Args:
      x_TD: activations, bfloat16, float16 or float32.
      weight: of any scheme.
      layer: which layer of a stack [L, ...] of weights is multiplied, where it lies; None for a single weight.
      out_dtype: of the result; None for the activations' own.
      implementation: a name in `IMPLEMENTATIONS`, as `choose` returns it.

    Returns:
      The product.

    Raises:
      ConfigError: for an implementation that does not exist, or that does not serve these arguments.
      ValueError: for shapes that do not fit together.
    """
    _check(x_TD, weight, layer)
    return _run(x_TD, weight, None, implementation, layer=layer, out_dtype=out_dtype or x_TD.dtype)


@jax.named_scope("int8_matmul")
def int8_matmul(
    x_TD: Float[Array, "T D"],
    weight: QuantWeight,
    *,
    layer: Int32[Array, ""] | None = None,
    out_dtype: DTypeLike | None = None,
    implementation: str,
) -> Float[Array, "T F"]:
    """`x @ w` with rows of x rounded to int8, each by its own largest magnitude, and products summed in int32.

    See `quant_matmul`; the weight is int8 or int4.
    """
    _check(x_TD, weight, layer)
    if weight.kind not in ("int8", "int4"):
        raise ConfigError(f"int8_matmul takes int8 or int4 weights, not {weight.kind}: use fp8_matmul or quant_matmul")
    values_TD, row_scales_T = quantise_rows(x_TD, "int8")
    return _run(values_TD, weight, row_scales_T, implementation, layer=layer, out_dtype=out_dtype or x_TD.dtype)


@jax.named_scope("fp8_matmul")
def fp8_matmul(
    x_TD: Float[Array, "T D"],
    weight: QuantWeight,
    *,
    layer: Int32[Array, ""] | None = None,
    out_dtype: DTypeLike | None = None,
    implementation: str,
) -> Float[Array, "T F"]:
    """`x @ w` with rows of x rounded to float8_e4m3fn, each scaled by its own largest magnitude.

    See `quant_matmul`; the weight is fp8.
    """
    _check(x_TD, weight, layer)
    if weight.kind != "float8_e4m3fn":
        raise ConfigError(f"fp8_matmul takes fp8 weights, not {weight.kind}: use int8_matmul or quant_matmul")
    values_TD, row_scales_T = quantise_rows(x_TD, "fp8")
    return _run(values_TD, weight, row_scales_T, implementation, layer=layer, out_dtype=out_dtype or x_TD.dtype)


def choose(implementation: str, target: str, products: Iterable[tuple[jax.ShapeDtypeStruct, QuantWeight]]) -> Choice:
    """The implementation that a name stands for, of all of a model's products.

    Args:
      implementation: a name in `IMPLEMENTATIONS`, which is never replaced by another, or `auto`.
      target: what will run them, as `compat.kernel_target` says.
      products: activations as they are multiplied and weight of each, on one chip; only shapes are looked at.

    Raises:
      ConfigError: for a name that does not exist, and for a name that does not serve one of the products.
    """
    shapes = list(products)

    def why_not(module: ModuleType) -> str | None:
        return next((reason for product in shapes if (reason := module.why_not(*product))), None)

    return choosing.choose(OPERATION, implementation, target, IMPLEMENTATIONS, why_not)


def _run(
    x_TD: Num[Array, "T D"],
    weight: QuantWeight,
    row_scales_T: Float[Array, " T"] | None,
    implementation: str,
    **options: Any,
) -> Float[Array, "T F"]:
    """The product of rows as they are multiplied, by the implementation of a name."""
    module = choosing.module_of(OPERATION, implementation, IMPLEMENTATIONS)
    if reason := module.why_not(x_TD, weight):
        raise ConfigError(f"{OPERATION} '{implementation}' cannot be used: {reason}")
    return module.matmul(x_TD, weight, row_scales_T, **options)


def _check(x_TD: jax.Array, weight: QuantWeight, layer: Any = None) -> None:
    """Everything that shapes can tell, so that a mistake is reported by name and not deep in a kernel."""
    if x_TD.ndim != 2 or not jnp.issubdtype(x_TD.dtype, jnp.floating):
        raise ValueError(f"activations are floats [T, D], got {x_TD.dtype} {x_TD.shape}")
    values, scales = weight.values, weight.scales
    *layers, F, D = values.shape
    if len(layers) != (layer is not None) or scales.shape != (*layers, weight.groups, F) or D % weight.groups:
        raise ValueError(
            f"a weight is values [F, D] and scales [G, F] with D a multiple of G, or a stack [L, ...] of both and a "
            f"layer, got {values.shape} and {scales.shape} and layer {layer}"
        )
    if x_TD.shape[1] != weight.inputs:
        raise ValueError(f"activations {x_TD.shape} do not fit a weight of {weight.inputs} inputs")
