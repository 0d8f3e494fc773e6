"""Runs tiny models on virtual devices in one layout each, and alone, and prints how they differ, a line of JSON each.

Run in a process of its own, which must see eight devices: `python -m tests.model.parallel_layouts every '[[...]]'`.
Programs are compiled without optimisations: a third of the time, and numbers that differ by no more than a sum's order.
"""

import dataclasses
import json
import math
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from nanoserve.executors.jax_build import load_model
from nanoserve.model import sharding
from nanoserve.model.params import Params
from nanoserve.model.step import DeviceState, Steps
from nanoserve.specs.chips import Precision
from nanoserve.specs.models import ModelSpec, MoeSpec
from nanoserve.weights.random import RandomTensors
from tests.model import factories as make

DENSE = dataclasses.replace(make.TINY, layers=4, heads=8)
EXPERTS = dataclasses.replace(DENSE, name="experts", family="mixtral", moe=MoeSpec(experts=8, top_k=2, ffn=24))
F32 = Precision(weights="f32", kv="f32", activations="f32", compute="f32")
INT8 = dataclasses.replace(F32, weights="int8", kv="int8")
MODELS: Mapping[str, tuple[ModelSpec, Precision]] = {
    "DENSE": (DENSE, F32),
    "QUANTISED": (DENSE, INT8),
    "EXPERTS": (EXPERTS, F32),
    "UNNORMALISED": (
        dataclasses.replace(
            EXPERTS, family="qwen3_moe", qk_norm=True, moe=MoeSpec(experts=8, top_k=3, ffn=24, normalised=False)
        ),
        F32,
    ),
    "WINDOWS": (dataclasses.replace(DENSE, family="gemma2", sliding_window_tokens=5, full_attention_every=2), F32),
}
SEQUENCES = [make.sequence(0, 10), make.sequence(3, 5)]
CHUNKS = [(SEQUENCES[1], 0, 5), (SEQUENCES[0], 0, 8)]
HOW = make.sampling(2, temperature=[0.0, 1.0], top_k=20)
LOOPED = 3
Outcome = tuple[np.ndarray, np.ndarray]
Turn = Callable[[Steps, Params, DeviceState], tuple[DeviceState, jax.Array, jax.Array]]


def main(turns: str, layouts: str) -> None:
    """Compares every [model, axes] of a JSON list with the model alone, in all of `TURNS` that are named."""
    jax.config.update("jax_disable_most_optimizations", True)
    alone = {}
    for name, axes in json.loads(layouts):
        alone[name] = alone.get(name) or list(outcomes(*MODELS[name], None, TURNS[turns]))
        mesh = sharding.make_mesh(jax.devices()[: math.prod(axes.values())], axes)
        found = outcomes(*MODELS[name], mesh, TURNS[turns])
        print(json.dumps([differences(*pair) for pair in zip(found, alone[name], strict=True)]), flush=True)


def outcomes(spec: ModelSpec, precision: Precision, mesh: Mesh | None, turns: Sequence[Turn]) -> Iterator[Outcome]:
    """Tokens and log-probabilities of steps in turn, over one state; greedy rows and rows that draw."""
    loaded = load_model(spec, RandomTensors(spec, 0, np.float32), precision, mesh=mesh)
    state = jax.device_put(make.empty_state(loaded.spec, loaded.kv_dtype), loaded.places)
    for take in turns:
        state, tokens, logprobs = take(loaded.steps, loaded.params, state)
        yield np.asarray(tokens), np.asarray(logprobs)


def _prefill(steps, params, state):
    """Both prompts but the end of the longer one: chunks that a cut by tokens divides, and tokens of padding."""
    return steps.prefill(params, state, make.prefill_rows(CHUNKS, tokens=16, rows=2, how=HOW), make.KEY)


def _first_chunks(steps, params, state):
    """The same, by the program of a step that decodes, too."""
    nothing = make.decode_rows([], [], rows=2, how=HOW)
    return steps.mixed(params, state, nothing, make.prefill_rows(CHUNKS, tokens=16, rows=2, how=HOW), make.KEY)


def _mixed(steps, params, state):
    decode = make.decode_rows([SEQUENCES[1]], [5], rows=2, how=HOW)
    rest = make.prefill_rows([(SEQUENCES[0], 8, 10)], tokens=16, rows=2, how=HOW)
    return steps.mixed(params, state, decode, rest, make.KEY)


def _decode(steps, params, state):
    return steps.decode(params, state, make.decode_rows(SEQUENCES, [10, 6], rows=2, how=HOW), make.KEY)


def _decode_alone(steps, params, state):
    """One row, which no number of stages divides."""
    how = jax.tree.map(lambda column: column[:1], HOW)
    return steps.decode(params, state, make.decode_rows(SEQUENCES[:1], [11], rows=1, how=how), make.KEY)


def _decode_loop(steps, params, state):
    rows = make.decode_rows([*SEQUENCES[::-1], make.sequence(1, 3)], [7, 12, 0], rows=4, how=make.sampling(4))
    return steps.decode_loop(params, state, rows, LOOPED, make.KEY, max_steps=LOOPED)


TURNS: Mapping[str, Sequence[Turn]] = {
    "few": (_first_chunks, _mixed, _decode_loop),  # two programs
    "every": (_prefill, _mixed, _decode, _decode_alone, _decode_loop),
}


def differences(found: Outcome, wanted: Outcome) -> tuple[int, float]:
    """How many tokens differ, and by how much log-probabilities do at most."""
    (tokens, logprobs), (tokens_wanted, logprobs_wanted) = found, wanted
    return int(np.sum(tokens != tokens_wanted)), float(np.max(np.abs(logprobs - logprobs_wanted)))


if __name__ == "__main__":
    main(*sys.argv[1:])
