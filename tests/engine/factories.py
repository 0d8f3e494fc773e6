"""Small parts for engine tests: a load, an executor with linear step times, and a whole engine in one call."""

import dataclasses
from collections.abc import Callable

from hypothesis import strategies as st

from nanoserve.engine.clock import VirtualClock
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.engine import Engine
from nanoserve.engine.faults import Leak
from nanoserve.engine.log import RunLog
from nanoserve.engine.memory import KvFacts
from nanoserve.engine.scheduler import Scheduler
from nanoserve.engine.types import Plan, Request, Row, StepResult, to_seconds
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
    "prefix_cache": ["off", "lru", "cost"],
    "preemption": ["recompute", "swap", "cheaper"],
    "host_pages": [None, 5],
    "when_full": ["wait", "fail"],
    "keep_session_s": [0.0, to_seconds(60_000_000)],
    "draft": ["none", "ngram"],
    "draft_tokens": [1, 3],
}
"""Values of what an ablation may set, whose cross product the property tests draw from."""


def possible(knobs: dict) -> dict:
    """The knobs, without a prefix cache where it does not go together with the others."""
    without = knobs["allocator"] == "contiguous" or knobs["keep_session_s"]
    return knobs | {"prefix_cache": "off"} if without else knobs


def held_pages(scheduler: Scheduler) -> int:
    """Pages in use that neither a kept session nor a leak accounts for: 0 in an engine without requests."""
    memory = scheduler.memory
    kept = sum(len(entry.pages) for entry in memory.kept or ())
    return memory.pool.used_count - kept - (memory.leaking.lost_pages if memory.leaking else 0)


knobs_strategy = st.fixed_dictionaries({name: st.sampled_from(values) for name, values in KNOBS.items()}).map(possible)


def content(index: int, client: int, position: int) -> tuple[str, int, int]:
    """What a request has at a position: the same as others of its client up to somewhere, then what nobody else has."""
    shared = position < 5 + 11 * (index % 5)
    return ("client", client, position) if shared else ("request", index, position)


def kv_facts(client_of: Callable[[int], int], page_tokens: int, leak: Leak | None = None) -> KvFacts:
    """Keys that say what `content` says; costs and a choice between swapping and recomputing, both arbitrary."""

    def page_keys(index: int, tokens: int) -> list[int]:
        lasts = range(page_tokens - 1, tokens, page_tokens)
        return [KEYS.setdefault(content(index, client_of(index), last), len(KEYS)) for last in lasts]

    return KvFacts(
        page_keys=page_keys,
        page_cost=lambda depth: 1.0 + depth,
        swap_is_cheaper=lambda tokens: tokens > 9,
        leak=leak,
    )


KEYS: dict[tuple, int] = {}
"""A number for everything that a page can end with, in order of being asked for."""


@dataclasses.dataclass
class Done:
    """A pending result that is already there."""

    value: StepResult

    def result(self) -> StepResult:
        return self.value

    def ready(self) -> bool:
        return True


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
        padding = TICKS_PER_TOKEN * (plan.padding_rows + sum(move.tokens for move in plan.moves))
        first = self._first(counts) + padding
        total = counts.steps * (FIXED_TICKS + padding) + TICKS_PER_TOKEN * counts.new_tokens
        total += TICKS_PER_KV_TOKEN * (counts.decode_kv_tokens + counts.prefill_pairs)
        stopped, gained = {}, None
        if counts.drafted_tokens:
            gained = {row.index: self._gained(row) for row in rows[: counts.decode_seqs]}
        for row in rows:
            last, tokens = self.stops.get(row.index), (gained or {}).get(row.index, plan.horizon)
            if row.samples and last is not None and row.generated < last <= row.generated + tokens:
                stopped[row.index] = last - row.generated
        if gained is not None:
            gained |= {index: kept for index, kept in stopped.items() if index in gained}
        return Done(StepResult(total, first, stopped=stopped, gained=gained))

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        if span_ticks is None:
            return 1 << 40
        elapsed, steps, kv = 0, 0, counts.decode_kv_tokens
        while elapsed < span_ticks:
            elapsed += FIXED_TICKS + TICKS_PER_TOKEN * counts.decode_seqs + TICKS_PER_KV_TOKEN * kv
            kv += counts.decode_seqs
            steps += 1
        return steps

    def release(self, index: int) -> None:
        self.released.append(index)

    def _gained(self, row: Row) -> int:
        """Some of what was drafted is kept: as much as the request and the position say."""
        return 1 + (7 * row.index + 3 * row.start) % row.new_tokens

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

    def soonest_after(self, ticks: int) -> int | None:
        return None


@dataclasses.dataclass(frozen=True)
class Job:
    """One request of a test load."""

    arrival_ticks: int
    prompt_tokens: int
    output_tokens: int
    client: int = 0
    priority: int = 0
    session: int | None = None


def make_engine(
    jobs: list[Job],
    *,
    num_pages: int = 64,
    max_context_tokens: int = 4096,
    window_tokens: int | None = None,
    executor: LinearExecutor | None = None,
    log: RunLog | None = None,
    hands_over: bool = False,
    leak: Leak | None = None,
    **config,
) -> Engine:
    """A virtual engine over `jobs`, sorted by arrival; `config` are `EngineConfig` fields."""
    defaults = {"max_seqs": 8, "max_step_tokens": 64, "page_tokens": 4, "free_page_watermark": 0.0}
    jobs = sorted(jobs, key=lambda job: job.arrival_ticks)
    log = log or RunLog(len(jobs))
    scheduler = Scheduler(
        EngineConfig(**{**defaults, **config}),
        num_pages=num_pages,
        max_context_tokens=max_context_tokens,
        window_tokens=window_tokens,
        log=log,
        facts=kv_facts(lambda index: jobs[index].client, config.get("page_tokens", defaults["page_tokens"]), leak),
        hands_over=hands_over,
    )

    def request_of(row: int, arrival_ticks: int) -> Request:
        return Request(
            index=row,
            arrival_ticks=arrival_ticks,
            prompt_tokens=jobs[row].prompt_tokens,
            output_tokens=jobs[row].output_tokens,
            client=jobs[row].client,
            priority=jobs[row].priority,
            session=jobs[row].session,
        )

    return Engine(
        scheduler=scheduler,
        executor=executor or LinearExecutor(),
        load=ListLoad([job.arrival_ticks for job in jobs]),
        clock=VirtualClock(),
        log=log,
        request_of=request_of,
    )
