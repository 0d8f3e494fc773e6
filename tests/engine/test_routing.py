"""Routers: what each looks at, and how a name is looked up."""

import pytest

from nanoserve.engine import routing
from nanoserve.engine.routing import ReplicaView, route
from nanoserve.engine.types import Request
from nanoserve.specs.errors import ConfigError


def _request(session: int | None = None) -> Request:
    return Request(index=0, arrival_ticks=0, prompt_tokens=100, output_tokens=10, session=session)


def _views() -> list[ReplicaView]:
    cached = (0, 64, 96)
    views = [ReplicaView(number, cached_tokens=lambda request, n=number: cached[n]) for number in range(3)]
    views[0].sent, views[0].tokens = 5, 40
    views[1].sent, views[1].tokens = 4, 30
    views[2].sent, views[2].tokens = 6, 90
    views[2].sessions = {7}
    return views


@pytest.mark.parametrize(
    ("name", "session", "expected"),
    [
        ("round_robin", None, 1),
        ("least_loaded", None, 1),
        ("session_affinity", 7, 2),  # however busy
        ("session_affinity", 8, 1),
        ("session_affinity", None, 1),
        ("prefix_affinity", None, 2),
        ("least_work", None, 1),  # 40, 30 - 64, 90 - 96
    ],
)
def test_each_router_looks_at_what_its_name_says(name, session, expected):
    assert route(name)(_request(session), _views(), 0) == expected


def test_equal_replicas_are_taken_by_number():
    views = [ReplicaView(number) for number in range(3)]
    assert {route(name)(_request(), views, 0) for name in ("round_robin", "least_loaded", "prefix_affinity")} == {0}


def test_round_robin_gives_every_replica_its_turn():
    views, seen = [ReplicaView(number) for number in range(3)], []
    for _ in range(6):
        seen.append(routing.round_robin(_request(), views, 0))
        views[seen[-1]].sent += 1
    assert seen == [0, 1, 2, 0, 1, 2]


def test_a_misspelt_router_is_named_with_the_nearest():
    with pytest.raises(ConfigError, match=r"Fleet\.router = 'least_laoded'.*least_loaded"):
        route("least_laoded")


def test_a_router_of_ones_own_goes_by_its_name():
    routing.register_route("always_last", lambda request, views, now_ticks: len(views) - 1)
    assert route("always_last")(_request(), _views(), 0) == 2
