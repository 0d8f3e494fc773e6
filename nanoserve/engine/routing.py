"""Which replica serves a request: routers as pure functions, registered by name.

One kind of function, with a signature that does not change:

    route (request, views, now_ticks) -> replica

A `ReplicaView` is all that a router knows of a replica: what was sent there and has not come back, and what the prefix
cache of the replica holds. That is what a router in front of real servers can know; it does not look into their queues
or count their free pages. Nothing in a view depends on how steps are gathered into plans. Ties go to the replica with
the lowest number, so every router is deterministic. To try one of your own, register it and name it in the config:

    register_route("first", lambda request, views, now_ticks: 0)
    FleetConfig(router="first")

Next: `fleet`, which asks a `Router` at every arrival.
"""

import dataclasses
from collections.abc import Callable, Sequence

from nanoserve.engine.engine import Engine
from nanoserve.engine.types import Request
from nanoserve.specs.errors import ConfigError, nearest


@dataclasses.dataclass(slots=True)
class ReplicaView:
    """What a router knows of one replica; the fleet keeps it up to date.

    Attributes:
      replica: its number. sent: requests sent there so far.
      requests: those of them that have not left. tokens: prompts of those, and the output that they asked for.
      sessions: sessions of which it was sent a request.
      cached_tokens: request -> tokens of its prompt that the replica's prefix cache holds now.
    """

    replica: int
    sent: int = 0
    requests: int = 0
    tokens: int = 0
    sessions: set[int] = dataclasses.field(default_factory=set)
    cached_tokens: Callable[[Request], int] = lambda request: 0


Route = Callable[[Request, Sequence[ReplicaView], int], int]


class Router:
    """A route and the views that it judges by."""

    def __init__(self, choose: Route, engines: Sequence[Engine], first: int = 0):
        """Nothing was sent anywhere yet.

        Args:
          choose: the route. engines: of the replicas to choose from. first: number of the first of them in their fleet.
        """
        self._choose, self._first = choose, first
        self.views = [
            ReplicaView(number, cached_tokens=engine.scheduler.memory.cached_tokens)
            for number, engine in enumerate(engines)
        ]

    def send(self, request: Request, now_ticks: int) -> int:
        """Chooses the replica of a request.

        Returns:
          Its number in the fleet.

        Raises:
          ConfigError: the route chose none of them.
        """
        number = self._choose(request, self.views, now_ticks)
        if not 0 <= number < len(self.views):
            raise ConfigError(
                f"the router chose replica {number} for request {request.index}; there are {len(self.views)}, numbered "
                "from 0"
            )
        view = self.views[number]
        view.sent += 1
        view.requests += 1
        view.tokens += request.prompt_tokens + request.output_tokens
        if request.session is not None:
            view.sessions.add(request.session)
        return self._first + number

    def left(self, replica: int, request: Request) -> None:
        """A request is no longer on the replica that it was sent to."""
        view = self.views[replica - self._first]
        view.requests -= 1
        view.tokens -= request.prompt_tokens + request.output_tokens


def round_robin(request: Request, views: Sequence[ReplicaView], now_ticks: int) -> int:
    """One after the other."""
    return min(views, key=lambda view: view.sent).replica


def least_loaded(request: Request, views: Sequence[ReplicaView], now_ticks: int) -> int:
    """Fewest outstanding tokens."""
    return min(views, key=lambda view: view.tokens).replica


def session_affinity(request: Request, views: Sequence[ReplicaView], now_ticks: int) -> int:
    """Where the session was before; a new one, or a request without, goes to the least loaded."""
    before = [view for view in views if request.session in view.sessions]
    return least_loaded(request, before or views, now_ticks)


def prefix_affinity(request: Request, views: Sequence[ReplicaView], now_ticks: int) -> int:
    """Longest cached prefix, however busy that replica is; of several, the least loaded."""
    return min(views, key=lambda view: (-view.cached_tokens(request), view.tokens)).replica


def least_work(request: Request, views: Sequence[ReplicaView], now_ticks: int) -> int:
    """Fewest outstanding tokens, this request's included, but for those of its prompt that are cached there.

    Source: Qin et al., "Mooncake" (FAST 2025), algorithm 1, with tokens in the place of the times it estimates.
    """
    return min(views, key=lambda view: view.tokens - view.cached_tokens(request)).replica


_ROUTES: dict[str, Route] = {
    "round_robin": round_robin,
    "least_loaded": least_loaded,
    "session_affinity": session_affinity,
    "prefix_affinity": prefix_affinity,
    "least_work": least_work,
}


def register_route(name: str, choose: Route) -> None:
    """Makes a router known by a name for `FleetConfig.router`, replacing one of that name."""
    _ROUTES[name] = choose


def route(name: str, field: str = "Fleet.router") -> Route:
    """The router of this name, which a field of a config has.

    Raises:
      ConfigError: there is none; the message has the nearest that exists.
    """
    try:
        return _ROUTES[name]
    except KeyError:
        raise ConfigError(f"{field} = '{name}': no such router.{nearest(name, _ROUTES)}") from None
