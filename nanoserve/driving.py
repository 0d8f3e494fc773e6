"""What drives the engines of a replay: the only one itself, replicas a fleet, two pools a disaggregated one.

Next: `replay`, which runs it; `engine.fleet` and `engine.disaggregated`, which are driven.
"""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from nanoserve.building import Member, Pool, build_engine, kv_facts_of, requests_of
from nanoserve.engine.clock import Clock
from nanoserve.engine.disaggregated import DisaggregatedFleet, Link
from nanoserve.engine.engine import Engine, Load
from nanoserve.engine.fleet import Fleet, FleetLoad
from nanoserve.engine.flights import MeasuredFlights, PricedFlights
from nanoserve.engine.log import RunLog
from nanoserve.engine.routing import Router, route
from nanoserve.engine.spool import MemorySpool, Spool
from nanoserve.engine.types import Executor, to_ticks
from nanoserve.experiment import Experiment
from nanoserve.roofline.transfer import pool_transfer_seconds
from nanoserve.trace.types import Trace

if TYPE_CHECKING:
    from nanoserve.executors.jax_executor import JaxExecutor
    from nanoserve.executors.tokens import TokenBook


def engines_of(
    trace: Trace,
    load: Load,
    clock: Clock,
    executors: Iterable[tuple[Pool, Executor]],
    spool: Callable[[], Spool] = MemorySpool,
    book: "TokenBook | None" = None,
) -> list[Member]:
    """An engine for every executor; they share the records of requests. `book` has the ids of a real run."""
    log, members = RunLog(len(trace), spool), []
    for pool, executor in executors:
        own_log = log.of_replica() if members else log
        facts = kv_facts_of(pool, trace, book)
        hands_over = pool.name == "prefill"
        engine = build_engine(
            pool.config, pool.model, trace, pool.pages, executor, clock, load, own_log, facts, hands_over
        )
        members.append(Member(engine=engine, pool=pool))
    return members


def runner_of(
    experiment: Experiment,
    trace: Trace,
    members: Sequence[Member],
    load: FleetLoad,
    clock: Clock,
    executors: "Sequence[JaxExecutor]",
) -> Engine | Fleet:
    """What drives the engines: the only one drives itself."""
    if len(members) == 1:
        return members[0].engine
    engines = [member.engine for member in members]
    first = [member.engine for member in members if member.pool.name != "decode"]
    parts = {
        "load": load,
        "clock": clock,
        "flights": MeasuredFlights() if executors else PricedFlights(),
        "router": Router(route(experiment.fleet.router), first),
        "request_of": requests_of(trace),
    }
    if len(first) == len(engines):
        return Fleet(engines, **parts)
    decode, asked = engines[len(first) :], experiment.disaggregation
    parts["decode_router"] = Router(route(asked.decode_router), decode, len(first))
    if not executors:
        return DisaggregatedFleet(
            first, decode, link=link_between(members[0].pool, members[-1].pool, asked.overlap), **parts
        )
    from nanoserve.executors.sending import send_pages

    return DisaggregatedFleet(first, decode, link=Link(0), send=functools.partial(send_pages, executors), **parts)


def link_between(prefill: Pool, decode: Pool, overlap: str) -> Link:
    """How the KV of a simulated prefill replica gets to the decode pool: over the network, at its datasheet rate.

    Raises:
      ConfigError: a chip's network is not published.
    """
    seconds = pool_transfer_seconds(prefill.model, prefill.cluster, decode.cluster, prefill.precision, 1)
    return Link(to_ticks(float(seconds)), prefill.model.layers if overlap == "layers" else None)
