"""Measures the host's own work for a decode plan: what an accelerator waits for, if nothing hides it.

    python experiments/bench/host_gap.py
    python experiments/bench/host_gap.py --rows=128 --plans=1000 --out=host_gap.json

The engine, its scheduler and the executor are the real ones; the model's steps are compiled programs of the same
arguments and results that compute nothing, so what is left is the host. Seconds are CPU time of the engine's thread per
plan; parts are medians, each measured around calls, which costs about a microsecond a call. A plan of k steps is one
call, so a step's share is the k-th part. Exit code 0: measured. 2: something the user can mend.
"""

import dataclasses
import functools
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that a bare checkout runs without installing

from experiments import command
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.engine import Engine
from nanoserve.report.progress import Progress
from nanoserve.report.units import time as in_words
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec

if TYPE_CHECKING:
    from nanoserve.executors.jax_executor import JaxExecutor
    from nanoserve.model.step import Steps
    from nanoserve.trace.types import Trace

RESULTS = Path(__file__).parent / "results" / "host_gap.json"
PROMPT_TOKENS, PAGE_TOKENS, MODEL = 20, 16, "tiny-llama"
HORIZONS = (1, 16)
COUNTS = {
    "host_s": "CPU time of the engine's thread from the first plan to the last, over the number of plans",
    "step_s": "the same over the number of steps",
    "parts_s": "medians: plan (scheduler), sync (page tables), arrays, call (of the compiled program), submit (these "
    "three and rows, counting padding, starting copies of results), result (fetch and book tokens), apply (scheduler)",
}


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(arguments, __doc__, _flags, functools.partial(_command, ["python", *arguments]))


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_integer("rows", 32, "sequences that decode together", flag_values=own)
    flags.DEFINE_integer("plans", 400, "plans of each horizon", flag_values=own)
    flags.DEFINE_string("out", str(RESULTS), "file to write", flag_values=own)


def _command(line: Sequence[str], asked: flags.FlagValues) -> int:
    if asked.rows < 1 or asked.plans < 10:
        raise ConfigError("--rows must be at least 1, and --plans at least 10")
    from experiments.bench.host import machine

    results = []
    with Progress(len(HORIZONS), "measure") as progress:
        for done, horizon in enumerate(HORIZONS, start=1):
            results.append(measure(asked.rows, asked.plans, horizon))
            progress.update(done)
    for each in results:
        print(described(each))
    report = {"counts": COUNTS, "command": shlex.join(line), "machine": machine(), "results": results}
    command.write_json("--out", Path(asked.out), report)
    return 0


def described(result: dict[str, Any]) -> str:
    """A line for a person."""
    parts = ", ".join(f"{name} {in_words(seconds)}" for name, seconds in result["parts_s"].items())
    return (
        f"{result['rows']} rows, {result['horizon']} steps a plan: {in_words(result['host_s'])} a plan, "
        f"{in_words(result['step_s'])} a step ({parts})"
    )


def measure(rows: int, plans: int, horizon: int) -> dict[str, Any]:
    """Runs one batch from its prompts to its ends, and says what the host did for each plan of `horizon` steps."""
    engine = idle_engine(rows, plans * horizon + 1, horizon)
    watches = Stopwatches()
    executor = engine.executor
    for owner, name, label in (
        (engine.scheduler, "plan", "plan"),
        (executor.arrays, "sync", "sync"),  # type: ignore[attr-defined]
        (executor.arrays, "decode", "arrays"),  # type: ignore[attr-defined]
        (executor, "run", "call"),
        (executor, "submit", "submit"),
        (engine.scheduler, "apply", "apply"),
    ):
        watches.around(owner, name, label)
    watches.around_result(executor)
    began = time.thread_time_ns()
    engine.run()
    elapsed = (time.thread_time_ns() - began) * 1e-9
    steps = np.asarray(engine.log.step_columns(1)["steps"])
    return {
        "rows": rows,
        "horizon": horizon,
        "plans": len(steps),
        "host_s": elapsed / len(steps),
        "step_s": elapsed / int(steps.sum()),
        "parts_s": watches.medians(),
    }


class Stopwatches:
    """CPU time of calls, by label."""

    def __init__(self):
        """Has timed nothing yet."""
        self._seconds: dict[str, list[float]] = defaultdict(list)

    def around(self, owner: Any, name: str, label: str) -> None:
        """Times a method of one object from now on."""
        setattr(owner, name, self._timed(getattr(owner, name), label))

    def around_result(self, executor: Any) -> None:
        """Times the results of everything that is submitted from now on, which are where tokens are fetched."""
        submit = executor.submit

        def submitted(plan):
            pending = submit(plan)
            return _Pending(self._timed(pending.result, "result"))

        executor.submit = submitted

    def medians(self) -> dict[str, float]:
        """Seconds of one call, by label."""
        return {label: statistics.median(seconds) for label, seconds in self._seconds.items()}

    def _timed(self, call: Callable[..., Any], label: str) -> Callable[..., Any]:
        @functools.wraps(call)
        def timed(*arguments, **options):
            began = time.thread_time_ns()
            found = call(*arguments, **options)
            self._seconds[label].append((time.thread_time_ns() - began) * 1e-9)
            return found

        return timed


class _Pending:
    """A plan whose result is timed."""

    def __init__(self, result: Callable[[], Any]):
        self.result = result


def idle_engine(rows: int, output_tokens: int, horizon: int) -> Engine:
    """A real engine, warmed up, over requests that all come at once, on a model that computes nothing."""
    from nanoserve.building import build_engine
    from nanoserve.engine.clock import WallClock
    from nanoserve.engine.types import to_ticks
    from nanoserve.specs.model_registry import model
    from nanoserve.trace.load import OpenLoop

    most = PROMPT_TOKENS + output_tokens
    config = EngineConfig(
        max_seqs=rows,
        max_step_tokens=max(rows * PROMPT_TOKENS, 2 * rows),
        page_tokens=PAGE_TOKENS,
        max_horizon_steps=horizon,
    )
    pages = rows * (-(-most // PAGE_TOKENS) + 1)
    trace = _trace(rows, output_tokens)
    spec = dataclasses.replace(model(MODEL), max_context_tokens=most)
    executor = _executor(spec, trace, config, pages)
    for _ in executor.warm_up():
        pass
    load = OpenLoop(trace, to_ticks)
    return build_engine(config, spec, trace, pages, executor, WallClock(), load)


def _trace(rows: int, output_tokens: int) -> "Trace":
    from nanoserve.trace.types import Trace

    return Trace(
        name="host_gap",
        source="requests of equal lengths that come at once",
        arrival_s=np.zeros(rows),
        prompt_tokens=np.full(rows, PROMPT_TOKENS),
        output_tokens=np.full(rows, output_tokens),
    ).validated()


def _executor(spec: ModelSpec, trace: "Trace", config: EngineConfig, pages: int) -> "JaxExecutor":
    from nanoserve.executors.arrays import Ladders, RequestSampling
    from nanoserve.executors.jax_build import build_jax_executor, load_model
    from nanoserve.executors.tokens import TokenBook
    from nanoserve.specs.chips import Precision
    from nanoserve.weights.random import RandomTensors

    whole = Precision(weights="f32", kv="f32", activations="f32", compute="f32")
    ladders = Ladders(
        decode_rows=(config.max_seqs,),
        prefill_tokens=(config.max_step_tokens,),
        prefill_rows=config.max_seqs,
        table_pages=-(-pages // config.max_seqs),
        loop_steps=config.max_horizon_steps,
    )
    book = TokenBook(lambda index: [0] * PROMPT_TOKENS)
    loaded = load_model(spec, RandomTensors(spec, 0), whole)
    sampling = RequestSampling.uniform(len(trace))
    executor = build_jax_executor(loaded, config, pages, ladders, book, sampling, seed=0)
    executor.steps = idle_steps()
    return executor


def idle_steps() -> "Steps":
    """Compiled entry points with the arguments and results of a model's, which compute nothing."""
    import jax
    import jax.numpy as jnp

    from nanoserve.model.step import Steps

    def sampled(*shape: int):
        return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.float32)

    def prefill(params, state, prefill, key):
        return state, *sampled(len(prefill.slots_R))

    def decode(params, state, decode, key):
        return state, *sampled(len(decode.slots_B))

    def mixed(params, state, decode, prefill, key):
        return state, *sampled(len(decode.slots_B) + len(prefill.slots_R))

    def decode_loop(params, state, decode, steps, key, *, max_steps):
        return state, *sampled(max_steps, len(decode.slots_B))

    # Nothing reads the arguments: they are sent all the same, as those of a real step are.
    jitted = functools.partial(jax.jit, donate_argnames="state", keep_unused=True)
    return Steps(
        prefill=jitted(prefill),
        decode=jitted(decode),
        mixed=jitted(mixed),
        decode_loop=jitted(decode_loop, static_argnames="max_steps"),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
