"""Times the compiled programs of a JAX executor, a few calls each: what `roofline.program_pricing` prices with.

Each program is called the way a run calls it, plan by plan, so that the host's work on either side is in its time.
Programs that attend to KV are called with little of it and with much. A shared machine's speed drifts within seconds by
more than a price is off, so what a run is compared with is timed beside it: after each of its plans, with its clock
stopped, settings of the program that ran (`BesideRun`). Calls write to free pages and leave nothing behind.
"""

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Iterator, Sequence

from nanoserve.engine.clock import Clock
from nanoserve.engine.sequence import pages_for
from nanoserve.engine.types import Executor, Kind, Pending, Plan, Row, StepResult, to_seconds
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.tokens import TokenBook
from nanoserve.roofline.counts import StepCounts, causal_pairs
from nanoserve.roofline.program_pricing import Measured, Program

CALLS_BESIDE = 2  # after each plan: a plan's own time varies by more than its price is off
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
        found += [Setting(program=Program(rows, tokens), chunk_end=chunk) for rows in ladders.mixed_rows]
    return found


class Prober:
    """Times settings on an executor that is warmed up, while nothing of it is in flight."""

    def __init__(self, executor: JaxExecutor, page_tokens: int, free_pages: Callable[[], Sequence[int]]):
        """Has timed nothing yet.

        Args:
          executor: whose programs. page_tokens: p of its pool.
          free_pages: pages that may be written now; asked before every call.
        """
        self._executor, self._page_tokens, self._free_pages = executor, page_tokens, free_pages
        self._settings = settings(executor, page_tokens)
        self._first: dict[Setting, float] = {}
        self._beside: dict[Setting, list[float]] = {setting: [] for setting in self._settings}
        self._turns = {
            program: itertools.cycle([each for each in self._settings if each.program == program])
            for program in {setting.program for setting in self._settings}
        }

    @property
    def calls(self) -> int:
        """How many settings there are."""
        return len(self._settings)

    def all_once(self) -> Iterator[Program]:
        """Times every setting once; yields the program of each."""
        for setting in self._settings:
            self._first[setting] = self._seconds_of(setting)
            yield setting.program

    def beside(self, counts: StepCounts) -> None:
        """Times the next settings of the program that runs such a plan; not at all while every page is in use."""
        shape = self._executor.ladders.shape(counts.decode_seqs, counts.prefill_tokens)
        for setting in itertools.islice(self._turns[Program(*shape, counts.steps > 1)], CALLS_BESIDE):
            if len(self._free_pages()):
                self._beside[setting].append(self._seconds_of(setting))

    def measured(self) -> list[Measured]:
        """Means of what was timed beside a run, and the only call of what never ran in it."""
        return [
            _measured(setting, statistics.fmean(beside) if beside else self._first[setting])
            for setting, beside in self._beside.items()
        ]

    def _seconds_of(self, setting: Setting) -> float:
        """Runs a plan of requests that have a book of their own."""
        executor = self._executor
        plan = _plan(setting, self._page_tokens, self._free_pages())
        rows = plan.rows()
        prompts = {row.index: [0] * (row.start + row.new_tokens) for row in rows}
        with executor.aside(TokenBook(prompts.__getitem__)):
            for index in prompts:
                executor.book.slice(index, 0, 0)  # opens it, as its first chunk would
            return to_seconds(executor.submit(plan).result().duration_ticks)


class BesideRun:
    """A JAX executor that is timed after each of its plans, while the run's clock stands still."""

    def __init__(self, executor: Executor, prober: Prober, clock: Callable[[], Clock]):
        """Takes the executor, who times its programs, and the run's clock, which is not there yet."""
        self._executor, self._prober, self._clock = executor, prober, clock
        self.steps_before, self.release = executor.steps_before, executor.release

    def submit(self, plan: Plan) -> "BesideRun.Running":
        """Starts the run's own plan."""
        return BesideRun.Running(self, plan.counts, self._executor.submit(plan))

    @dataclasses.dataclass(frozen=True)
    class Running:
        """A plan of the run, and what to time after it."""

        owner: "BesideRun"
        counts: StepCounts
        pending: Pending

        def result(self) -> StepResult:
            """The plan's own result; then the clock stops, and its program is timed."""
            result = self.pending.result()
            with self.owner._clock().stopped():
                self.owner._prober.beside(self.counts)
            return result

        def ready(self) -> bool:
            """Whether the plan has run."""
            return self.pending.ready()


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


def _plan(setting: Setting, page_tokens: int, free: Sequence[int]) -> Plan:
    """A plan whose rows share the free pages where there are too few: what they hold does not matter."""
    counts = _counts(setting)
    kind = Kind.DECODE if not counts.prefill_tokens else Kind.MIXED if counts.decode_seqs else Kind.PREFILL
    rows = [
        _row(index, setting.past, 1, setting.past + setting.steps, page_tokens, free)
        for index in range(counts.decode_seqs)
    ]
    if counts.prefill_tokens:
        past = setting.chunk_end - counts.prefill_tokens
        rows.append(_row(0, past, counts.prefill_tokens, setting.chunk_end, page_tokens, free))
    return Plan(0, kind, setting.steps, counts, lambda: tuple(rows))


def _row(index: int, start: int, new_tokens: int, end: int, page_tokens: int, free: Sequence[int]) -> Row:
    pages = [free[(index + page) % len(free)] for page in range(pages_for(end, page_tokens))]
    return Row(index, index, start, new_tokens, True, pages, 0)
