"""Students: the whole model's layers give the whole model; training brings a student closer; exports read back."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from nanoserve.model.export import to_tensors
from nanoserve.model.params import from_tensors
from nanoserve.model.student import Texts, Training, hidden_states, loss, student_of
from nanoserve.model.teacher import teacher_forced
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.huggingface import read_config
from nanoserve.specs.model_registry import model
from nanoserve.weights.open import open_weights
from nanoserve.weights.random import RandomTensors
from nanoserve.weights.write import write_checkpoint
from tests.model.factories import TINY, random_params

PARAMS = random_params()
TOKENS = np.random.default_rng(0).integers(0, TINY.vocab, (3, 12)).astype(np.int32)
TEXTS = Texts(jnp.asarray(TOKENS), jnp.arange(12)[None] >= jnp.array([[3], [5], [0]]))
TOLERANCE = 1e-4


def test_hidden_states_are_what_the_paged_decoder_computes():
    """Without pages, by another attention: the same logits."""
    hidden = hidden_states(TINY, PARAMS, TEXTS.tokens_NS)
    logits = jnp.einsum("NSD,DV->NSV", hidden, PARAMS.lm_head)
    for row, tokens in enumerate(TOKENS):
        paged = teacher_forced(TINY, PARAMS, jnp.asarray(tokens), "float32")
        np.testing.assert_allclose(logits[row], paged, atol=TOLERANCE)


def test_a_student_with_all_layers_has_nothing_to_learn():
    spec, student = student_of(TINY, PARAMS, range(TINY.layers))
    taught = hidden_states(TINY, PARAMS, TEXTS.tokens_NS)
    assert spec.layers == TINY.layers
    assert float(loss(spec, student, TEXTS, taught, PARAMS.embed)) == pytest.approx(0, abs=TOLERANCE)


def test_training_brings_a_student_closer_and_leaves_the_table_alone():
    spec, student = student_of(TINY, PARAMS, [0])
    taught = hidden_states(TINY, PARAMS, TEXTS.tokens_NS)
    training = Training.of(spec, steps=60, learning_rate=3e-3)
    state, step, losses = training.start(student), jax.jit(training.step), []
    table = student.embed
    for _ in range(60):
        student, state, value = step(student, state, TEXTS, taught, PARAMS.embed)
        losses.append(float(value))
    assert losses[-1] < 0.5 * losses[0]
    np.testing.assert_array_equal(student.embed, table)


def test_an_exported_model_reads_back_bit_for_bit(tmp_path):
    spec = model("tiny-llama")
    params = from_tensors(spec, RandomTensors(spec, 5, np.float32), "float32")
    write_checkpoint(tmp_path, spec, to_tensors(spec, params))
    read = read_config(tmp_path)
    assert (read.layers, read.vocab, read.tied_embeddings) == (spec.layers, spec.vocab, spec.tied_embeddings)
    again = from_tensors(read, open_weights(tmp_path, read), "float32")
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_what_cannot_be_exported_is_refused():
    spec = dataclasses.replace(TINY, qkv_bias=True)
    with pytest.raises(ConfigError, match="biases"):
        to_tensors(spec, PARAMS)
