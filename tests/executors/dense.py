"""A Llama in NumPy float64: whole sequences, no pages, no batch, no cache. The engine's tokens are held against it."""

import numpy as np

from nanoserve.specs.models import ModelSpec
from nanoserve.weights.types import TensorSource


def greedy(spec: ModelSpec, weights: TensorSource, prompt: list[int], tokens: int) -> tuple[list[int], float]:
    """The most likely continuation, and the smallest lead that any of its tokens has over the runner-up."""
    ids, lead = list(prompt), np.inf
    for _ in range(tokens):
        scores_V = next_scores(spec, weights, ids)
        runner_up, best = np.sort(scores_V)[-2:]
        lead = min(lead, best - runner_up)
        ids.append(int(scores_V.argmax()))
    return ids[len(prompt) :], float(lead)


def next_scores(spec: ModelSpec, weights: TensorSource, ids: list[int]) -> np.ndarray:
    """Logits of the token after `ids`, [V]."""

    def read(name: str) -> np.ndarray:
        return weights.read(f"{name}.weight").astype(np.float64)

    x_TD = read("model.embed_tokens")[ids]
    for layer in range(spec.layers):
        at = f"model.layers.{layer}"
        normed_TD = _norm(spec, x_TD, read(f"{at}.input_layernorm"))
        q, k, v = (
            (normed_TD @ read(f"{at}.self_attn.{name}_proj").T).reshape(len(ids), -1, spec.head_size) for name in "qkv"
        )
        attended = _attention(_turned(spec, q), _turned(spec, k), v)
        x_TD = x_TD + attended.reshape(len(ids), -1) @ read(f"{at}.self_attn.o_proj").T
        normed_TD = _norm(spec, x_TD, read(f"{at}.post_attention_layernorm"))
        gate, up = (normed_TD @ read(f"{at}.mlp.{name}_proj").T for name in ("gate", "up"))
        x_TD = x_TD + (gate / (1 + np.exp(-gate)) * up) @ read(f"{at}.mlp.down_proj").T
    head_VD = read("model.embed_tokens") if spec.tied_embeddings else read("lm_head")
    return head_VD @ _norm(spec, x_TD[-1], read("model.norm"))


def _norm(spec: ModelSpec, x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + spec.norm_eps) * weight


def _turned(spec: ModelSpec, x: np.ndarray) -> np.ndarray:
    half = spec.head_size // 2
    angles = np.arange(len(x))[:, None, None] * float(spec.rope_theta or 0) ** (-np.arange(half) / half)
    first, second = x[..., :half], x[..., half:]
    cos, sin = np.cos(angles), np.sin(angles)
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def _attention(q: np.ndarray, k: np.ndarray, v: np.ndarray) -> np.ndarray:
    groups = q.shape[1] // k.shape[1]
    k, v = np.repeat(k, groups, axis=1), np.repeat(v, groups, axis=1)
    scores = np.einsum("thd,shd->hts", q, k) / np.sqrt(q.shape[-1])
    scores[:, ~np.tri(len(q), dtype=bool)] = -np.inf
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return np.einsum("hts,shd->thd", weights / weights.sum(-1, keepdims=True), v)
