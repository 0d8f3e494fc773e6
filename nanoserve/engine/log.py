"""What happened in a run: one row a plan, one row a request, and the events between, as numbers in flat arrays.

The log is written while the engine runs and can be read at any moment, so a run that is interrupted loses nothing. It
keeps numbers and nothing that the engine made, some 170 bytes a plan and 150 a request with its events, so that a
million requests fit into memory and the garbage collector has nothing to walk. Column names and meanings are in
`records`. Next: `nanoserve.report`, which reads them.
"""

import copy
import dataclasses
import json
import math
import struct
from array import array
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from nanoserve.engine.records import REQUEST_COLUMNS, STEP_COLUMNS
from nanoserve.engine.spool import MemorySpool, Spool
from nanoserve.engine.types import TICK_BITS, TICKS_PER_S, FinishReason, Kind, Move, MoveKind, Plan, Request, StepResult
from nanoserve.roofline.counts import StepCounts

COUNT_FIELDS = tuple(field.name for field in dataclasses.fields(StepCounts))
_DRAFT_COUNTS = tuple(name for name in COUNT_FIELDS if name.startswith("drafted_"))
_PACKED_COUNTS = tuple(name for name in COUNT_FIELDS if name not in _DRAFT_COUNTS)

# A plan as it is packed, in the codes of `struct`: times are floats, but still in ticks, which are too many for 64
# bits; what slots, pages and the queue bound has 32 bits.
_PLAN = {
    "step": "q",
    "kind": "b",
    **dict.fromkeys(("start_s", "duration_s", "first_step_s", "host_gap_s"), "d"),
    **dict.fromkeys((*_PACKED_COUNTS, "executed_tokens", "executed_kv_tokens"), "q"),
    **dict.fromkeys(("running", "stalled_seqs", "waiting", "pages_used", "largest_free_run"), "i"),
    "kv_tokens_held": "q",
    "preemptions": "i",
}
_PLAN_ROW = np.dtype([(name, {"q": "<i8", "d": "<f8", "i": "<i4", "b": "i1"}[code]) for name, code in _PLAN.items()])
_pack_plan = struct.Struct("<" + "".join(_PLAN.values())).pack

_KINDS = tuple(Kind)
_KIND_CODES = {kind: code for code, kind in enumerate(_KINDS)}
_EVENT = struct.Struct("<qbi")  # nanoseconds, event, request
_MOVED = {MoveKind.OUT: "swapped_out", MoveKind.IN: "swapped_in", MoveKind.RECEIVE: "received", MoveKind.COPY: "copied"}
_EVENTS = (
    *("sent", "admitted", "readmitted", "first_token", "preempted", *(reason.value for reason in FinishReason)),
    *("handed_over", *_MOVED.values()),
)
_EVENT_CODES = {event: code for code, event in enumerate(_EVENTS)}
_REASONS = ("", *(reason.value for reason in FinishReason))  # "" while a request has not left
_REASON_CODES = {reason: code for code, reason in enumerate(_REASONS)}

_TIMES = {
    **dict.fromkeys(("arrival_s", "sent_s", "admitted_s", "first_token_s", "finish_s"), math.nan),
    "max_stall_s": 0,
}
_NUMBERS = (
    *("client", "prompt_tokens", "output_tokens", "max_output_tokens", "preemptions", "cached_tokens"),
    *("allocated_pages", "kv_tokens"),
)
# What is 0 in nearly every plan, or in all of them where a knob is off, is kept as (plan, number).
_SPARSE = (
    *("prefix_lookup_tokens", "prefix_hit_tokens", *_DRAFT_COUNTS, "accepted_tokens"),
    *(f"{event}_tokens" for event in _MOVED.values()),
)
_CUT_SHORT = "still running when the run was cut short"
_NS_PER_S = 1_000_000_000
_NO_PADDING = -1

Occupancy = tuple[int, int, int, int, int, int]
"""Sequences running, those of them that decode but not in this plan, requests waiting, pages held, pages that one
request could be given, KV positions held."""


class RunLog:
    """Records of one run over `num_requests` trace rows."""

    def __init__(self, num_requests: int, spool: Callable[[], Spool] = MemorySpool):
        """Makes an empty log; `spool` makes what its plans and events go to."""
        self._times = {name: array("d", [start]) * num_requests for name, start in _TIMES.items()}  # in ticks
        self._numbers = {name: array("q", [0]) * num_requests for name in _NUMBERS}
        self._reasons = bytearray(num_requests)
        self._details: dict[int, str] = {}  # by request
        self.finished_count = 0  # requests that left, for whatever reason
        self._events = spool()  # rows of _EVENT
        self._event_details: dict[int, str] = {}  # by row
        self._plans = spool()  # rows of _PLAN_ROW
        self._sparse = _nothing_counted()
        self._preempted_in_plan = 0

    def of_replica(self) -> "RunLog":
        """The log of another engine of the same run: plans of its own; requests and events are those of all."""
        log = copy.copy(self)
        log.finished_count = log._preempted_in_plan = 0
        log._plans, log._sparse = type(self._plans)(), _nothing_counted()
        return log

    # ---- requests ----

    def sent(self, request: Request, ticks: int) -> None:
        """The engine took a request from the load."""
        index, numbers = request.index, self._numbers
        self._times["arrival_s"][index] = request.arrival_ticks
        self._times["sent_s"][index] = ticks
        numbers["client"][index] = request.client
        numbers["prompt_tokens"][index] = request.prompt_tokens
        numbers["max_output_tokens"][index] = request.output_tokens
        self._event(ticks, "sent", index)

    def admitted(self, index: int, ticks: int) -> None:
        """A request got a slot, for the first time or again."""
        times = self._times["admitted_s"]
        if math.isnan(times[index]):
            times[index] = ticks
            self._event(ticks, "admitted", index)
        else:
            self._event(ticks, "readmitted", index)

    def looked_up(self, index: int, tokens: int, cached_tokens: int) -> None:
        """A request is about to be admitted: so many tokens were asked of the prefix cache, so many it had."""
        self.count("prefix_lookup_tokens", tokens)
        self.count("prefix_hit_tokens", cached_tokens)
        if math.isnan(self._times["admitted_s"][index]):
            self._numbers["cached_tokens"][index] = cached_tokens

    def first_token(self, index: int, ticks: int) -> None:
        """A request's first output token exists."""
        self._times["first_token_s"][index] = ticks
        self._event(ticks, "first_token", index)

    def preempted(self, index: int, ticks: int) -> None:
        """A request lost its slot and pages and waits to come back."""
        self._preempted_in_plan += 1
        self._event(ticks, "preempted", index)

    def handed_over(self, index: int, ticks: int) -> None:
        """A request has its first token and goes on in another engine."""
        self._event(ticks, "handed_over", index)

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
        self.finished_count += 1
        self._reasons[index] = _REASON_CODES[reason]
        self._times["finish_s"][index] = ticks
        self._numbers["output_tokens"][index] = tokens
        if preemptions:
            self._numbers["preemptions"][index] = preemptions
            self._times["max_stall_s"][index] = max_stall_ticks
        if detail:
            self._details[index] = detail
            self._event_details[len(self._events) // _EVENT.size] = detail
        self._event(ticks, reason, index)

    def held(self, index: int, pages: int, kv_tokens: int) -> None:
        """A request that left held so many pages at most, and had written so many KV positions in them."""
        self._numbers["allocated_pages"][index] = pages
        self._numbers["kv_tokens"][index] = kv_tokens

    # ---- plans ----

    def planned(self, plan: Plan, result: StepResult, start_ticks: int, occupancy: Occupancy) -> None:
        """A plan ran, and the engine was this full when it began."""
        tokens, kv_tokens = result.executed_tokens, result.executed_kv_tokens
        counts = plan.counts if result.ran is None else result.ran
        if counts.drafted_tokens:
            self._drafted(counts, result)
        running, stalled_seqs, waiting, pages_used, largest_free_run, kv_tokens_held = occupancy
        self._plans += _pack_plan(  # in the order of _PLAN; stars in a call would make a list and a tuple first
            plan.step,
            _KIND_CODES[plan.kind],
            start_ticks,
            result.duration_ticks,
            result.first_step_ticks,
            result.host_ticks,
            counts.steps,
            counts.decode_seqs,
            counts.decode_kv_tokens,
            counts.decode_window_tokens,
            counts.prefill_seqs,
            counts.prefill_tokens,
            counts.prefill_pairs,
            counts.prefill_window_pairs,
            counts.prefill_kv_tokens,
            counts.prefill_window_kv_tokens,
            counts.sampled,
            _NO_PADDING if tokens is None else tokens,
            _NO_PADDING if kv_tokens is None else kv_tokens,
            running,
            stalled_seqs,
            waiting,
            pages_used,
            largest_free_run,
            kv_tokens_held,
            self._preempted_in_plan,
        )
        self._preempted_in_plan = 0
        if plan.moves:
            self._moved(plan.moves, start_ticks)

    def count(self, column: str, number: int) -> None:
        """Adds to a column of the plan that is being made: one that is 0 in nearly every plan."""
        plans, numbers = self._sparse[column]
        plans.append(self.plan_count())
        numbers.append(number)

    def plan_count(self) -> int:
        """Plans logged so far."""
        return len(self._plans) // _PLAN_ROW.itemsize

    # ---- out ----

    def step_columns(self, num_pages: int) -> dict[str, np.ndarray]:
        """`records.STEP_COLUMNS` as arrays, one entry a plan."""
        rows = np.frombuffer(self._plans.whole(), dtype=_PLAN_ROW)
        columns = {
            name: rows[name] / TICKS_PER_S if code == "d" else rows[name].astype(np.int64)
            for name, code in _PLAN.items()
        }
        for name, (plans, numbers) in self._sparse.items():
            columns[name] = np.zeros(len(rows) + 1, np.int64)  # one more: counted for a plan that was never made
            np.add.at(columns[name], np.asarray(plans, np.int64), np.asarray(numbers, np.int64))
            columns[name] = columns[name][:-1]
        columns["kind"] = np.array(_KINDS, dtype="U8")[rows["kind"]]
        new_tokens = columns["steps"] * columns["decode_seqs"] + columns["drafted_tokens"] + columns["prefill_tokens"]
        kv_tokens = columns["decode_kv_tokens"] + columns["prefill_kv_tokens"]
        for name, useful in (("executed_tokens", new_tokens), ("executed_kv_tokens", kv_tokens)):
            columns[name] = np.where(columns[name] == _NO_PADDING, useful, columns[name])
        columns["kv_tokens_held"] += new_tokens - columns["drafted_tokens"] + columns["accepted_tokens"]
        columns["pages_total"] = np.full(len(rows), num_pages, dtype=np.int64)
        return {name: columns[name] for name in STEP_COLUMNS}

    def request_columns(self) -> dict[str, list]:
        """`records.REQUEST_COLUMNS` without session, one entry per request that was sent; missing times are None."""
        rows = self._sent_rows()
        columns: dict[str, list] = {"request": rows.tolist()}
        for name, numbers in self._numbers.items():
            columns[name] = np.asarray(numbers)[rows].tolist()
        for name, times in self._times.items():
            seconds = np.asarray(times)[rows] / TICKS_PER_S
            columns[name] = [None if math.isnan(time_s) else time_s for time_s in seconds.tolist()]
        reasons = [self._reasons[index] for index in columns["request"]]
        columns["finish_reason"] = [_REASONS[reason] for reason in reasons]
        columns["detail"] = [
            self._details.get(index, "") if reason else _CUT_SHORT
            for index, reason in zip(columns["request"], reasons, strict=True)
        ]
        return {name: columns[name] for name in REQUEST_COLUMNS if name in columns}

    def event_lines(self) -> Iterator[str]:
        """`events.jsonl`: one JSON object a line, times as seconds with nanoseconds, exact from integers."""
        events = _EVENT.iter_unpack(bytes(self._events.whole()))
        for row, (nanoseconds, code, index) in enumerate(events):
            seconds = f"{nanoseconds // _NS_PER_S}.{nanoseconds % _NS_PER_S:09d}"
            detail = self._event_details.get(row)
            extra = f',"detail":{json.dumps(detail)}' if detail else ""
            yield f'{{"t_s":{seconds},"event":"{_EVENTS[code]}","request":{index}{extra}}}\n'

    def _drafted(self, counts: StepCounts, result: StepResult) -> None:
        """Counts what a plan drafted, and what of it was kept."""
        for name in _DRAFT_COUNTS:
            self.count(name, getattr(counts, name))
        self.count("accepted_tokens", 0 if result.gained is None else result.accepted_tokens)

    def _moved(self, moves: Sequence[Move], ticks: int) -> None:
        """KV went to the host or came here, at the beginning of the plan that was logged last."""
        for move in moves:
            event = _MOVED[move.kind]
            plans, numbers = self._sparse[f"{event}_tokens"]
            plans.append(self.plan_count() - 1)
            numbers.append(move.tokens)
            self._event(ticks, event, move.index)

    def _event(self, ticks: int, event: str, index: int) -> None:
        self._events += _EVENT.pack(ticks * _NS_PER_S >> TICK_BITS, _EVENT_CODES[event], index)

    def _sent_rows(self) -> np.ndarray:
        return np.flatnonzero(~np.isnan(np.asarray(self._times["sent_s"])))


def _nothing_counted() -> dict[str, tuple[array, array]]:
    return {name: (array("q"), array("q")) for name in _SPARSE}
