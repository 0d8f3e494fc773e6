"""Shapes of products with quantised weights that tests, compile checks and benchmarks share, and arrays made from them.

`LAYERS` are the matrices of real models as one chip holds them; `SMALL` are what an interpreter can run, with counts of
tokens that are no multiple of any tile.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from kernels.pallas.quant_matmul import schemes
from kernels.pallas.quant_matmul.quantise import quantise
from kernels.pallas.quant_matmul.weight import QuantWeight

LAYERS: dict[str, tuple[int, int]] = {  # D, F
    "llama8b_qkv": (4096, 6144),
    "llama8b_o": (4096, 4096),
    "llama8b_gate_up": (4096, 28672),
    "llama8b_down": (14336, 4096),
    "llama70b_tp8_qkv": (8192, 1280),
    "llama70b_tp8_o": (1024, 8192),
    "llama70b_tp8_gate_up": (8192, 7168),
    "llama70b_tp8_down": (3584, 8192),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Shape:
    """One product.

    Attributes:
      tokens, inputs, outputs: T, D and F.
      scheme, group: as in `quantise.quantise`.
      rows: int8 or fp8 to quantise the activations' rows to; None to leave them as they are.
      dtype: of the activations.
      scale_dtype: of the scales; None for the scheme's own.
    """

    tokens: int
    inputs: int = 256
    outputs: int = 256
    scheme: str = "int8"
    group: int | None = None
    rows: str | None = None
    dtype: str = "bfloat16"
    scale_dtype: str | None = None


SMALL: dict[str, Shape] = {
    "int8_per_channel": Shape(tokens=5),
    "int8_group_64_bf16_scales": Shape(tokens=9, scheme="int8", group=64, scale_dtype="bfloat16"),
    "int8_one_token": Shape(tokens=1),
    "int8_float16": Shape(tokens=16, dtype="float16"),
    "int4_group_128": Shape(tokens=5, scheme="int4"),
    "int4_group_32_f32_scales": Shape(tokens=17, scheme="int4", group=32, scale_dtype="float32"),
    "fp8": Shape(tokens=7, scheme="fp8"),
    "int8_rows": Shape(tokens=5, rows="int8"),
    "int8_rows_group_128": Shape(tokens=40, group=128, rows="int8"),
    "int4_int8_rows": Shape(tokens=5, scheme="int4", rows="int8"),
    "fp8_rows": Shape(tokens=9, scheme="fp8", rows="fp8"),
}


def layer(name: str, tokens: int, scheme: str = "int8", **fields) -> Shape:
    """The product of a matrix of `LAYERS`."""
    inputs, outputs = LAYERS[name]
    return Shape(tokens=tokens, inputs=inputs, outputs=outputs, scheme=scheme, **fields)


COMPILED: dict[str, Shape] = {  # what the compilers of both chips are shown, if their kernel serves it
    **{f"{name}_int8_16_tokens": layer(name, 16) for name in LAYERS},
    **{f"{name}_int4_128_tokens": layer(name, 128, "int4") for name in ("llama8b_down", "llama70b_tp8_qkv")},
    "one_token": layer("llama8b_qkv", 1),
    "five_tokens_int4": layer("llama8b_qkv", 5, "int4"),
    "int8_300_tokens": layer("llama8b_qkv", 300),
    "int8_2048_tokens": layer("llama8b_gate_up", 2048),
    "int4_2048_tokens": layer("llama8b_down", 2048, "int4"),
    "int4_group_64": layer("llama70b_tp8_down", 128, "int4", group=64),
    "int4_group_32_f32_scales": layer("llama70b_tp8_down", 128, "int4", group=32, scale_dtype="float32"),
    "int4_group_32_float32_2048_tokens": layer("llama70b_tp8_o", 2048, "int4", group=32, dtype="float32"),
    "int8_group_128": layer("llama8b_o", 64, group=128),
    "int8_group_32_bf16_scales": layer("llama8b_o", 40, group=32, scale_dtype="bfloat16"),
    "int8_float16": layer("llama8b_o", 128, dtype="float16"),
    "int4_float16": layer("llama8b_o", 128, "int4", dtype="float16"),
    "int8_float32": layer("llama8b_o", 64, dtype="float32"),
    "int8_float32_2048_tokens": layer("llama8b_down", 2048, dtype="float32"),
    "int8_128_tokens_of_28672": Shape(tokens=128, inputs=28672, outputs=8192),
    "int4_200_tokens_of_28672": Shape(tokens=200, inputs=28672, outputs=8192, scheme="int4"),
    "fp8": layer("llama8b_o", 128, "fp8"),
    "fp8_float16": layer("llama8b_o", 128, "fp8", dtype="float16"),
    "int8_rows": layer("llama8b_qkv", 128, rows="int8"),
    "int8_rows_2048_tokens": layer("llama8b_gate_up", 2048, rows="int8"),
    "int8_rows_group_128": layer("llama8b_down", 128, group=128, rows="int8"),
    "int4_int8_rows": layer("llama8b_qkv", 128, "int4", rows="int8"),
    "fp8_rows": layer("llama8b_qkv", 128, "fp8", rows="fp8"),
    "fp8_rows_2048_tokens": layer("llama8b_gate_up", 2048, "fp8", rows="fp8"),
}


def make(shape: Shape, seed: int) -> tuple[jax.Array, QuantWeight]:
    """Activations [T, D] of order 1, and a weight whose products with them are."""
    rng = np.random.default_rng(seed)
    x_TD = jnp.asarray(rng.standard_normal((shape.tokens, shape.inputs)), shape.dtype)
    w_DF = rng.standard_normal((shape.inputs, shape.outputs)).astype(np.float32) / np.sqrt(shape.inputs)
    # Columns of very different size: a scale that reaches the wrong channel is far off.
    w_DF *= np.geomspace(0.1, 1, shape.outputs, dtype=np.float32)
    return x_TD, quantise(jnp.asarray(w_DF), shape.scheme, shape.group, shape.scale_dtype)


def abstract(shape: Shape) -> tuple[jax.ShapeDtypeStruct, QuantWeight]:
    """The same without contents, for a compiler."""
    known = schemes.scheme(shape.scheme)
    groups = shape.inputs // (schemes.group_of(shape.scheme, shape.group) or shape.inputs)
    values = jax.ShapeDtypeStruct((shape.outputs, shape.inputs), jnp.dtype(known.values_dtype))
    scales = jax.ShapeDtypeStruct((groups, shape.outputs), jnp.dtype(shape.scale_dtype or known.scale_dtype))
    weight = QuantWeight(values=values, scales=scales)  # pyright: ignore[reportArgumentType]
    return jax.ShapeDtypeStruct((shape.tokens, shape.inputs), jnp.dtype(shape.dtype)), weight


def multiplied(shape: Shape) -> tuple[jax.ShapeDtypeStruct, QuantWeight, jax.ShapeDtypeStruct | None]:
    """What a kernel is given for `shape`, without contents: rows as they are multiplied, weight, scales of rows."""
    x_TD, weight = abstract(shape)
    if shape.rows is None:
        return x_TD, weight, None
    kind = jnp.dtype(schemes.scheme(shape.rows).values_dtype)
    return jax.ShapeDtypeStruct(x_TD.shape, kind), weight, jax.ShapeDtypeStruct(x_TD.shape[:1], jnp.float32)
