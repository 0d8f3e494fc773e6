"""How many bytes things take where they are stored: elements by dtype, and the KV of a token on one chip.

Next: `work`, `memory`.
"""

import math

from nanoserve.specs.chips import BYTES_PER_ELEMENT, Precision
from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.specs.models import ModelSpec
from nanoserve.specs.sizes import QUANTISED_DTYPES, kv_bytes_per_token


def dtype_bytes(dtype: str) -> float:
    """Returns bytes per element.

    Raises:
      ConfigError: unknown dtype.
    """
    if dtype not in BYTES_PER_ELEMENT:
        raise ConfigError(f"dtype {dtype!r} is not known.{nearest(dtype, BYTES_PER_ELEMENT)}")
    return BYTES_PER_ELEMENT[dtype]


def rest_dtype(precision: Precision) -> str:
    """Returns how embedding, head, router, norms and biases are stored: quantisation leaves them alone."""
    return precision.activations if precision.weights in QUANTISED_DTYPES else precision.weights


def kv_bytes_per_chip(model: ModelSpec, precision: Precision, ways: int, stages: int = 1) -> int:
    """Returns KV bytes per token that one chip holds, all of its layers.

    Heads fewer than `ways` are replicated, and so is the latent of latent attention, which has no heads.

    Args:
      model, precision: whose keys and values, and how they are stored.
      ways: tensor-parallel chips. stages: of the pipeline; the fullest counts.
    """
    of_a_layer = kv_bytes_per_token(model, precision.kv) // model.layers
    if model.mla is None:
        of_a_layer = of_a_layer // model.kv_heads * math.ceil(model.kv_heads / ways)
    return of_a_layer * math.ceil(model.layers / stages)


def kv_scale_bytes_per_chip(model: ModelSpec, precision: Precision, ways: int, stages: int = 1) -> int:
    """Returns bytes per token of the float32 factors of keys and values, which KV of less than 16 bits has.

    They take memory, and are not priced: published figures of quantised KV leave them out (3% of heads of 128).
    """
    if dtype_bytes(precision.kv) >= dtype_bytes("bf16"):
        return 0
    factors = 1 if model.mla else 2 * math.ceil(model.kv_heads / ways)
    return factors * math.ceil(model.layers / stages) * int(dtype_bytes("f32"))
