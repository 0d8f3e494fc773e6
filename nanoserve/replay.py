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

from nanoserve.building import (
    Member,
    Pool,
    build_engine,
    jax_executors,
    kv_facts_of,
    open_tokenizer_of,
    open_weights_of,
    pools_of,
    priced_executors,
)
from nanoserve.driving import engines_of, runner_of
from nanoserve.engine.clock import VirtualClock, WallClock
from nanoserve.engine.engine import Engine
from nanoserve.engine.fleet import Fleet
from nanoserve.engine.spool import MemorySpool
from nanoserve.engine.tape import Tape, record
from nanoserve.engine.types import Executor, to_ticks
from nanoserve.executors.choose import Choice, choose_executor
from nanoserve.experiment import Experiment, Facts, resolve
from nanoserve.report.file_spool import FileSpool
from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.records import cost_columns
from nanoserve.roofline.split import split_of
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.load import ClosedLoop, OpenLoop
from nanoserve.trace.source import open_load, open_trace
from nanoserve.trace.types import Trace

if TYPE_CHECKING:
    import polars as pl

    from nanoserve.executors.jax_executor import JaxExecutor
    from nanoserve.weights.types import Tokenizer


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
        members: Sequence[Member],
        runner: Engine | Fleet,
        load: OpenLoop | ClosedLoop,
        jax_executors: "Sequence[JaxExecutor]",
        tokenizer: "Tokenizer | None",
        weights_fingerprint: str | None,
    ):
        """Made by `prepare`: `runner` is the one engine, or the fleet that drives the members' engines."""
        self.experiment, self.facts, self.choice, self.trace = experiment, facts, choice, trace
        self.members, self.runner, self.load, self.jax_executors = members, runner, load, jax_executors
        self.tokenizer, self.weights_fingerprint = tokenizer, weights_fingerprint

    @property
    def engine(self) -> Engine:
        """The only engine.

        Raises:
          ConfigError: there are several.
        """
        if len(self.members) > 1:
            raise ConfigError(
                f"this works on one engine, and the experiment has {len(self.members)}: leave 'data' out of "
                "Cluster.mesh, and Disaggregation off"
            )
        return self.members[0].engine

    @property
    def pools(self) -> list[Pool]:
        """The pools of the members, each once."""
        return list({id(member.pool): member.pool for member in self.members}.values())

    @property
    def jax_executor(self) -> "JaxExecutor | None":
        """That of the first engine; None where steps are simulated."""
        return self.jax_executors[0] if self.jax_executors else None

    @property
    def calibration(self) -> Calibration:
        """The constants of the first pool."""
        return self.members[0].pool.calibration

    @property
    def programs(self) -> int:
        """How many programs `warm_up` will compile."""
        return sum(executor.programs for executor in self.jax_executors)

    @property
    def attention(self) -> str:
        """Which implementation of attention a real run uses, and why; empty for a simulated one."""
        return "" if self.jax_executor is None else self.jax_executor.attention

    @property
    def issued(self) -> int:
        """Requests that the load has sent, by its own count: what conservation is checked against."""
        return len(self.trace) - self.load.remaining

    def record(self) -> Tape | None:
        """Lets a real engine that is still fresh note what it is told, so that its run can be repeated (`engine.tape`).

        None for a simulated one, which repeats itself, and for replicas on a wall clock, which nobody can repeat.
        """
        single = self.jax_executors and len(self.members) == 1
        return record(self.engine, FileSpool) if single else None

    def warm_up(self) -> Iterator[str]:
        """Compiles every program of a real run, yielding their names; nothing to do for a simulated one."""
        for executor in self.jax_executors:
            yield from executor.warm_up()

    def run(
        self,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        observe: Callable[[int, int], object] = lambda done, now: None,
    ) -> None:
        """Runs to the end, or until `should_stop`; see `Engine.run` and `Fleet.run`."""
        self.runner.run(should_stop=should_stop, observe=observe)

    def records(self) -> Records:
        """Everything logged so far, with the cost model's columns."""
        import polars as pl

        log = self.members[0].engine.log
        requests: dict[str, Any] = dict(log.request_columns())
        rows = np.array(requests["request"], dtype=np.int64)
        requests["session"] = None if self.trace.session is None else self.trace.session[rows]
        if isinstance(self.runner, Fleet):
            requests |= self.runner.request_columns(requests["request"])
        frame = (
            pl.DataFrame(requests) if len(rows) else pl.DataFrame(requests, schema=dict.fromkeys(requests, pl.Float64))
        )
        return Records(steps=self._steps(), requests=frame, event_lines=log.event_lines)

    def _steps(self) -> "pl.DataFrame":
        """The plans of every engine, by their start."""
        import polars as pl

        tables = [pl.DataFrame(step_columns(member)) for member in self.members]
        if len(tables) == 1:
            return tables[0]
        for number, (table, member) in enumerate(zip(tables, self.members, strict=True)):
            chips = split_of(member.pool.cluster).replica_chips
            tables[number] = table.with_columns(
                pl.lit(number).alias("replica"), pl.lit(member.pool.name).alias("pool"), pl.lit(chips).alias("chips")
            )
        return pl.concat(tables).sort("start_s", "replica")

    def outputs(self) -> Iterator[Mapping[str, Any]]:
        """What a real run generated: one mapping a request with ids, log-probabilities and, with a tokenizer, text."""
        if self.jax_executor is None:
            return
        book = self.jax_executor.book
        for index, ids, logprobs in sorted(book.records()):
            entry: dict[str, Any] = {"request": index, "output_ids": ids, "logprobs": logprobs}
            if self.trace.texts is not None:
                entry["prompt"] = self.trace.texts[index]
            if self.tokenizer is not None:
                entry["text"] = self.tokenizer.decode(ids)
            yield entry


def step_columns(member: Member) -> dict[str, np.ndarray]:
    """The plans of one engine, with the cost model's columns."""
    pool = member.pool
    steps = member.engine.log.step_columns(member.engine.scheduler.pool.num_pages)
    return steps | cost_columns(steps, pool.model, pool.cluster, pool.precision, pool.calibration)


def prepare(experiment: Experiment, trace: Trace | None = None) -> Replay:
    """Reads what an experiment names and builds the engine.

    Args:
      experiment: what to run. trace: its requests, where they are not those that `experiment.trace` names.

    Raises:
      ConfigError, TraceError, WeightsError, CapacityError: whatever is wrong, before anything runs.
    """
    facts = resolve(experiment)
    beside = [] if facts.decode is None else [facts.decode.cluster]
    choice = choose_executor(experiment.executor, facts.model, facts.cluster, experiment.precision, *beside)
    if choice.executor == "jax":
        _check_executed(experiment)
    elif experiment.faults.line:
        choice = dataclasses.replace(choice, line=f"{choice.line}; {experiment.faults.line}")
    tokenizer = open_tokenizer_of(experiment)
    if trace is None:
        trace = open_trace(experiment.trace, tokenizer.encode if tokenizer else None)
    pools = pools_of(experiment, facts)
    fingerprint, real = None, []
    if choice.executor == "jax":
        if trace.answer_tokens is not None:
            raise ConfigError(
                "TraceSource.stated_limit_tokens says where simulated answers end; in an executed run the model does. "
                "Leave it out, or simulate with --executor=roofline"
            )
        weights = open_weights_of(experiment, facts)
        fingerprint = weights.fingerprint()
        real = list(jax_executors(experiment, pools, trace, weights, tokenizer))
    load = open_load(experiment.trace, trace, to_ticks)
    clock = WallClock() if real else VirtualClock()
    executors, spool = (real, FileSpool) if real else (priced_executors(pools, trace, experiment.seed), MemorySpool)
    members = engines_of(trace, load, clock, executors, spool, real[0][1].book if real else None)
    return Replay(
        experiment=experiment,
        facts=facts,
        choice=choice,
        trace=trace,
        members=members,
        runner=runner_of(experiment, trace, members, load, clock, [executor for _, executor in real]),
        load=load,
        jax_executors=[executor for _, executor in real],
        tokenizer=tokenizer,
        weights_fingerprint=fingerprint,
    )


def _check_executed(experiment: Experiment) -> None:
    """Refuses what only a simulation can do."""
    if experiment.engine.keep_session_s:
        raise ConfigError(
            f"Engine.keep_session_s = {experiment.engine.keep_session_s}: kept KV is taken to be what the next turn "
            "begins with, and tokens that a model really generates are not those of the trace. Use "
            "Engine.prefix_cache, which looks at the tokens, or simulate with --executor=roofline"
        )
    if experiment.faults.line:
        raise ConfigError("Faults are planted in simulated runs only: simulate with --executor=roofline")


def simulated_twin(replay: Replay, executor: Executor, trace: Trace | None = None) -> Replay:
    """A replay's scheduler and pool on a virtual clock with another executor, or another trace too; not yet run."""
    experiment, trace = replay.experiment, trace or replay.trace
    load, pool = open_load(experiment.trace, trace, to_ticks), replay.members[0].pool
    pages = replay.engine.scheduler.pool.num_pages
    facts = kv_facts_of(pool, trace, replay.jax_executor and replay.jax_executor.book.reread())
    clock = VirtualClock()
    engine = build_engine(experiment.engine, replay.facts.model, trace, pages, executor, clock, load, facts=facts)
    return Replay(
        experiment=experiment,
        facts=replay.facts,
        choice=Choice("roofline", "simulated to be compared with a real run", replay.choice.device_kind),
        trace=trace,
        members=[Member(engine=engine, pool=pool)],
        runner=engine,
        load=load,
        jax_executors=(),
        tokenizer=replay.tokenizer,
        weights_fingerprint=replay.weights_fingerprint,
    )


def trace_fingerprint(trace: Trace) -> str:
    """A hash of what the engine sees of a trace: times, lengths, prefixes and ids."""
    digest = hashlib.sha256()
    for column in (
        trace.arrival_s,
        trace.prompt_tokens,
        trace.output_tokens,
        trace.answer_tokens,
        trace.session,
        trace.client,
        trace.priority,
    ):
        digest.update(b"-" if column is None else np.ascontiguousarray(column).tobytes())
    for ragged in (trace.prefix_hashes, trace.prompt_ids):
        digest.update(b"-" if ragged is None else ragged.offsets.tobytes() + ragged.values.tobytes())
    return digest.hexdigest()
