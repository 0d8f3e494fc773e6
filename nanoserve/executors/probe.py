"""Times the compiled programs of a JAX executor, a few calls each: what `roofline.program_pricing` prices with.

Each program is called the way a run calls it, plan by plan, so that the host's work on either side is in its time.
Programs that attend to KV are called with little of it and with much. Settings take turns, so that a slow moment of the
machine falls on many of them once; it stays in the mean, because a run has such moments too. The executor's pages are
written over: nothing else may run.
"""

import dataclasses
import statistics
from collections.abc import Iterator, Sequence

from nanoserve.engine.sequence import pages_for
from nanoserve.engine.types import Kind, Plan, Row, to_seconds
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.tokens import TokenBook
from nanoserve.roofline.counts import StepCounts, causal_pairs
from nanoserve.roofline.program_pricing import Measured, Program

ROUNDS = 3
_FEW_STEPS = 2  # of a loop, beside the most: its call and its steps are told apart


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One call to time: decode rows with `past` positions each, and one chunk that ends at `chunk_end`."""

    program: Program
    steps: int = 1
    past: int = 0
    chunk_end: int = 0


def settings(executor: JaxExecutor, page_tokens: int) -> list[Setting]:
    """Returns what to time of an executor's programs: each program, with little KV and, where no sum gives it, much."""
    ladders = executor.ladders
    most = ladders.table_pages * page_tokens
    deep = max(0, most - ladders.loop_steps)
    found = []
    for rows in ladders.decode_rows:
        found += [Setting(program=Program(rows), past=past) for past in sorted({0, deep})]
        if ladders.loop_steps > 1:
            loop = Program(rows, loops=True)
            found += [Setting(program=loop, steps=ladders.loop_steps, past=past) for past in sorted({0, deep})]
            found.append(Setting(program=loop, steps=min(_FEW_STEPS, ladders.loop_steps)))
    for tokens in ladders.prefill_tokens:
        chunk = min(tokens, most)
        alone = Program(0, tokens)
        found += [Setting(program=alone, chunk_end=end) for end in sorted({chunk, most})]
        found += [Setting(program=Program(rows, tokens), chunk_end=chunk) for rows in ladders.decode_rows]
    return found


def measure(executor: JaxExecutor, page_tokens: int, num_pages: int, rounds: int = ROUNDS) -> Iterator[list[Measured]]:
    """Times every setting once a round; yields all means so far after each round.

    Args:
      executor: warmed up, with nothing in flight. page_tokens, num_pages: of its pool.
    """
    asked = settings(executor, page_tokens)
    seconds: list[list[float]] = [[] for _ in asked]
    book = executor.book
    try:
        for _ in range(rounds):
            for place, setting in enumerate(asked):
                seconds[place].append(_seconds_of(executor, _plan(setting, page_tokens, num_pages)))
            yield [_measured(setting, statistics.fmean(took)) for setting, took in zip(asked, seconds, strict=True)]
    finally:
        executor.book = book


def _seconds_of(executor: JaxExecutor, plan: Plan) -> float:
    """Runs a plan of requests that have a book of their own."""
    rows = plan.rows()
    prompts = {row.index: [0] * (row.start + row.new_tokens) for row in rows}
    executor.book = TokenBook(prompts.__getitem__)
    for index in prompts:
        executor.book.slice(index, 0, 0)  # opens it, as its first chunk would
    return to_seconds(executor.submit(plan).result().duration_ticks)


def _measured(setting: Setting, seconds: float) -> Measured:
    counts = _counts(setting)
    return Measured(
        program=setting.program,
        steps=setting.steps,
        decode_kv_tokens=counts.decode_kv_tokens,
        prefill_kv_tokens=counts.prefill_kv_tokens,
        seconds=seconds,
    )


def _counts(setting: Setting) -> StepCounts:
    rows, tokens, steps = setting.program.decode_rows, setting.program.prefill_tokens, setting.steps
    chunk = min(tokens, setting.chunk_end)
    return StepCounts(
        steps=steps,
        decode_seqs=rows,
        decode_kv_tokens=rows * (steps * (setting.past + 1) + steps * (steps - 1) // 2),
        prefill_seqs=int(chunk > 0),
        prefill_tokens=chunk,
        prefill_pairs=causal_pairs(setting.chunk_end - chunk, chunk),
        prefill_kv_tokens=setting.chunk_end,
        sampled=steps * rows + int(chunk > 0),
    )


def _plan(setting: Setting, page_tokens: int, num_pages: int) -> Plan:
    """A plan whose rows share the pool's pages where it has too few: what they hold does not matter."""
    counts = _counts(setting)
    kind = Kind.DECODE if not counts.prefill_tokens else Kind.MIXED if counts.decode_seqs else Kind.PREFILL
    rows = [
        _row(index, setting.past, 1, setting.past + setting.steps, page_tokens, num_pages)
        for index in range(counts.decode_seqs)
    ]
    if counts.prefill_tokens:
        past = setting.chunk_end - counts.prefill_tokens
        rows.append(_row(0, past, counts.prefill_tokens, setting.chunk_end, page_tokens, num_pages))
    return Plan(0, kind, setting.steps, counts, lambda: tuple(rows))


def _row(index: int, start: int, new_tokens: int, end: int, page_tokens: int, num_pages: int) -> Row:
    pages: Sequence[int] = [(index + page) % num_pages for page in range(pages_for(end, page_tokens))]
    return Row(index, index, start, new_tokens, True, pages, 0)
