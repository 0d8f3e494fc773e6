"""What may be wrong with a service, one function a hypothesis: the evidence for and against it, and what it explains.

Each sees only the logs (`case`). A hypothesis counts the loss of those requests whose trouble its own mechanism
accounts for, so that two of them seldom claim the same: a request that waited for memory was short of it for one
reason (`shortage`), a clock's beat costs half an interval, a slow replica costs its own requests their pace.

Next: `causes`, which ranks them.
"""

from collections.abc import Callable

import numpy as np

from nanoserve.analysis.failures.case import Case
from nanoserve.analysis.failures.cause import Cause, Pleading
from nanoserve.analysis.failures.kinds import Kind
from nanoserve.analysis.failures.shortage import Reason
from nanoserve.analysis.service import DAY_S

_RESERVED = 0.2  # of the blocks held: from that on, reserving is surely the way of the allocator
_SCATTERED = 0.05  # of the buckets with free blocks


def contiguous_allocation(case: Case) -> Cause:
    """Blocks are reserved for the longest answer, in one run: what is reserved and not written is missing to others."""
    name, says = "contiguous_allocation", "contiguous allocation reserves memory that is never written"
    reserved, scattered = case.reserved_share, case.scattered_share
    if np.isnan(reserved):
        return Cause(name=name, says=says, missing="it needs allocated blocks, used tokens and the size of a block")
    errors = case.lost_to_errors()
    short = case.lost_to(Reason.RESERVED)
    runs = case.lost_to(Reason.ROOM) if scattered > _SCATTERED else 0.0
    by_errors = errors["external"] + errors["internal"]
    told = Pleading()
    told.weigh(reserved > _RESERVED, f"{reserved:.0%} of the blocks that requests held were never written.")
    if not np.isnan(scattered):
        sentence = f"In {scattered:.0%} of the buckets with free blocks they were not in one run."
        told.weigh(scattered > _SCATTERED, sentence)
    blocked = f"Being blocked, or timing out, while tokens would have left room cost {short + runs:.2%}."
    told.weigh(short + runs > 0, blocked)
    if case.memory_errors.height:
        share = by_errors / max(sum(errors.values()), 1e-12)
        told.weigh(share > 0.1, f"{share:.0%} of out-of-memory errors found room in total, or room that was reserved.")
    return Cause(
        name=name,
        says=says,
        explained=short + runs + by_errors,
        strength=min(1.0, reserved / _RESERVED),
        bindings={"Engine.allocator": "paged"},
        values={"reserved_share": reserved, "scattered_share": None if np.isnan(scattered) else scattered},
        why_for=tuple(told.why_for),
        why_against=tuple(told.why_against),
    )


def slow_interval(case: Case) -> Cause:
    """The engine looks for new requests only every so often: whoever comes while it is busy waits for that."""
    name, says = "slow_interval", "new requests are looked for at a slow interval"
    found, loss = case.looking, case.loss
    if found is None:
        return Cause(
            name=name, says=says, missing="it needs first tokens, of requests that came alone to a busy engine"
        )
    busy = (loss.ahead > 0) & ~np.isnan(loss.ttft_s) & ~case.service.failed
    lost = loss.spared(np.where(busy, found.interval.value / 2, 0.0))
    low, middle, high = (1e3 * each for each in (found.interval.low, found.interval.value, found.interval.high))
    told = Pleading()
    told.weigh(
        found.wait_s > found.step_s,
        f"Alone on a busy engine, the median request waits {found.wait_s * 1e3:.1f} ms longer than on an idle one; the "
        f"end of a decode step explains {found.step_s * 500:.1f} ms.",
    )
    told.weigh(
        found.slow,
        f"An interval of {middle:.0f} ms fits best (95%: {low:.0f} to {high:.0f}), and is {found.misfit:.2f} off at "
        f"most.",
    )
    return Cause(
        name=name,
        says=says,
        explained=float(lost.mean()),
        strength=1.0 if found.slow else 0.0,
        why_for=tuple(told.why_for),
        why_against=tuple(told.why_against),
        bindings={"Engine.interval_s": 0.0},
        values={"interval_s": found.interval.value, "wait_s": found.wait_s, "step_s": found.step_s},
    )


def no_admission_control(case: Case) -> Cause:
    """Whoever comes is taken, whether or not there is room: under a burst requests fail that could have waited."""
    name, says = "no_admission_control", "nothing holds requests back when memory is full"
    if not case.service.has("status"):
        return Cause(name=name, says=says, missing="it needs the status of requests")
    count = {kind: int((case.kinds == kind).sum()) for kind in (Kind.OUT_OF_MEMORY, Kind.TIMEOUT, Kind.REFUSED)}
    errors = case.lost_to_errors()
    open_door = not count[Kind.REFUSED]
    late = case.lost_to(Reason.FULL) if open_door and count[Kind.OUT_OF_MEMORY] else 0.0
    told = Pleading()
    told.weigh(count[Kind.OUT_OF_MEMORY] > 0, f"{count[Kind.OUT_OF_MEMORY]:,} requests ran out of memory.")
    told.weigh(open_door, f"{count[Kind.REFUSED]:,} requests were refused, {count[Kind.TIMEOUT]:,} timed out.")
    if count[Kind.OUT_OF_MEMORY]:
        failing, calm = case.loss.ahead[case.kinds == Kind.OUT_OF_MEMORY], case.loss.ahead[case.kinds == Kind.SERVED]
        few, many = (float(np.median(part)) if len(part) else 0.0 for part in (calm, failing))
        told.weigh(many > few, f"Those that ran out had {many:.0f} ahead in the median; those served, {few:.0f}.")
        share = (errors["full"] + errors["kept"]) / max(sum(errors.values()), 1e-12)
        told.weigh(share > 0.1, f"{share:.0%} of them met a pool that was full, or full of what sessions kept.")
    return Cause(
        name=name,
        says=says,
        explained=sum(errors.values()) + late,
        strength=1.0 if count[Kind.OUT_OF_MEMORY] else 0.0,
        bindings={"Engine.when_full": "wait", "Engine.queue_limit": 64},
        values={kind.key: number for kind, number in count.items()},
        why_for=tuple(told.why_for),
        why_against=tuple(told.why_against),
    )


def memory_leak(case: Case) -> Cause:
    """Blocks are lost for good, steadily: at the end twice what is gone on average."""
    name, says = "memory_leak", "memory is lost and never given back"
    if not case.floors:
        return Cause(name=name, says=says, missing="it needs telemetry of blocks over more than a day")
    leaking = [floor for floor in case.floors if floor.leaks]
    pool = sum(floor.total for floor in case.floors)
    gone = sum(floor.grown_share * floor.total for floor in leaking) / pool / 2
    short = case.lost_to(Reason.LEAKED) + case.lost_to_errors()["leaked"]
    told = Pleading()
    for floor in case.floors:
        slope = floor.slope
        told.weigh(
            floor.leaks,
            f"Replica {floor.replica}: blocks held when little runs grow by {slope.value * DAY_S:,.1f} a day (95%: "
            f"{slope.low * DAY_S:,.1f} to {slope.high * DAY_S:,.1f}) of {floor.total:,.0f}.",
        )
    told.weigh(short > 0, f"Waiting and failing where lost blocks would have made room cost {short:.2%}.")
    return Cause(
        name=name,
        says=says,
        explained=short,
        pending=gone,
        strength=1.0 if leaking else 0.0,
        bindings={"Faults.leak_every": None},
        values={"leaking_replicas": [floor.replica for floor in leaking]},
        why_for=tuple(told.why_for),
        why_against=tuple(told.why_against),
    )


def slow_replica(case: Case) -> Cause:
    """One engine takes longer for the same work than the others."""
    name, says = "slow_replica", "one replica is slower than the others"
    if not case.paces:
        return Cause(name=name, says=says, missing="it needs replicas and first tokens, of two replicas or more")
    slow = [pace for pace in case.paces if pace.slow]
    share = np.zeros(case.service.requests.height)
    for pace in slow:
        share[case.service.replicas == pace.replica] = 1 - 1 / pace.ratio.value
    told = Pleading()
    for pace in case.paces:
        told.weigh(
            pace.slow,
            f"Replica {pace.replica} takes {pace.ratio.value:.2f} times the others' time per token at equal load "
            f"(95%: {pace.ratio.low:.2f} to {pace.ratio.high:.2f}).",
        )
    return Cause(
        name=name,
        says=says,
        explained=float(case.loss.spared(share * np.nan_to_num(case.loss.latency_s)).mean()),
        strength=1.0 if slow else 0.0,
        bindings={"Faults.slow_replica": None},
        values={"slow_replicas": [pace.replica for pace in slow]},
        why_for=tuple(told.why_for),
        why_against=tuple(told.why_against),
    )


HYPOTHESES: tuple[Callable[[Case], Cause], ...] = (
    contiguous_allocation,
    slow_interval,
    no_admission_control,
    memory_leak,
    slow_replica,
)
"""All that are weighed, of equal rank."""
