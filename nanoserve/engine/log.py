"""What happened in a run: one row a plan, one row a request, and the events between. Plain lists, converted at the end.

The log is written while the engine runs and can be read at any moment, so a run that is interrupted loses nothing.
Column names and meanings are in `records`. Next: `nanoserve.report`, which reads them.
"""

import dataclasses
import json
from collections.abc import Iterator, Sequence

import numpy as np

from nanoserve.engine.types import TICKS_PER_S, FinishReason, Plan, Request, StepResult, to_seconds
from nanoserve.roofline.counts import StepCounts

COUNT_FIELDS = tuple(field.name for field in dataclasses.fields(StepCounts))
_UNSET = -1


class RunLog:
    """Records of one run over `num_requests` trace rows."""

    def __init__(self, num_requests: int):
        """Makes an empty log."""
        self.events: list[tuple[int, str, int, str]] = []  # (ticks, event, request, detail)
        self._requests: list[Request | None] = [None] * num_requests
        self._sent = [_UNSET] * num_requests
        self._admitted = [_UNSET] * num_requests
        self._first = [_UNSET] * num_requests
        self._end: dict[int, tuple[int, FinishReason, int, str, int, int]] = {}
        self._plans: list[tuple] = []
        self._preempted_in_plan = 0

    # ---- requests ----

    def sent(self, request: Request, ticks: int) -> None:
        """The engine took a request from the load."""
        self._requests[request.index] = request
        self._sent[request.index] = ticks
        self.events.append((ticks, "sent", request.index, ""))

    def admitted(self, index: int, ticks: int) -> None:
        """A request got a slot, for the first time or again."""
        if self._admitted[index] == _UNSET:
            self._admitted[index] = ticks
            self.events.append((ticks, "admitted", index, ""))
        else:
            self.events.append((ticks, "readmitted", index, ""))

    def first_token(self, index: int, ticks: int) -> None:
        """A request's first output token exists."""
        self._first[index] = ticks
        self.events.append((ticks, "first_token", index, ""))

    def preempted(self, index: int, ticks: int) -> None:
        """A request lost its slot and pages and waits to be recomputed."""
        self._preempted_in_plan += 1
        self.events.append((ticks, "preempted", index, ""))

    def finished(
        self,
        index: int,
        ticks: int,
        reason: FinishReason,
        tokens: int,
        detail: str = "",
        preemptions: int = 0,
        max_stall_ticks: int = 0,
    ) -> None:
        """A request left the engine."""
        self._end[index] = (ticks, reason, tokens, detail, preemptions, max_stall_ticks)
        self.events.append((ticks, reason.value, index, detail))

    def finished_count(self) -> int:
        """Requests that left, for whatever reason."""
        return len(self._end)

    def unfinished(self) -> Iterator[int]:
        """Requests that were sent and have not left."""
        return (r.index for r in self._requests if r is not None and r.index not in self._end)

    # ---- plans ----

    def planned(
        self,
        plan: Plan,
        result: StepResult,
        start_ticks: int,
        running: int,
        waiting: int,
        pages_used: int,
        kv_tokens_held: int,
    ) -> None:
        """A plan ran."""
        self._plans.append(
            (plan, result, start_ticks, running, waiting, pages_used, kv_tokens_held, self._preempted_in_plan)
        )
        self._preempted_in_plan = 0

    def plan_count(self) -> int:
        """Plans logged so far."""
        return len(self._plans)

    # ---- out ----

    def step_columns(self, num_pages: int) -> dict[str, np.ndarray]:
        """`records.STEP_COLUMNS` as arrays, one entry a plan."""
        plans = [row[0] for row in self._plans]
        results = [row[1] for row in self._plans]
        counts = [plan.counts for plan in plans]
        columns: dict[str, np.ndarray] = {
            "step": _ints(plan.step for plan in plans),
            "kind": np.array([plan.kind.value for plan in plans], dtype="U8"),
            "start_s": _seconds([row[2] for row in self._plans]),
            "duration_s": _seconds([r.duration_ticks for r in results]),
            "first_step_s": _seconds([r.first_step_ticks for r in results]),
            "host_gap_s": _seconds([r.host_ticks for r in results]),
        }
        for name in COUNT_FIELDS:
            columns[name] = _ints(getattr(c, name) for c in counts)
        new_tokens = columns["steps"] * columns["decode_seqs"] + columns["prefill_tokens"]
        kv_tokens = columns["decode_kv_tokens"] + columns["prefill_kv_tokens"]
        columns["executed_tokens"] = _or_else([r.executed_tokens for r in results], new_tokens)
        columns["executed_kv_tokens"] = _or_else([r.executed_kv_tokens for r in results], kv_tokens)
        for place, name in enumerate(("running", "waiting", "pages_used", "kv_tokens_held", "preemptions"), start=3):
            columns[name] = _ints(row[place] for row in self._plans)
        columns["pages_total"] = np.full(len(plans), num_pages, dtype=np.int64)
        return columns

    def request_columns(self) -> dict[str, list]:
        """`records.REQUEST_COLUMNS` without session, one entry per request that was sent; missing times are None."""
        columns: dict[str, list] = {name: [] for name in _REQUEST_NAMES}
        for request in self._requests:
            if request is None:
                continue
            end = self._end.get(request.index, (_UNSET, "", 0, "still running when the run was cut short", 0, 0))
            values = (
                request.index,
                request.client,
                to_seconds(request.arrival_ticks),
                *(_maybe_seconds(times[request.index]) for times in (self._sent, self._admitted, self._first)),
                _maybe_seconds(end[0]),
                request.prompt_tokens,
                end[2],
                request.output_tokens,
                str(end[1]),
                end[3],
                end[4],
                to_seconds(end[5]),
            )
            for name, value in zip(_REQUEST_NAMES, values, strict=True):
                columns[name].append(value)
        return columns

    def event_lines(self) -> Iterator[str]:
        """`events.jsonl`: one JSON object a line, times as seconds with nanoseconds, exact from integers."""
        for ticks, event, index, detail in self.events:
            nanoseconds = ticks * 1_000_000_000 // TICKS_PER_S
            seconds = f"{nanoseconds // 1_000_000_000}.{nanoseconds % 1_000_000_000:09d}"
            extra = f',"detail":{json.dumps(detail)}' if detail else ""
            yield f'{{"t_s":{seconds},"event":"{event}","request":{index}{extra}}}\n'


_REQUEST_NAMES = (
    "request",
    "client",
    "arrival_s",
    "sent_s",
    "admitted_s",
    "first_token_s",
    "finish_s",
    "prompt_tokens",
    "output_tokens",
    "max_output_tokens",
    "finish_reason",
    "detail",
    "preemptions",
    "max_stall_s",
)


def _ints(values) -> np.ndarray:
    return np.fromiter(values, dtype=np.int64)


def _seconds(ticks: Sequence[int]) -> np.ndarray:
    return np.array([t / TICKS_PER_S for t in ticks], dtype=np.float64)


def _maybe_seconds(ticks: int) -> float | None:
    return None if ticks == _UNSET else to_seconds(ticks)


def _or_else(values: Sequence[int | None], default: np.ndarray) -> np.ndarray:
    return np.array([d if v is None else v for v, d in zip(values, default, strict=True)], dtype=np.int64)
