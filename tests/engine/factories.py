"""Small parts for engine tests: a load, an executor with linear step times, and a whole engine in one call."""

import dataclasses

from nanoserve.engine.clock import VirtualClock
from nanoserve.engine.engine import Engine
from nanoserve.engine.log import RunLog
from nanoserve.engine.scheduler import Scheduler
from nanoserve.engine.types import EngineConfig, Plan, Request, StepResult, to_seconds
from nanoserve.roofline.counts import StepCounts

FIXED_TICKS = 1_000_003
TICKS_PER_TOKEN = 1_009
TICKS_PER_KV_TOKEN = 17

KNOBS = {
    "batching": ["mixed", "prefill_first", "static"],
    "interval_s": [0.0, to_seconds(7_000_000)],
    "chunking": ["fixed", "adaptive"],
    "policy": ["fcfs", "shortest_first", "priority", "fair_share", "deadline"],
    "victim": ["youngest", "least_progress", "lowest_priority"],
    "admission": ["watermark", "full_prompt"],
    "free_page_watermark": [0.0, 0.2],
    "queue_limit": [None, 3],
    "allocator": ["paged", "contiguous"],
}
"""Values of what an ablation may set, whose cross product the property tests draw from."""


@dataclasses.dataclass
class Done:
    """A pending result that is already there."""

    value: StepResult

    def result(self) -> StepResult:
        return self.value


class LinearExecutor:
    """Prices a step as fixed + per token + per KV position, in integers, and records the plans it saw."""

    def __init__(self, stops: dict[int, int] | None = None):
        self.stops = stops or {}  # request -> output token at which it stops
        self.plans: list[tuple] = []
        self.released: list[int] = []

    def submit(self, plan: Plan) -> Done:
        rows = plan.rows()
        self.plans.append(
            (
                plan.step,
                plan.kind,
                plan.horizon,
                tuple((r.index, r.slot, r.start, r.new_tokens, r.samples, tuple(r.pages), r.generated) for r in rows),
            )
        )
        counts = plan.counts
        padding = TICKS_PER_TOKEN * plan.padding_rows
        first = self._first(counts) + padding
        total = counts.steps * (FIXED_TICKS + padding) + TICKS_PER_TOKEN * counts.new_tokens
        total += TICKS_PER_KV_TOKEN * (counts.decode_kv_tokens + counts.prefill_pairs)
        stopped = {}
        for row in rows:
            last = self.stops.get(row.index)
            if row.samples and last is not None and row.generated < last <= row.generated + plan.horizon:
                stopped[row.index] = last - row.generated
        return Done(StepResult(total, first, stopped=stopped))

    def steps_before(self, counts: StepCounts, span_ticks: int) -> int:
        elapsed, steps, kv = 0, 0, counts.decode_kv_tokens
        while elapsed < span_ticks:
            elapsed += FIXED_TICKS + TICKS_PER_TOKEN * counts.decode_seqs + TICKS_PER_KV_TOKEN * kv
            kv += counts.decode_seqs
            steps += 1
        return steps

    def release(self, index: int) -> None:
        self.released.append(index)

    def _first(self, counts: StepCounts) -> int:
        if counts.steps == 1:
            return (
                FIXED_TICKS
                + TICKS_PER_TOKEN * counts.new_tokens
                + TICKS_PER_KV_TOKEN * (counts.decode_kv_tokens + counts.prefill_pairs)
            )
        k, rows = counts.steps, counts.decode_seqs
        kv = (counts.decode_kv_tokens - rows * k * (k - 1) // 2) // k
        return FIXED_TICKS + TICKS_PER_TOKEN * rows + TICKS_PER_KV_TOKEN * kv


class ListLoad:
    """An open loop over (arrival ticks) in order."""

    def __init__(self, arrivals: list[int]):
        self.arrivals = arrivals
        self.taken = 0
        self.returned: list[int] = []

    def next_ticks(self) -> int | None:
        return self.arrivals[self.taken] if self.taken < len(self.arrivals) else None

    def take(self, now_ticks: int) -> list[tuple[int, int]]:
        due = []
        while self.taken < len(self.arrivals) and self.arrivals[self.taken] <= now_ticks:
            due.append((self.taken, self.arrivals[self.taken]))
            self.taken += 1
        return due

    def finished(self, row: int, now_ticks: int) -> None:
        self.returned.append(row)


@dataclasses.dataclass(frozen=True)
class Job:
    """One request of a test load."""

    arrival_ticks: int
    prompt_tokens: int
    output_tokens: int
    client: int = 0
    priority: int = 0


def make_engine(
    jobs: list[Job],
    *,
    num_pages: int = 64,
    max_context_tokens: int = 4096,
    window_tokens: int | None = None,
    executor: LinearExecutor | None = None,
    **config,
) -> Engine:
    """A virtual engine over `jobs`, sorted by arrival; `config` are `EngineConfig` fields."""
    defaults = {"max_seqs": 8, "max_step_tokens": 64, "page_tokens": 4, "free_page_watermark": 0.0}
    jobs = sorted(jobs, key=lambda job: job.arrival_ticks)
    log = RunLog(len(jobs))
    scheduler = Scheduler(
        EngineConfig(**{**defaults, **config}),
        num_pages=num_pages,
        max_context_tokens=max_context_tokens,
        window_tokens=window_tokens,
        log=log,
    )

    def request_of(row: int, arrival_ticks: int) -> Request:
        return Request(
            index=row,
            arrival_ticks=arrival_ticks,
            prompt_tokens=jobs[row].prompt_tokens,
            output_tokens=jobs[row].output_tokens,
            client=jobs[row].client,
            priority=jobs[row].priority,
        )

    return Engine(
        scheduler=scheduler,
        executor=executor or LinearExecutor(),
        load=ListLoad([job.arrival_ticks for job in jobs]),
        clock=VirtualClock(),
        log=log,
        request_of=request_of,
    )
