"""A whole real engine in one call: model, weights, scheduler, JAX executor, on a virtual or a wall clock."""

import dataclasses
import functools
import json
import subprocess
import sys
from collections.abc import Collection, Sequence

import numpy as np

from nanoserve.building import build_engine
from nanoserve.engine.clock import VirtualClock, WallClock
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.engine import Engine
from nanoserve.engine.memory import KvFacts
from nanoserve.engine.types import Executor, to_ticks
from nanoserve.executors.arrays import Ladders, RequestSampling
from nanoserve.executors.jax_build import LoadedModel, build_jax_executor, ladders_for, load_model
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.kv_facts import kv_facts
from nanoserve.executors.priced import PricedExecutor
from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.executors.speculation import speculate
from nanoserve.executors.tokens import TokenBook
from nanoserve.roofline.calibration import constants_for
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model
from nanoserve.specs.models import ModelSpec
from nanoserve.trace.load import OpenLoop
from nanoserve.trace.types import Trace
from nanoserve.weights.random import RandomTensors

TINY = model("tiny-llama")
F32 = Precision(weights="f32", kv="f32", activations="f32", compute="f32")
ONE_H100 = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 1})


def lengths_trace(prompt_tokens: Sequence[int], output_tokens: Sequence[int], arrival_s: Sequence[float]) -> Trace:
    """A trace of these lengths."""
    return Trace(
        name="lengths",
        source="a test",
        arrival_s=np.asarray(arrival_s, float),
        prompt_tokens=np.asarray(prompt_tokens, np.int64),
        output_tokens=np.asarray(output_tokens, np.int64),
    ).validated()


def mixed_trace(requests: int, seed: int, rate_rps: float, longest: int = 60) -> Trace:
    """Short requests with random lengths and Poisson arrivals."""
    rng = np.random.default_rng(seed)
    arrivals = np.cumsum(rng.exponential(1 / rate_rps, requests))
    return lengths_trace(rng.integers(1, longest, requests), rng.integers(1, longest // 2, requests), arrivals)


def random_prompt(trace: Trace, vocab: int, index: int) -> np.ndarray:
    """Ids that depend on the request alone."""
    return np.random.default_rng([7, index]).integers(vocab, size=int(trace.prompt_tokens[index]))


@functools.cache
def tiny_model(seed: int = 0) -> LoadedModel:
    """The tiny Llama with random weights; loaded once, so that programs of equal shapes are compiled once."""
    return load_model(TINY, RandomTensors(TINY, seed, np.float32), F32)


def coarse_ladders(trace: Trace, config: EngineConfig) -> Ladders:
    """One rung each: few programs, much padding."""
    ladders = ladders_for(trace, config)
    return dataclasses.replace(
        ladders, decode_rows=ladders.decode_rows[-1:], prefill_tokens=ladders.prefill_tokens[-1:]
    )


def jax_executor(
    trace: Trace,
    config: EngineConfig,
    num_pages: int,
    *,
    model: LoadedModel | None = None,
    ladders: Ladders | None = None,
    prompts: Sequence[Sequence[int]] | None = None,
    stop_ids: Collection[int] = (),
    draft: LoadedModel | None = None,
    **sampling,
) -> JaxExecutor:
    """The real executor over a trace; the tiny model, coarse ladders and random prompts unless given.

    It speculates where the config says so; `draft` is the draft model.
    """
    model = model or tiny_model()
    prompt_of = functools.partial(random_prompt, trace, model.spec.vocab) if prompts is None else prompts.__getitem__
    executor = build_jax_executor(
        model,
        config,
        num_pages,
        ladders or coarse_ladders(trace, config),
        TokenBook(prompt_of, stop_ids),
        RequestSampling.uniform(len(trace), **sampling),
        seed=0,
    )
    return executor if config.draft == "none" else speculate(executor, model, config, draft)


def roofline(spec: ModelSpec = TINY) -> RooflineExecutor:
    """The simulated executor of a model on one H100."""
    return RooflineExecutor(spec, ONE_H100, F32, constants_for(ONE_H100.chip, F32, "calibrated"))


def virtual_engine(
    trace: Trace, config: EngineConfig, num_pages: int, executor: Executor | None, spec: ModelSpec = TINY
) -> Engine:
    """An engine on the roofline's clock: simulated where `executor` is None, else really run by it."""
    pricer = roofline(spec)
    both = PricedExecutor(executor, pricer) if executor else pricer
    facts = facts_of(trace, config, executor, spec)
    return build_engine(config, spec, trace, num_pages, both, VirtualClock(), OpenLoop(trace, to_ticks), facts=facts)


def facts_of(trace: Trace, config: EngineConfig, executor: Executor | None, spec: ModelSpec = TINY) -> KvFacts:
    """What an engine on one H100 must be told; `executor` has the ids where it is the real one."""
    book = executor.book if isinstance(executor, JaxExecutor) else None
    return kv_facts(config, trace, spec, ONE_H100, F32, constants_for(ONE_H100.chip, F32, "calibrated"), book)


def wall_engine(
    trace: Trace, config: EngineConfig, num_pages: int, executor: Executor, spec: ModelSpec = TINY
) -> Engine:
    """An engine that takes the time it takes."""
    return build_engine(config, spec, trace, num_pages, executor, WallClock(), OpenLoop(trace, to_ticks))


def outcomes_of(platform: str) -> dict[str, dict]:
    """What `compiled_steps` finds of every case of a platform, by case."""
    command = [sys.executable, "-m", "tests.executors.compiled_steps", platform]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    return {outcome["case"]: outcome for outcome in map(json.loads, process.stdout.splitlines())}
