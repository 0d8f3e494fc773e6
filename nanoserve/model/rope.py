"""Rotary positions: each query and key is turned by an angle that grows with its position.

Half-split convention, as in Hugging Face checkpoints: element i turns with element i + h/2 (the original paper, and
GGUF files of the llama architecture, pair neighbours instead; readers reorder those).
Source: Su et al., "RoFormer", 2021, section 3.2.2.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int32

from nanoserve.specs.models import ModelSpec, RopeScaling


class Rotation(NamedTuple):
    """Cosine and sine of every token's angles, made once a step and used by every layer."""

    cos: Float[Array, "T half"]
    sin: Float[Array, "T half"]


@jax.named_scope("rope")
def rotation(spec: ModelSpec, positions_T: Int32[Array, " T"], window: int | None = None) -> Rotation:
    """Angles of tokens at these positions, in float32, for layers with this window."""
    angles = positions_T[:, None].astype(jnp.float32) * frequencies(spec, window)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


@jax.named_scope("rope")
def rotate(x: Float[Array, "T *heads h"], turn: Rotation) -> Float[Array, "T *heads h"]:
    """Turns every head of every token."""
    heads = range(1, x.ndim - 1)
    cos, sin = jnp.expand_dims(turn.cos, heads), jnp.expand_dims(turn.sin, heads)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def frequencies(spec: ModelSpec, window: int | None = None) -> np.ndarray:
    """Angle per position of each pair of elements, float32 [h / 2].

    Layers with a window may have a base of their own, which is then not scaled: they never see far.
    """
    if spec.rope_theta is None:
        raise ValueError(f"model '{spec.name}' has no rotary positions")
    local = window is not None and spec.local_rope_theta is not None
    theta = np.float32(spec.local_rope_theta if local else spec.rope_theta)
    exponents = np.arange(0, spec.head_size, 2, dtype=np.float32) / np.float32(spec.head_size)
    plain = (1.0 / np.power(theta, exponents)).astype(np.float32)
    return plain if local or spec.rope_scaling is None else _scaled(plain, spec.rope_scaling)


def _scaled(plain: np.ndarray, scaling: RopeScaling) -> np.ndarray:
    """Slow frequencies divided by `factor`, fast ones kept, a linear blend between.

    Source: Llama 3.1 (`rope_type: llama3`): the bounds count how often a wave fits into the original context.
    """
    turns = scaling.original_context_tokens * plain / (2 * math.pi)
    width = scaling.high_freq_factor - scaling.low_freq_factor
    keep = np.clip((turns - scaling.low_freq_factor) / width, 0.0, 1.0)
    return (keep * plain + (1 - keep) * plain / scaling.factor).astype(np.float32)
