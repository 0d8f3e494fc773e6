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
from nanoserve.analysis.failures.leak import SURE, per_day
from nanoserve.analysis.failures.shortage import Reason

_RESERVED = 0.2  # of the blocks held: from that on, reserving is surely the way of the allocator
_SCATTERED = 0.05  # of the buckets with free blocks
_MOST = 0.5  # of the errors
_QUEUE_LIMIT, _MORE_SLOTS = 64, 4  # of the config that is tried instead; `analysis.recommend` finds the best


def contiguous_allocation(case: Case) -> Cause:
    """Blocks are reserved for the longest answer, in one run: what is reserved and not written is missing to others."""
    told = Pleading(name="contiguous_allocation", says="contiguous allocation reserves memory that is never written")
    reserved, scattered = case.reserved_share, case.scattered_share
    if np.isnan(reserved):
        return told.missing("it needs allocated blocks, used tokens and the size of a block")
    errors = case.lost_to_errors()
    by_errors = errors["external"] + errors["internal"]
    blocked = case.lost_to(Reason.RESERVED) + (case.lost_to(Reason.ROOM) if scattered > _SCATTERED else 0.0)
    told.weigh(reserved > _RESERVED, f"{reserved:.0%} of the blocks that requests held were never written.")
    if not np.isnan(scattered):
        sentence = f"In {scattered:.0%} of the buckets with free blocks they were not in one run."
        told.weigh(scattered > _SCATTERED, sentence)
    told.weigh(blocked > 0, f"Being blocked, or timing out, while tokens would have left room cost {blocked:.2%}.")
    if case.memory_errors.height:
        share = by_errors / max(sum(errors.values()), 1e-12)
        told.weigh(share > 0.1, f"{share:.0%} of out-of-memory errors found room in total, or room that was reserved.")
    return told.cause(
        explained=blocked + by_errors,
        pending=reserved * case.held_share,
        strength=min(1.0, reserved / _RESERVED),
        bindings={"Engine.allocator": "paged"},
        values={
            "reserved_share": reserved,
            "held_share": case.held_share,
            "scattered_share": None if np.isnan(scattered) else scattered,
        },
    )


def slow_interval(case: Case) -> Cause:
    """The engine looks for new requests only every so often: whoever comes while it is busy waits for that."""
    told = Pleading(name="slow_interval", says="new requests are looked for at a slow interval")
    found, loss = case.looking, case.loss
    if found is None:
        return told.missing("it needs first tokens, of requests that came alone to a busy engine")
    busy = (loss.ahead > 0) & ~np.isnan(loss.ttft_s) & ~case.service.failed
    lost = loss.spared(np.where(busy, found.interval.value / 2, 0.0))
    told.weigh(
        found.wait_s > found.step_s,
        f"Alone on a busy engine, the median request waits {found.wait_s * 1e3:.1f} ms longer than on an idle one; the "
        f"end of a decode step explains {found.step_s * 500:.1f} ms.",
    )
    low, middle, high = (1e3 * each for each in (found.interval.low, found.interval.value, found.interval.high))
    told.weigh(
        found.slow,
        f"An interval of {middle:.0f} ms fits best (95%: {low:.0f} to {high:.0f}); shares of waits are at most "
        f"{found.misfit:.2f} off.",
    )
    return told.cause(
        explained=float(lost.mean()),
        strength=1.0 if found.slow else 0.0,
        bindings={"Engine.interval_s": 0.0},
        values={"interval_s": found.interval.value, "wait_s": found.wait_s, "step_s": found.step_s},
    )


def no_admission_control(case: Case) -> Cause:
    """Whoever comes is taken, whether or not there is room: under a burst requests fail that could have waited.

    Time-outs alone do not tell it from other causes: it takes requests that fail for want of memory. Those that fail
    for want of blocks that are lost do not count: no wait would have brought them back.
    """
    told = Pleading(name="no_admission_control", says="nothing holds requests back when memory is full")
    if not case.service.has("status"):
        return told.missing("it needs the status of requests")
    failed, timed_out, refused = (
        int((case.kinds == kind).sum()) for kind in (Kind.OUT_OF_MEMORY, Kind.TIMEOUT, Kind.REFUSED)
    )
    errors = case.lost_to_errors()
    late = case.lost_to(Reason.FULL) if failed and not refused else 0.0
    told.weigh(failed > 0, f"{failed:,} requests ran out of memory.")
    told.weigh(not refused, f"{refused:,} requests were refused, {timed_out:,} timed out.")
    if failed:
        _weigh_bursts(case, told)
    return told.cause(
        explained=sum(errors.values()) - errors["leaked"] + late,
        strength=1.0 if failed else 0.0,
        bindings={"Engine.when_full": "wait", "Engine.queue_limit": _QUEUE_LIMIT},
        values={"out_of_memory": failed, "timeout": timed_out, "refused": refused},
    )


def _weigh_bursts(case: Case, told: Pleading) -> None:
    """Whether requests that ran out of memory came when many were there, and could have waited."""
    ahead, lines = case.loss.ahead, case.memory_errors
    served, failed = (ahead[case.kinds == kind] for kind in (Kind.SERVED, Kind.OUT_OF_MEMORY))
    few, many = float(np.median(served)) if len(served) else 0.0, float(np.median(failed))
    told.weigh(many > few, f"Those that ran out had {many:.0f} ahead in the median; those served, {few:.0f}.")
    if lines.height:
        owned = lines["free"] + lines["running"] + lines["kept"]
        rooms = (owned, lines["free"] + lines["kept"])
        later, now = (float(np.mean((lines["tried"] <= room).to_numpy())) for room in rooms)
        told.weigh(
            later > _MOST,
            f"{later:.0%} of them asked for less than others would give back: they could have waited. For {now:.0%}, "
            f"what sessions kept between turns would have done at once.",
        )


def memory_leak(case: Case) -> Cause:
    """Blocks are lost for good, steadily: at the end twice what is gone on average."""
    told = Pleading(name="memory_leak", says="memory is lost and never given back")
    if not case.floors:
        return told.missing("it needs telemetry of blocks over more than a day")
    leaking = [floor for floor in case.floors if floor.leaks]
    for floor in case.floors:
        low, middle, high = (per_day(each) for each in (floor.slope.low, floor.slope.value, floor.slope.high))
        sure = f"{SURE:.0%}: {low} to {high}"
        sentence = f"blocks held when little runs grow by {middle} a day ({sure}) of {floor.total:,.0f}"
        told.weigh(floor.leaks, f"Replica {floor.replica}: {sentence}.")
    short = case.lost_to(Reason.LEAKED) + case.lost_to_errors()["leaked"]
    told.weigh(short > 0, f"Waiting and failing where lost blocks would have made room cost {short:.2%}.")
    gone = sum(floor.grown_share * floor.total for floor in leaking) / sum(floor.total for floor in case.floors)
    return told.cause(
        explained=short,
        pending=gone / 2,
        strength=1.0 if leaking else 0.0,
        bindings={"Faults.leak_every": None},
        values={"leaking_replicas": [floor.replica for floor in leaking], "gone_at_the_end": gone},
    )


def slow_replica(case: Case) -> Cause:
    """One engine takes longer for the same work than the others."""
    told = Pleading(name="slow_replica", says="one replica is slower than the others")
    if not case.paces:
        return told.missing("it needs replicas and first tokens, of two replicas or more")
    slow = [pace for pace in case.paces if pace.slow]
    share = np.zeros(case.service.requests.height)
    for pace in slow:
        share[case.service.replicas == pace.replica] = 1 - 1 / pace.ratio.value
    for pace in case.paces:
        told.weigh(
            pace.slow,
            f"Replica {pace.replica} takes {pace.ratio.value:.2f} times the others' time per token at equal load "
            f"(95%: {pace.ratio.low:.2f} to {pace.ratio.high:.2f}).",
        )
    return told.cause(
        explained=float(case.loss.spared(share * np.nan_to_num(case.loss.latency_s)).mean()),
        strength=1.0 if slow else 0.0,
        bindings={"Faults.slow_replica": None, "Faults.slow_factor": 1.0},
        values={"slow_replicas": [pace.replica for pace in slow]},
    )


def few_slots(case: Case) -> Cause:
    """Only so many requests may run at once, and the rest wait while there is memory for them."""
    told = Pleading(name="few_slots", says="too few requests may run at once")
    found = case.ceiling
    if found is None:
        return told.missing("it needs first tokens, and a hundred requests that were blocked")
    told.weigh(
        found.binds,
        f"Never more than {found.slots} requests decode on one replica; so many did while {found.share:.0%} of the "
        f"{found.blocked:,} blocked requests waited.",
    )
    return told.cause(
        explained=float((case.blocked_or_failed * case.waited_for_slots).mean()),
        strength=1.0 if found.binds else 0.0,
        bindings={"Engine.max_seqs": _MORE_SLOTS * found.slots},
        values={"slots": found.slots, "share_under_it": found.share, "blocked": found.blocked},
    )


HYPOTHESES: tuple[Callable[[Case], Cause], ...] = (
    contiguous_allocation,
    slow_interval,
    no_admission_control,
    memory_leak,
    slow_replica,
    few_slots,
)
"""All that are weighed, of equal rank."""
