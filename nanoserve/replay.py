"""Replays an experiment's trace through the scheduler, executed or simulated, and returns its records.

`prepare` reads the trace, decides who executes, sizes the page pool and builds the engine; `Replay.run` runs it;
`Replay.records` can be asked at any time, also after an interrupt. Files are written by `experiments/run.py`, not
here, so a notebook uses the same two calls. Next: `engine.engine` (the loop), `executors.choose` (the decision).
"""

import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from nanoserve.engine.clock import Clock, VirtualClock, WallClock
from nanoserve.engine.engine import Engine, Load
from nanoserve.engine.log import RunLog
from nanoserve.engine.scheduler import Scheduler
from nanoserve.engine.types import TICKS_PER_S, EngineConfig, Executor, Request, to_ticks
from nanoserve.executors.choose import Choice, choose_executor
from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.experiment import Experiment, Facts, resolve
from nanoserve.roofline.calibration import Calibration, constants_for
from nanoserve.roofline.memory import num_pages
from nanoserve.roofline.records import cost_columns
from nanoserve.roofline.table_pricing import pricer_for
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec
from nanoserve.trace.load import ClosedLoop, OpenLoop
from nanoserve.trace.source import open_load, open_trace
from nanoserve.trace.types import Trace

if TYPE_CHECKING:
    import polars as pl

    from nanoserve.executors.jax_executor import JaxExecutor
    from nanoserve.weights.types import TensorSource, Tokenizer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Records:
    """What a run left behind: `engine.records` as two frames, and the events."""

    steps: "pl.DataFrame"
    requests: "pl.DataFrame"
    event_lines: Callable[[], Iterator[str]]


class Replay:
    """An experiment that is ready to run."""

    def __init__(
        self,
        *,
        experiment: Experiment,
        facts: Facts,
        choice: Choice,
        trace: Trace,
        engine: Engine,
        load: OpenLoop | ClosedLoop,
        calibration: Calibration,
        jax_executor: "JaxExecutor | None",
        tokenizer: "Tokenizer | None",
        weights_fingerprint: str | None,
    ):
        """Made by `prepare`."""
        self.experiment, self.facts, self.choice, self.trace = experiment, facts, choice, trace
        self.engine, self.load, self.calibration = engine, load, calibration
        self.jax_executor, self.tokenizer = jax_executor, tokenizer
        self.weights_fingerprint = weights_fingerprint

    @property
    def programs(self) -> int:
        """How many programs `warm_up` will compile."""
        return 0 if self.jax_executor is None else self.jax_executor.ladders.programs

    @property
    def attention(self) -> str:
        """Which implementation of attention a real run uses, and why; empty for a simulated one."""
        return "" if self.jax_executor is None else self.jax_executor.attention

    @property
    def issued(self) -> int:
        """Requests that the load has sent, by its own count: what conservation is checked against."""
        return len(self.trace) - self.load.remaining

    def warm_up(self) -> Iterator[str]:
        """Compiles every program of a real run, yielding their names; nothing to do for a simulated one."""
        if self.jax_executor is not None:
            yield from self.jax_executor.warm_up()

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        observe: Callable[[int, int], None] = lambda done, now: None,
    ) -> None:
        """Runs to the end, or until `should_stop`; see `Engine.run`."""
        if self.jax_executor is not None:
            self.engine.clock = WallClock()  # the run starts now, not when compilation did
        self.engine.run(should_stop=should_stop, observe=observe)

    def records(self) -> Records:
        """Everything logged so far, with the cost model's columns."""
        import polars as pl

        log, scheduler = self.engine.log, self.engine.scheduler
        steps = log.step_columns(scheduler.pool.num_pages)
        steps |= cost_columns(steps, self.facts.model, self.facts.cluster, self.experiment.precision, self.calibration)
        requests: dict[str, Any] = dict(log.request_columns())
        rows = np.array(requests["request"], dtype=np.int64)
        requests["session"] = None if self.trace.session is None else self.trace.session[rows]
        frame = (
            pl.DataFrame(requests) if len(rows) else pl.DataFrame(requests, schema=dict.fromkeys(requests, pl.Float64))
        )
        return Records(steps=pl.DataFrame(steps), requests=frame, event_lines=log.event_lines)

    def outputs(self) -> Iterator[Mapping[str, Any]]:
        """What a real run generated: one mapping a request with ids, log-probabilities and, with a tokenizer, text."""
        if self.jax_executor is None:
            return
        book = self.jax_executor.book
        for index, ids in sorted(book.outputs.items()):
            entry: dict[str, Any] = {"request": index, "output_ids": ids, "logprobs": book.logprobs[index]}
            if self.trace.texts is not None:
                entry["prompt"] = self.trace.texts[index]
            if self.tokenizer is not None:
                entry["text"] = self.tokenizer.decode(ids)
            yield entry


def prepare(experiment: Experiment) -> Replay:
    """Reads what an experiment names and builds the engine.

    Raises:
      ConfigError, TraceError, WeightsError, CapacityError: whatever is wrong, before anything runs.
    """
    facts = resolve(experiment)
    choice = choose_executor(experiment.executor, facts.model, facts.cluster, experiment.precision)
    tokenizer = _tokenizer(experiment)
    trace = open_trace(experiment.trace, tokenizer.encode if tokenizer else None)
    pricing = experiment.pricing
    calibration = constants_for(facts.cluster.chip, experiment.precision, pricing.mode, pricing.stack, pricing.table)
    config = experiment.engine
    pages = config.num_pages or num_pages(
        facts.model,
        facts.cluster,
        experiment.precision,
        page_tokens=config.page_tokens,
        hbm_utilization=config.hbm_utilization,
        max_step_tokens=config.max_step_tokens,
        max_seqs=config.max_seqs,
    )
    jax_executor, fingerprint = None, None
    clock: Clock = VirtualClock()
    executor: Executor
    if choice.executor == "jax":
        weights = _weights(experiment, facts)
        fingerprint = weights.fingerprint()
        executor = jax_executor = _jax_executor(experiment, facts, trace, weights, pages, tokenizer)
        clock = WallClock()
    else:
        pricer = pricer_for(facts.model, facts.cluster, experiment.precision, calibration, ticks_per_s=TICKS_PER_S)
        executor = RooflineExecutor(facts.model, facts.cluster, experiment.precision, calibration, pricer)
    load = open_load(experiment.trace, trace, to_ticks)
    engine = build_engine(config, facts.model, trace, pages, executor, clock, load)
    return Replay(
        experiment=experiment,
        facts=facts,
        choice=choice,
        trace=trace,
        engine=engine,
        load=load,
        calibration=calibration,
        jax_executor=jax_executor,
        tokenizer=tokenizer,
        weights_fingerprint=fingerprint,
    )


def simulated_twin(replay: Replay, executor: Executor) -> Replay:
    """The same trace, scheduler and pool as a replay's, on a virtual clock with another executor; not yet run."""
    experiment, trace = replay.experiment, replay.trace
    load = open_load(experiment.trace, trace, to_ticks)
    pages = replay.engine.scheduler.pool.num_pages
    return Replay(
        experiment=experiment,
        facts=replay.facts,
        choice=Choice("roofline", "simulated to be compared with a real run", replay.choice.device_kind),
        trace=trace,
        engine=build_engine(experiment.engine, replay.facts.model, trace, pages, executor, VirtualClock(), load),
        load=load,
        calibration=replay.calibration,
        jax_executor=None,
        tokenizer=replay.tokenizer,
        weights_fingerprint=replay.weights_fingerprint,
    )


def build_engine(
    config: EngineConfig, model: ModelSpec, trace: Trace, pages: int, executor: Executor, clock: Clock, load: Load
) -> Engine:
    """An engine over a trace with a given executor, clock and load."""
    log = RunLog(len(trace))
    scheduler = Scheduler(
        config,
        num_pages=pages,
        max_context_tokens=_context_tokens(config, model),
        log=log,
        window_tokens=model.sliding_window_tokens,
    )
    return Engine(
        scheduler=scheduler,
        executor=executor,
        load=load,
        clock=clock,
        log=log,
        request_of=_requests_of(trace),
    )


def _context_tokens(config: EngineConfig, model: ModelSpec) -> int:
    """The most prompt and output tokens of a request, by the config and the model."""
    return min(config.max_context_tokens or model.max_context_tokens, model.max_context_tokens)


def trace_fingerprint(trace: Trace) -> str:
    """A hash of what the engine sees of a trace: times, lengths, prefixes and ids."""
    digest = hashlib.sha256()
    for column in (
        trace.arrival_s,
        trace.prompt_tokens,
        trace.output_tokens,
        trace.session,
        trace.client,
        trace.priority,
    ):
        digest.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
    for ragged in (trace.prefix_hashes, trace.prompt_ids):
        digest.update(b"-" if ragged is None else ragged.offsets.tobytes() + ragged.values.tobytes())
    return digest.hexdigest()


def _requests_of(trace: Trace) -> Callable[[int, int], Request]:
    prompts, outputs = trace.prompt_tokens.tolist(), trace.output_tokens.tolist()
    clients = [0] * len(trace) if trace.client is None else trace.client.tolist()
    priorities = [0] * len(trace) if trace.priority is None else trace.priority.tolist()

    def request_of(row: int, arrival_ticks: int) -> Request:
        return Request(
            index=row,
            arrival_ticks=arrival_ticks,
            prompt_tokens=prompts[row],
            output_tokens=outputs[row],
            client=clients[row],
            priority=priorities[row],
        )

    return request_of


def _tokenizer(experiment: Experiment) -> "Tokenizer | None":
    """The tokenizer beside the weights; None where there is none, which only prompts as text need."""
    if experiment.weights is None:
        return None
    from nanoserve.weights.open import is_gguf, locate
    from nanoserve.weights.tokenizer import open_tokenizer

    path = locate(experiment.weights)
    if not is_gguf(path) and not ((path if path.is_dir() else path.parent) / "tokenizer.json").is_file():
        return None
    return open_tokenizer(experiment.weights)


def _weights(experiment: Experiment, facts: Facts) -> "TensorSource":
    if experiment.weights is None:
        from nanoserve.weights.random import RandomTensors

        return RandomTensors(facts.model, experiment.seed)
    from nanoserve.weights.open import open_weights

    return open_weights(experiment.weights, facts.model)


def _jax_executor(
    experiment: Experiment,
    facts: Facts,
    trace: Trace,
    weights: "TensorSource",
    pages: int,
    tokenizer: "Tokenizer | None",
) -> "JaxExecutor":
    from nanoserve.executors.jax_build import attention_here, build_jax_executor, ladders_for, load_model
    from nanoserve.executors.jax_executor import RequestSampling
    from nanoserve.executors.tokens import TokenBook

    cluster, config, how = facts.cluster, experiment.engine, experiment.sampling
    ways = cluster.count * cluster.chip.jax_devices_per_chip
    stop_ids = () if how.ignore_eos or tokenizer is None else tokenizer.eos_ids
    sampling = RequestSampling.uniform(
        len(trace),
        temperature=how.temperature,
        top_k=how.top_k,
        top_p=how.top_p,
        min_p=how.min_p,
        seed=experiment.seed,
    )
    book = TokenBook(_prompts_of(trace, facts.model.vocab, experiment.seed), stop_ids)
    most_tokens = min(_context_tokens(config, facts.model), pages * config.page_tokens)
    ladders = ladders_for(trace, config, most_tokens)
    attention = attention_here(experiment.attention, facts.model, experiment.precision, config, ladders, ways)
    loaded = load_model(facts.model, weights, experiment.precision, ways=ways, attention=attention)
    return build_jax_executor(loaded, config, pages, ladders, book, sampling, experiment.seed)


def _prompts_of(trace: Trace, vocab: int, seed: int) -> Callable[[int], Sequence[int] | np.ndarray]:
    """Prompt ids of the trace; where it has only lengths, ids drawn from (seed, request)."""
    ids = trace.prompt_ids
    if ids is None:
        return lambda index: np.random.default_rng([seed, index]).integers(vocab, size=int(trace.prompt_tokens[index]))
    if len(ids.values) and int(ids.values.max()) >= vocab:
        raise ConfigError(
            f"trace '{trace.name}' has token id {int(ids.values.max())} and the model's vocabulary has {vocab}: its "
            "ids belong to another model. Choose that model, or simulate with --executor=roofline"
        )
    return ids.row
