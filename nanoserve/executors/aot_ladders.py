"""Compiles every program that a run's warm-up would, for chips that are not there.

`JaxExecutor.warm_up` runs each program of its ladders once on padding rows. Here a device that compiles stands where
the executor does, so the programs are the same ones, in the same order, whatever ladders come to mean. Next: `aot`
(what compiles), `step_calls` (what warms up).
"""

import dataclasses
from collections.abc import Callable, Iterator

import numpy as np

from nanoserve.executors.aot import Compiled, Compiler
from nanoserve.executors.arrays import Ladders, RequestSampling, RowArrays
from nanoserve.executors.step_calls import StepCalls
from nanoserve.executors.tokens import TokenBook


def every_program(compiler: Compiler, ladders: Ladders) -> Iterator[Compiled]:
    """Compiles the programs of ladders one after the other; each is named as `warm_up` names it.

    Args:
      compiler: of the model, whose workload has the pool and the slots. ladders: of the run.
    """
    device = _Compiling(compiler, ladders)
    for name in StepCalls(device).warm_up():
        yield dataclasses.replace(device.newest, name=name)


class _Compiling:
    """What calls need of an executor; to run a step is to compile it."""

    newest: Compiled

    def __init__(self, compiler: Compiler, ladders: Ladders):
        self.steps, self.ladders, self.max_seqs = compiler.steps, ladders, compiler.work.slots
        self.arrays = RowArrays(ladders, RequestSampling.uniform(1), self.max_seqs)
        self.book = TokenBook(lambda index: np.zeros(0, np.int32))
        self._compiler = compiler

    def ledger(self, decode_lens: np.ndarray, kv_lens: np.ndarray, q_lens: np.ndarray, tokens: int) -> int | None:
        """Nothing is gathered."""

    def run(self, step: Callable[..., tuple], *arrays, **options) -> tuple:
        """Compiles an entry point for arrays of these shapes."""
        self.newest = self._compiler.compile("", step, *arrays, **options)
        return ()
