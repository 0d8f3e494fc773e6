"""Which precisions JAX executes, as which of its dtypes, and why the others are only priced."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from kernels.pallas import compat
from kernels.pallas.choosing import Choice
from kernels.pallas.quant_matmul.schemes import SCHEMES
from nanoserve.model.product import choose_product
from nanoserve.model.quantised import Storage
from nanoserve.roofline.storage import rest_dtype
from nanoserve.specs.chips import ChipSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec

JAX_DTYPES = {"f32": "float32", "bf16": "bfloat16", "f16": "float16"}
KV_DTYPES = {**JAX_DTYPES, "int8": "int8", "fp8": "float8_e4m3fn"}
ROWS: Mapping[str, str] = {"int8": "int8", "int4": "int8", "fp8": "fp8"}
"""What rows of activations are rounded to where 8 bits compute, by how weights are stored."""


def obstacle(spec: ModelSpec, chip: ChipSpec, precision: Precision, ways: int) -> str:
    """Why a precision cannot be executed, or an empty string.

    Args:
      spec, precision: the model, and how it would be stored and computed.
      chip: what would compute it. ways: chips that share the matrices.
    """
    for part, known in {"weights": {**JAX_DTYPES, **SCHEMES}, "kv": KV_DTYPES, "activations": JAX_DTYPES}.items():
        dtype = getattr(precision, part)
        if dtype not in known:
            return f"Precision.{part} = '{dtype}' is priced but not executed; executed are {', '.join(known)}"
    if precision.weights in SCHEMES:
        return _quantised_obstacle(spec, chip, precision, ways)
    if len({precision.weights, precision.activations, precision.compute}) > 1:
        return "weights, activations and compute of different dtypes are priced but not executed"
    return ""


def _quantised_obstacle(spec: ModelSpec, chip: ChipSpec, precision: Precision, ways: int) -> str:
    weights, compute, rows = precision.weights, precision.compute, ROWS[precision.weights]
    if spec.moe is not None:
        return f"experts in {weights} are priced but not executed: no grouped product takes quantised matrices"
    if compute not in (precision.activations, rows):
        return (
            f"{weights} weights are multiplied in the dtype of activations, Precision.compute = "
            f"'{precision.activations}', or in '{rows}'; not in '{compute}', which is priced but not executed"
        )
    # A CPU has no units for 8 bits either, but is where the numbers are tried out.
    if compute == rows and rows not in chip.peak_flops_per_s and chip.platform != "cpu":
        return f"{chip.name} has no units for {rows}: use Precision.compute = '{precision.activations}'"
    try:
        choose_products(spec, precision, "", ways)
    except ConfigError as error:
        return str(error)
    return ""


def weights_dtype(precision: Precision) -> str:
    """JAX's name of what is not quantised: all weights, or all but the matrices of layers."""
    return JAX_DTYPES[rest_dtype(precision)]


def storage(precision: Precision) -> Storage | None:
    """How matrices are stored and multiplied; None where they are like all other weights."""
    if precision.weights not in SCHEMES:
        return None
    rows = None if precision.compute == precision.activations else ROWS[precision.weights]
    return Storage(scheme=precision.weights, rows=rows)


def choose_products(spec: ModelSpec, precision: Precision, target: str, ways: int) -> Choice | None:
    """The implementation of products with quantised weights, and why; None where no weights are.

    Args:
      spec, precision: the model, and how it is stored. target: as `compat.kernel_target` says.
      ways: chips that share the matrices.

    Raises:
      ConfigError: matrices that cannot be stored so.
    """
    how = storage(precision)
    if how is None:
        return None
    return choose_product("auto", spec, how, target, dtype=JAX_DTYPES[precision.activations], ways=ways)


def storage_on(device: Any, spec: ModelSpec, precision: Precision, ways: int) -> Storage | None:
    """`storage`, multiplied by the kernel of a device where it serves the model."""
    how, choice = storage(precision), choose_products(spec, precision, compat.kernel_target(device), ways)
    return dataclasses.replace(how, implementation=choice.name) if how and choice else None
