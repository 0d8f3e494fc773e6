"""Calls of a batch-invariant run: every plan is the same program, padded to the most it may ever hold.

A sum's rounding depends on how it is cut into pieces, and compilers cut by shape. So the same row can come out of a
batch of 1 and of a batch of 64 with other bits, and rarely with another token. With one shape for every step a row's
bits depend on its own tokens alone: not on who shares its batch, nor on the step being a decode step or a mixed one.
What a chunk writes is not bit for bit what decoding would have written, so a request that is preempted and recomputed
keeps its tokens but not always its bits; one that is swapped keeps both.

The price is padding: `max_seqs` decode rows and a whole chunk in every step, and no loop of steps. Next: `step_calls`.
"""

from collections.abc import Iterator, Sequence

from nanoserve.engine.chunking import most_chunk_tokens
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.sequence import pages_for
from nanoserve.engine.types import Plan, Row
from nanoserve.executors.arrays import Ladders
from nanoserve.executors.step_calls import StepCalls


def one_shape_ladders(config: EngineConfig, most_tokens: int) -> Ladders:
    """The shape of every step of a config, whatever the trace.

    Args:
      config: budgets and limits. most_tokens: prompt and output of the longest request that is not refused.
    """
    chunk_tokens = most_chunk_tokens(config)
    return Ladders(
        decode_rows=(config.max_seqs,),
        prefill_tokens=(chunk_tokens,),
        prefill_rows=min(config.max_seqs, chunk_tokens),
        table_pages=pages_for(most_tokens, config.page_tokens),
        loop_steps=1,
    )


class OneShapeCalls(StepCalls):
    """Calls of one program: decode rows and chunks, some or all of them padding."""

    @property
    def programs(self) -> int:
        """One."""
        return 1

    def warm_up(self) -> Iterator[str]:
        """Compiles it and runs it once on padding rows."""
        self._mixed((), (), self._most())
        yield "mixed[{}, {}]".format(*self._most())

    def _most(self) -> tuple[int, int]:
        ladders = self._executor.ladders
        return ladders.decode_rows[-1], ladders.prefill_tokens[-1]

    def _shape(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row]) -> tuple[int, int]:
        return self._most()

    def _outputs(self, plan: Plan, decode: Sequence[Row], chunks: Sequence[Row], shape: tuple[int, int]) -> tuple:
        return self._mixed(decode, chunks, shape)

    def _mixed(self, decode: Sequence[Row], chunks: Sequence[Row], shape: tuple[int, int]) -> tuple:
        executor, arrays = self._executor, self._executor.arrays
        rows, tokens = shape
        prefill = arrays.prefill(chunks, tokens, executor.book)
        return executor.run(executor.steps.mixed, arrays.decode(decode, rows), prefill)
