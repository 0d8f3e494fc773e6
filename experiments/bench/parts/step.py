"""Whole steps, as the engine runs them: their time, what they reach of the chip, and what the cost model says.

A decode step's `time` is that of a step in a loop of `LOOP_STEPS` that is one plan of the engine: from the scheduler's
rows until every token is booked on the host, nothing hidden behind another plan. A shorter loop beside it tells what
the device alone needs (the slope between the two) from what each plan costs besides (the host gap); `single`, where it
is there, is the same step as a plan of its own. A prefill step's `time` is likewise until its token is booked; its
device time is taken from `QUEUED` plans that are all given to the device before the first is waited for.

Next: `step_cases`, `step_ready`, `step_account` (FLOPs, bytes, predictions).
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from experiments.bench.attention_timing import Effort, Timeable, Timed, take_turns
from experiments.bench.parts import Context
from experiments.bench.parts.step_account import account
from experiments.bench.parts.step_cases import StepCase, catalogue, toy_catalogue
from experiments.bench.results_file import Record
from nanoserve.report.units import share, short, time

if TYPE_CHECKING:
    from experiments.bench.parts.step_ready import Prepared

NAME = "step"
SHORT_LOOP, SINGLES, QUEUED = 9, 4, 4
BATCHES = 5
SINGLE_CONTEXT = 1024  # tokens; beyond it, a step that is a plan of its own is not worth another program


def cases(toy: bool) -> Sequence[StepCase]:
    """The steps."""
    return toy_catalogue() if toy else catalogue()


def measure(case: StepCase, context: Context) -> Record:
    """A step's time, and what follows from it.

    Raises:
      ConfigError: the step does not fit the device, or cannot be executed on it.
      Exception: whatever else stands in the way.
    """
    from experiments.bench.parts.step_ready import prepare

    ready = prepare(case, context)
    timed = times(ready, context)
    step_s = timed["time"]["median_s"]
    sampled = case.rows if case.kind == "decode" else case.new_tokens
    return {
        **timed,
        "attention": ready.attention,
        "tokens_per_s": sampled / step_s,
        **account(case, context, step_s),
        "counts": dataclasses.asdict(case.counts),
    }


def columns(record: Record) -> Mapping[str, str]:
    """The cells of a line."""
    predicted = record["predicted"]
    return {
        "a step": time(record["time"]["median_s"]),
        "tokens/s": short(record["tokens_per_s"]),
        "MFU": share(record["mfu"]),
        "MBU": share(record["mbu"]),
        "host gap": share(record["host_gap_share"]),
        "single step": time(record["single"]["median_s"]) if "single" in record else "",
        "sol": time(predicted["sol_s"]),
        "calibrated": time(predicted["calibrated_s"]),
    }


def times(ready: "Prepared", context: Context) -> Record:
    """A step's times alone, of a step that is ready to run.

    Raises:
      Exception: whatever stands in the way; what it computes is not numbers.
    """
    effort = dataclasses.replace(context.effort, batches=BATCHES, programs=1)
    timed = (_decode_times if ready.case.kind == "decode" else _prefill_times)(ready, effort, context)
    ready.check()
    return timed


def _decode_times(ready, effort: Effort, context: Context) -> Record:
    """Of one step in a loop, and by itself where the context is short: what the host costs does not depend on it."""
    from experiments.bench.parts.step_ready import LOOP_STEPS

    ways = {
        "long": _timeable(lambda: ready.result(LOOP_STEPS), LOOP_STEPS),
        "short": _timeable(lambda: ready.result(SHORT_LOOP), SHORT_LOOP),
    }
    if ready.case.context_tokens <= SINGLE_CONTEXT:
        ways["single"] = _timeable(lambda: [ready.once() for _ in range(SINGLES)], SINGLES)
    timed = _all(take_turns(ways, effort, context.clock))
    record = decode_record(timed["long"], timed["short"], LOOP_STEPS)
    return record | ({"single": timed["single"].record()} if "single" in timed else {})


def decode_record(long: Timed, short: Timed, steps: int) -> Record:
    """What the times of a step in two loops say together.

    Args:
      long, short: of a step in a loop of `steps`, and of `SHORT_LOOP`. steps: of the longer.
    """
    whole_s, device_s = steps * long.median_s, _slope_s(long.median_s * steps, short.median_s * SHORT_LOOP, steps)
    gap_s = max(0.0, whole_s - steps * device_s) / steps
    return {
        "time": long.record(),
        "loop_steps": steps,
        "short_loop": short.record(),
        "short_loop_steps": SHORT_LOOP,
        "device_step_s": device_s,
        "host_gap_s": gap_s,
        "host_gap_share": gap_s / long.median_s,
    }


def _slope_s(long_s: float, short_s: float, steps: int) -> float:
    """What one more step costs."""
    return (long_s - short_s) / (steps - SHORT_LOOP)


def _prefill_times(ready, effort: Effort, context: Context) -> Record:
    """Of a chunk that is waited for, and of several in a queue."""
    ways = {"alone": _timeable(ready.once, 1), "queued": _timeable(lambda: ready.results(QUEUED), QUEUED)}
    timed = _all(take_turns(ways, effort, context.clock))
    alone, queued = timed["alone"], timed["queued"]
    gap_s = max(0.0, alone.median_s - queued.median_s)
    return {
        "time": alone.record(),
        "queued": queued.record(),
        "device_step_s": min(queued.median_s, alone.median_s),
        "host_gap_s": gap_s,
        "host_gap_share": gap_s / alone.median_s,
    }


def _timeable(run, steps: int) -> Timeable:
    """Something that is done when it returns."""
    return Timeable(run, lambda: None, steps)


def _all(timed: Mapping[str, Timed | Exception]) -> dict[str, Timed]:
    """The times, where nothing was raised.

    Raises:
      Exception: what the first one raised.
    """
    for outcome in timed.values():
        if isinstance(outcome, Exception):
            raise outcome
    return {name: outcome for name, outcome in timed.items() if isinstance(outcome, Timed)}
