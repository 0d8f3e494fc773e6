"""Programs compiled several at a time before a run runs each of them once.

XLA compiles without Python's lock, so while one thread traces the next program, others compile those before it. A
jitted function that is called finds what `lower(...).compile()` of the same arguments has left, so nothing is compiled
twice (`tests/executors/test_compiling_ahead.py`).

Processes that run one engine together compile one program after the other: some compilers exchange what they find out,
and must then be asked in the same order everywhere.

Next: `step_calls` (which programs there are), `jax_executor` (who warms up).
"""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

import jax

from nanoserve.executors.step_calls import Calls, Device

if TYPE_CHECKING:
    from nanoserve.model.params import Params
    from nanoserve.model.step import DeviceState


class Ready(Device, Protocol):
    """A device with everything that its programs take (`jax_executor.JaxExecutor`)."""

    params: "Params"
    state: "DeviceState"
    key: jax.Array
    put: Callable[[Any], Any]


def warmed_up(executor: Ready, calls: Calls) -> Iterator[str]:
    """What `calls.warm_up()` does and yields, every program compiled before it is run.

    Args:
      executor: whose programs. calls: of the executor; those that cannot be made for another device are compiled one
        after the other.
    """
    lowering = _Lowering(executor)
    ahead = calls.on(lowering)
    if ahead is None or jax.process_count() > 1:
        yield from calls.warm_up()
        return
    threads = ThreadPoolExecutor(os.cpu_count())
    try:
        # A list: every program is on its way before the first is waited for.
        compiled: list[Future] = [threads.submit(lowering.newest.compile) for _ in ahead.warm_up()]
        running = calls.warm_up()
        for program in compiled:
            program.result()
            yield next(running)
    finally:
        threads.shutdown(cancel_futures=True)  # a run that is stopped does not wait for programs that nobody began


class _Lowering:
    """What calls need of an executor; to run a step is to lower it for the executor's own arrays."""

    newest: jax.stages.Lowered

    def __init__(self, executor: Ready):
        self.steps, self.arrays, self.ladders = executor.steps, executor.arrays, executor.ladders
        self.book, self.ledger, self.max_seqs = executor.book, executor.ledger, executor.max_seqs
        self._executor = executor

    def run(self, step: Callable[..., tuple], *arrays, **options) -> tuple:
        """Lowers an entry point of the model."""
        executor = self._executor
        placed = executor.put(arrays)
        self.newest = step.lower(  # type: ignore[attr-defined]
            executor.params, executor.state, *placed, executor.key, **options
        )
        return ()
