"""A small student of a model: some of its layers, trained to say what the whole model says.

A draft model must guess the target's next token for a fraction of its cost. The student keeps the teacher's embedding
table, which is its output head as well (it is not trained), takes a few of the teacher's layers as its own, and learns
from the teacher's distributions at every token of texts that the teacher itself wrote.

The loss of a token is the Kullback-Leibler divergence of the student's distribution from the teacher's (Hinton et al.,
"Distilling the Knowledge in a Neural Network", 2015), over those tokens that occur in the texts: nearly all of the
teacher's mass is there, and the head costs a tenth. What is said of other tokens is held in place by a second term, the
cosine distance between the final hidden states, which the one head turns into all logits.

Next: `decoder`, which computes both; `experiments/distil.py`, which makes the texts and trains; `export`.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int32

from nanoserve.model import decoder
from nanoserve.model.attention import Attend
from nanoserve.model.params import Layer, Params
from nanoserve.model.pool import empty_pool
from nanoserve.specs.models import ModelSpec

_CLIP = 1.0
_WARM_UP_SHARE = 0.1
_HIDDEN = -1e30


@struct.dataclass
class Texts:
    """Sequences of one length, padded at the end.

    Attributes:
      tokens_NS: token ids. learned_NS: where the next token is one that the teacher wrote.
    """

    tokens_NS: Int32[Array, "N S"]
    learned_NS: Bool[Array, "N S"]


def student_of(spec: ModelSpec, params: Params, layers: Sequence[int]) -> tuple[ModelSpec, Params]:
    """A student that has these layers of a teacher, in this order, and shares its embedding and final norm."""
    kept = jnp.array(layers)
    chosen: Layer = jax.tree.map(lambda stack: stack[kept], params.layers)
    name = f"{spec.name}-student{len(layers)}"
    return dataclasses.replace(spec, name=name, layers=len(layers)), dataclasses.replace(params, layers=chosen)


def hidden_states(spec: ModelSpec, params: Params, tokens_NS: Int32[Array, "N S"]) -> Float[Array, "N S D"]:
    """What the head is applied to, at every token of every sequence: float32, normed."""
    N, S = tokens_NS.shape
    pool = empty_pool(spec, pages=1, page_tokens=1, dtype=params.embed.dtype)  # nothing is kept
    positions_T = jnp.tile(jnp.arange(S), N)
    x_TD, _ = decoder.forward(spec, params, pool, tokens_NS.reshape(-1), positions_T, _causal(N, spec))
    return decoder.norm(spec, x_TD, params.final_norm).astype(jnp.float32).reshape(N, S, -1)


def loss(
    spec: ModelSpec,
    student: Params,
    texts: Texts,
    taught_NSD: Float[Array, "N S D"],
    head_VD: Float[Array, "V D"],
) -> Float[Array, ""]:
    """Mean over learned tokens of the divergence from the teacher and of the cosine distance to its hidden states.

    Args:
      spec, student: the student. texts: what it reads.
      taught_NSD: the teacher's hidden states of the same texts. head_VD: rows of the head, of tokens that occur.
    """
    said_NSD = hidden_states(spec, student, texts.tokens_NS)
    teacher_NSV, student_NSV = (
        jax.nn.log_softmax(jnp.einsum("NSD,VD->NSV", x_NSD, head_VD)) for x_NSD in (taught_NSD, said_NSD)
    )
    divergence_NS = jnp.sum(jnp.exp(teacher_NSV) * (teacher_NSV - student_NSV), axis=-1)
    distance_NS = optax.cosine_distance(said_NSD, taught_NSD, epsilon=1e-6)
    learned_NS = texts.learned_NS.astype(jnp.float32)
    return jnp.sum((divergence_NS + distance_NS) * learned_NS) / jnp.sum(learned_NS)


@dataclasses.dataclass(frozen=True)
class Training:
    """How a student is trained.

    Attributes:
      spec: of the student. optimizer: of its layers and final norm.
    """

    spec: ModelSpec
    optimizer: optax.GradientTransformation

    @classmethod
    def of(cls, spec: ModelSpec, steps: int, learning_rate: float) -> "Training":
        """AdamW; the rate rises for a tenth of the steps and falls along a cosine for the others."""
        warm_up = max(1, int(_WARM_UP_SHARE * steps))
        rate = optax.warmup_cosine_decay_schedule(0.0, learning_rate, warm_up, max(steps, warm_up + 1))
        return cls(spec, optax.chain(optax.clip_by_global_norm(_CLIP), optax.adamw(rate)))

    def start(self, student: Params) -> optax.OptState:
        """The optimizer's state before the first step."""
        return self.optimizer.init(_trained(student))

    def step(
        self,
        student: Params,
        state: optax.OptState,
        texts: Texts,
        taught_NSD: Float[Array, "N S D"],
        head_VD: Float[Array, "V D"],
    ) -> tuple[Params, optax.OptState, Float[Array, ""]]:
        """One step on a batch; see `loss` for the arguments. Returns the student, the state, and the loss before it."""

        def of_trained(trained):
            return loss(self.spec, _with(student, trained), texts, taught_NSD, head_VD)

        value, slopes = jax.value_and_grad(of_trained)(_trained(student))
        updates, state = self.optimizer.update(slopes, state, _trained(student))
        return _with(student, optax.apply_updates(_trained(student), updates)), state, value


def _trained(student: Params) -> Any:
    """What is trained, as one tree: the table that embeds and reads out is the teacher's, and stays."""
    return student.layers, student.final_norm


def _with(student: Params, trained) -> Params:
    layers, final_norm = trained
    return dataclasses.replace(student, layers=layers, final_norm=final_norm)


def _causal(sequences: int, spec: ModelSpec) -> Attend:
    """Attention of whole sequences among themselves, without pages, which has a derivative."""
    scale = (spec.query_scalar or spec.head_size) ** -0.5

    def attend(q_THh, k_TKh, v_TKh, pool, first_page, window):
        q_NSKGh = q_THh.reshape(sequences, -1, spec.kv_heads, spec.query_groups, spec.head_size)
        k_NSKh, v_NSKh = (x.reshape(sequences, -1, spec.kv_heads, spec.head_size) for x in (k_TKh, v_TKh))
        scores = scale * jnp.einsum("NQKGh,NSKh->NKGQS", q_NSKGh, k_NSKh)
        distance = jnp.arange(scores.shape[-1])[:, None] - jnp.arange(scores.shape[-1])
        seen = (distance >= 0) & (distance < (window or scores.shape[-1]))
        weights = jax.nn.softmax(jnp.where(seen, scores, _HIDDEN))
        attended = jnp.einsum("NKGQS,NSKh->NQKGh", weights, v_NSKh)
        return attended.reshape(q_THh.shape), pool

    return attend
