"""A short trace, executed on the device and simulated twice: how far off is the simulator, and what is it off by.

The engine, the scheduler, the load and the warm-up are those of any run. One simulation is priced by the cost model,
with constants fitted to what earlier parts of this file measured on the same device (`BENCH`): single operations and
whole steps, none of this run. The other is priced with times of the run's own compiled programs, each taken once before
and once after it (`PROGRAMS`): what is left of its errors is not the cost model's. Requests have random prompts of the
trace's lengths, and every token that the trace asks for is generated.

Next: `replay_cases` (what is replayed), `replay_run` (how), `replay_figures` (what is compared).
"""

from collections.abc import Mapping, Sequence

from experiments.bench.parts import Context, replay_cases
from experiments.bench.parts.replay_cases import ReplayCase
from experiments.bench.parts.replay_figures import BENCH, FIGURES, PROGRAMS
from experiments.bench.results_file import Record
from nanoserve.report.units import share, time

NAME = "replay"


def cases(toy: bool) -> Sequence[ReplayCase]:
    """The replays."""
    return replay_cases.cases(toy)


def measure(case: ReplayCase, context: Context) -> Record:
    """The run's own figures, and what each simulation made of it.

    Raises:
      ConfigError: the device cannot execute the experiment. Exception: whatever else stands in the way.
    """
    from experiments.bench.parts.replay_run import run_and_simulate

    return run_and_simulate(case.experiment(context.chip.name), context)


def columns(record: Record) -> Mapping[str, str]:
    """The cells of a line: the run's time, and what the simulation by the bench is off by."""
    errors = record["simulated"][BENCH]["errors"]
    cells = {"finished": f"{record['finished']} of {record['requests']}", "the run": time(record["real"]["total_s"])}
    cells |= {heading: _off(errors[name]) for name, heading in FIGURES.items()}
    programs = record["simulated"][PROGRAMS]["errors"]["total_s"]
    return cells | {"total by programs": _off(programs), "host gap": share(record["host_gap_share"])}


def _off(error: float | None) -> str:
    return "" if error is None else f"{error:+.1%}"
