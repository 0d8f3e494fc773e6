"""How a run of any kind is carried out: programs compiled, what comes before, then the engine, with progress shown."""

from typing import TYPE_CHECKING

from experiments.run_processes import One
from experiments.stop import StopSignals

if TYPE_CHECKING:
    from experiments.run_compared import Alone
    from experiments.run_snapshots import Unkept
    from nanoserve.replay import Replay


def execute(replay: "Replay", signals: StopSignals, companion: "Alone", keeper: "Unkept", group: One) -> bool:
    """Warms up, does what comes before, and runs; returns whether the run came to its end.

    Args:
      replay: ready to run. signals: end it between two plans.
      companion: has something to do before it. keeper: may do something between two plans. group: decides when to stop.
    """
    from nanoserve.engine.types import to_seconds
    from nanoserve.report.progress import Progress

    def caught() -> bool:
        return signals.caught is not None

    stopped = group.agreeing(caught)
    with Progress(replay.programs, "compile") as progress:
        for done, program in enumerate(replay.warm_up(), start=1):
            progress.update(done, program=program)
            if stopped():
                return False
    companion.before(replay)
    with Progress(len(replay.trace), "requests") as progress:
        replay.run(
            should_stop=group.agreeing(keeper.stopping(caught)),
            observe=keeper.observing(
                lambda done, now: progress.due() and progress.update(done, clock_s=to_seconds(now))
            ),
        )
    return signals.caught is None
