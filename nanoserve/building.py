"""Parts of a replay, made from an experiment: pools, executors, engines, and where weights and prompts come from.

A `Pool` says what replicas have in common, a `Member` is one of them. Next: `replay`, which puts the parts together
and runs them.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from nanoserve.engine.clock import Clock
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.engine import Engine, Load
from nanoserve.engine.log import RunLog
from nanoserve.engine.memory import NOTHING_KNOWN, KvFacts
from nanoserve.engine.scheduler import Scheduler
from nanoserve.engine.types import TICKS_PER_S, Executor, Request
from nanoserve.executors.kv_facts import kv_facts
from nanoserve.executors.roofline_executor import RooflineExecutor, one_shape
from nanoserve.executors.speculating_roofline import DraftPricer, SpeculatingRoofline
from nanoserve.executors.stopping import ForeseeingExecutor
from nanoserve.experiment import Experiment, Facts, Faults
from nanoserve.roofline.calibration import Calibration, constants_for
from nanoserve.roofline.memory import num_pages
from nanoserve.roofline.table_pricing import pricer_for
from nanoserve.roofline.transfer import swap_seconds
from nanoserve.specs.chips import ChipSpec, ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec
from nanoserve.trace.types import Trace

if TYPE_CHECKING:
    from jax.sharding import Mesh

    from nanoserve.executors.arrays import Ladders
    from nanoserve.executors.jax_build import LoadedModel
    from nanoserve.executors.jax_executor import JaxExecutor
    from nanoserve.executors.tokens import TokenBook
    from nanoserve.weights.random import DrawnOnDevices
    from nanoserve.weights.types import TensorSource, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Pool:
    """Replicas that are alike, before their engines are made.

    Attributes:
      config: of every engine. model, precision: what they run, and how it is stored.
      cluster: the chips of all of them; its axis `data` is their number.
      calibration: constants that their steps are priced with. pages: of each. draft: the model that guesses, if any.
      faults: that are planted in them.
      name: `prefill` or `decode`; empty where one pool does both.
    """

    config: EngineConfig
    model: ModelSpec
    precision: Precision
    cluster: ClusterSpec
    calibration: Calibration
    pages: int
    name: str = ""
    draft: ModelSpec | None = None
    faults: Faults = Faults()

    @property
    def replicas(self) -> int:
        """Engines."""
        return self.cluster.mesh.get("data", 1)

    @property
    def described(self) -> str:
        """Its pages, in words."""
        replicas = (
            f"{self.replicas} {self.name} replicas of ".replace("  ", " ") if self.replicas > 1 or self.name else ""
        )
        return f"{replicas}{self.pages:,} pages of {self.config.page_tokens} tokens"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Member:
    """One engine of a replay, and the pool it belongs to."""

    engine: Engine
    pool: Pool


def pools_of(experiment: Experiment, facts: Facts) -> list[Pool]:
    """The pools of an experiment, with the pages that the config asks for or the memory model leaves.

    Raises:
      CapacityError: the weights leave no room. ConfigError: nothing is known of what prices steps.
    """
    if facts.decode is None:
        return [_pool(experiment, facts, experiment.engine, facts.cluster)]
    return [
        _pool(experiment, facts, experiment.engine, facts.cluster, "prefill"),
        _pool(experiment, facts, facts.decode.engine, facts.decode.cluster, "decode"),
    ]


def _pool(experiment: Experiment, facts: Facts, config: EngineConfig, cluster: ClusterSpec, name: str = "") -> Pool:
    pricing = experiment.pricing
    calibration = constants_for(cluster.chip, experiment.precision, pricing.mode, pricing.stack, pricing.table)
    pages = config.num_pages or num_pages(
        facts.model,
        cluster,
        experiment.precision,
        page_tokens=config.page_tokens,
        hbm_utilization=config.hbm_utilization,
        max_step_tokens=config.max_step_tokens,
        max_seqs=config.max_seqs,
        draft=facts.draft,
    )
    return Pool(
        config=config,
        model=facts.model,
        precision=experiment.precision,
        cluster=cluster,
        calibration=calibration,
        pages=pages,
        draft=facts.draft,
        name=name,
        faults=experiment.faults,
    )


def priced_executors(pools: Sequence[Pool], trace: Trace, seed: int = 0) -> Iterator[tuple[Pool, Executor]]:
    """An executor for every simulated engine, pool after pool.

    Those of a pool share what prices their steps; a replica that is slow has its own.

    Args:
      pools: whose engines. trace: what they serve. seed: of what is drawn where tokens are drafted.

    Raises:
      ConfigError: a pool swaps, and its chip's host link is not published.
    """
    for pool in pools:
        if pool.config.preemption != "recompute":
            swap_seconds(pool.model, pool.cluster, pool.precision, 1)
        usual, answers = _priced_executor(pool, seed), trace.answer_tokens
        stops = None if answers is None else dict(enumerate(answers.tolist()))
        for number in range(pool.replicas):
            slow = number == pool.faults.slow_replica
            executor = _priced_executor(pool, seed, pool.faults.slow_factor) if slow else usual
            yield pool, executor if stops is None else ForeseeingExecutor(executor, stops)


def _priced_executor(pool: Pool, seed: int, slower: float = 1.0) -> Executor:
    """An executor of a pool's engines; everything takes `slower` times what it is priced at."""
    ticks_per_s = round(TICKS_PER_S * slower)
    priced = pool.cluster, pool.precision, pool.calibration
    pricer = pricer_for(pool.model, *priced, ticks_per_s=ticks_per_s)
    padded = one_shape(pool.config) if pool.config.batch_invariant else None
    executor = RooflineExecutor(pool.model, *priced, pricer, padded, slower)
    if pool.config.draft != "none":
        draft = pool.draft and DraftPricer(pool.draft, *priced, ticks_per_s=ticks_per_s)
        return SpeculatingRoofline(executor, pool.config.draft_acceptance, seed, draft)
    return executor


def kv_facts_of(pool: Pool, trace: Trace, book: "TokenBook | None" = None) -> KvFacts:
    """What a pool's engines must be told of KV; `book` has the ids of a real run.

    Raises:
      ConfigError: it is not known (`executors.kv_facts`).
    """
    facts = kv_facts(pool.config, trace, pool.model, pool.cluster, pool.precision, pool.calibration, book)
    return dataclasses.replace(facts, leak=pool.faults.leak)


def build_engine(
    config: EngineConfig,
    model: ModelSpec,
    trace: Trace,
    pages: int,
    executor: Executor,
    clock: Clock,
    load: Load,
    log: RunLog | None = None,
    facts: KvFacts = NOTHING_KNOWN,
    hands_over: bool = False,
) -> Engine:
    """An engine over a trace with a given executor, clock and load, and a log of its own unless one is given.

    `facts` are what its memory needs to be told (`executors.kv_facts`). One that hands over only prefills.
    """
    log = log or RunLog(len(trace))
    scheduler = Scheduler(
        config,
        num_pages=pages,
        max_context_tokens=context_tokens(config, model),
        log=log,
        window_tokens=model.sliding_window_tokens,
        facts=facts,
        hands_over=hands_over,
    )
    return Engine(
        scheduler=scheduler,
        executor=executor,
        load=load,
        clock=clock,
        log=log,
        request_of=requests_of(trace),
    )


def context_tokens(config: EngineConfig, model: ModelSpec) -> int:
    """The most prompt and output tokens of a request, by the config and the model."""
    return min(config.max_context_tokens or model.max_context_tokens, model.max_context_tokens)


def requests_of(trace: Trace) -> Callable[[int, int], Request]:
    """Makes (trace row, arrival ticks) -> the request."""
    prompts, outputs = trace.prompt_tokens.tolist(), trace.output_tokens.tolist()
    clients = [0] * len(trace) if trace.client is None else trace.client.tolist()
    priorities = [0] * len(trace) if trace.priority is None else trace.priority.tolist()
    sessions = [None] * len(trace) if trace.session is None else trace.session.tolist()

    def request_of(row: int, arrival_ticks: int) -> Request:
        return Request(
            index=row,
            arrival_ticks=arrival_ticks,
            prompt_tokens=prompts[row],
            output_tokens=outputs[row],
            client=clients[row],
            priority=priorities[row],
            session=sessions[row],
        )

    return request_of


def open_tokenizer_of(experiment: Experiment) -> "Tokenizer | None":
    """The tokenizer beside the weights; None where there is none, which only prompts as text need."""
    if experiment.weights is None:
        return None
    from nanoserve.weights.open import is_gguf, locate
    from nanoserve.weights.tokenizer import open_tokenizer

    path = locate(experiment.weights)
    if not is_gguf(path) and not ((path if path.is_dir() else path.parent) / "tokenizer.json").is_file():
        return None
    return open_tokenizer(experiment.weights)


def open_weights_of(experiment: Experiment, facts: Facts) -> "TensorSource | DrawnOnDevices":
    """The checkpoint that the experiment names, or random weights of the model's shapes, which accelerators draw."""
    return _weights(experiment.weights, facts.model, experiment.seed, facts.cluster.chip)


def _weights(name: str | None, model: ModelSpec, seed: int, chip: ChipSpec) -> "TensorSource | DrawnOnDevices":
    if name is None:
        from nanoserve.weights.random import DrawnOnDevices, RandomTensors

        return RandomTensors(model, seed) if chip.platform == "cpu" else DrawnOnDevices(model, seed)
    from nanoserve.weights.open import open_weights

    return open_weights(name, model)


def jax_executors(
    experiment: Experiment,
    pools: Sequence[Pool],
    trace: Trace,
    weights: "TensorSource | DrawnOnDevices",
    tokenizer: "Tokenizer | None",
) -> "Iterator[tuple[Pool, JaxExecutor]]":
    """An executor for every real engine, pool after pool: weights on its devices, empty pages; compiles nothing yet.

    Every replica has devices of its own. Token ids are kept in one book, so a request can change its engine.
    """
    from nanoserve.executors.arrays import RequestSampling
    from nanoserve.executors.host_pages import HostPages
    from nanoserve.executors.jax_build import (
        attention_here,
        build_jax_executor,
        ladders_for,
        load_model,
        replica_meshes,
    )
    from nanoserve.executors.speculation import speculate
    from nanoserve.executors.tokens import TokenBook
    from nanoserve.model.sharding import ways_of
    from nanoserve.report.file_spool import FileSpool

    how, seed = experiment.sampling, experiment.seed
    stop_ids = () if how.ignore_eos or tokenizer is None else tokenizer.eos_ids
    limits = {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p, "min_p": how.min_p}
    sampling = RequestSampling.uniform(len(trace), **limits, seed=seed)
    book = TokenBook(prompts_of(trace, pools[0].model.vocab, seed), stop_ids, FileSpool)
    for pool, meshes in zip(pools, replica_meshes([pool.cluster for pool in pools]), strict=True):
        most_tokens = min(context_tokens(pool.config, pool.model), pool.pages * pool.config.page_tokens)
        ladders = ladders_for(trace, pool.config, most_tokens)
        for mesh in meshes:
            ways = ways_of(mesh).heads
            attention = attention_here(experiment.attention, pool.model, pool.precision, pool.config, ladders, ways)
            loaded = load_model(pool.model, weights, pool.precision, mesh=mesh, attention=attention)
            executor = build_jax_executor(loaded, pool.config, pool.pages, ladders, book, sampling, seed)
            if pool.config.draft != "none":
                speculate(executor, loaded, pool.config, _draft_model(experiment, pool, ladders, mesh))
            if pool.name and not executor.movers:
                executor.movers.append(HostPages(executor, ladders.table_pages, loaded.places))
            yield pool, executor


def _draft_model(experiment: Experiment, pool: Pool, ladders: "Ladders", mesh: "Mesh | None") -> "LoadedModel | None":
    """The model that guesses, on the devices of a replica; None where none does."""
    draft = pool.draft
    if draft is None:
        return None
    from nanoserve.executors.jax_build import attention_here, load_model
    from nanoserve.model.sharding import ways_of

    weights = _weights(experiment.draft_weights, draft, experiment.seed, pool.cluster.chip)
    shapes = pool.config, ladders, ways_of(mesh).heads
    attention = attention_here(experiment.attention, draft, pool.precision, *shapes)
    return load_model(draft, weights, pool.precision, mesh=mesh, attention=attention)


def prompts_of(trace: Trace, vocab: int, seed: int) -> Callable[[int], Sequence[int] | np.ndarray]:
    """Prompt ids of the trace, else ids that are drawn: a hashed block from its hash, the rest from the request."""
    ids = trace.prompt_ids
    if ids is None and trace.prefix_hashes is not None:
        return _hashed_prompts(trace, vocab, seed)
    if ids is None:
        return lambda index: np.random.default_rng([seed, index]).integers(vocab, size=int(trace.prompt_tokens[index]))
    if len(ids.values) and int(ids.values.max()) >= vocab:
        raise ConfigError(
            f"trace '{trace.name}' has token id {int(ids.values.max())} and the model's vocabulary has {vocab}: its "
            "ids belong to another model. Choose that model, or simulate with --executor=roofline"
        )
    return ids.row


def _hashed_prompts(trace: Trace, vocab: int, seed: int) -> Callable[[int], np.ndarray]:
    """Ids that two requests share exactly where their hashes say so."""
    hashes, block_tokens = trace.prefix_hashes, trace.prefix_block_tokens
    if hashes is None or block_tokens is None:
        raise ValueError(f"trace '{trace.name}' has no prefix hashes")

    def prompt_of(index: int) -> np.ndarray:
        blocks = [
            np.random.default_rng([seed, 1, hashed % (1 << 64)]).integers(vocab, size=block_tokens)
            for hashed in hashes.row(index).tolist()
        ]
        rest = int(trace.prompt_tokens[index]) - len(blocks) * block_tokens
        return np.concatenate([*blocks, np.random.default_rng([seed, 0, index]).integers(vocab, size=rest)])

    return prompt_of
