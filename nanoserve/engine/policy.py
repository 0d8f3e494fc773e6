"""Who is next, who gives way, who may come in: policies as pure functions, registered by name.

Three kinds, each a plain function with a signature that does not change:

    order      (view, now_ticks) -> key              the waiting request with the smallest key is next
    victim     (views, now_ticks) -> request index   the running sequence that loses its pages when they run out
    admission  (need, free, kept) -> bool            in pages: whether the next request may start now

A `View` is all that a policy sees of a request. Ties are broken by arrival, then by trace row, so every policy is
deterministic. To try one of your own, register it and name it in the config:

    register_order("longest_first", lambda view, now_ticks: -view.prompt_tokens, steady=True)
    EngineConfig(policy="longest_first")

Cost: a steady order, whose key does not depend on the time or on what others were served, costs O(log n) a request
(`queue.SortedQueue`); any other is asked about all n waiting requests whenever somebody could be admitted, and keeps
plans to one step meanwhile. `youngest` costs nothing, another victim choice O(n) a preemption. Next: `queue`.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.types import to_ticks
from nanoserve.specs.errors import ConfigError, nearest


@dataclasses.dataclass(frozen=True, slots=True)
class View:
    """What a policy sees of a request.

    Attributes:
      index: row in the trace. client: whose it is. priority: larger is more urgent.
      arrival_ticks: when it was sent. waited_ticks: time since then.
      prompt_tokens: length of its prompt. generated: output tokens it has already, after a preemption for instance.
      deadline_ticks: when its first token is due (`EngineConfig.deadline_s`), None without one.
      prefill_ticks: how long its prefill takes at the pace of this run so far, 0 before the first.
      client_tokens: what its client was served, `OUTPUT_WEIGHT` for an output token and 1 for one of a prompt.
        The last two, and only they, are 0 for a steady order.
    """

    index: int
    client: int
    priority: int
    arrival_ticks: int
    waited_ticks: int
    prompt_tokens: int
    generated: int
    deadline_ticks: int | None
    prefill_ticks: int = 0
    client_tokens: int = 0


OrderKey = Callable[[View, int], Any]
Victim = Callable[[Sequence[View], int], int]
Admission = Callable[[int, int, int], bool]

OUTPUT_WEIGHT = 2
"""What an output token costs beside one of a prompt when clients are compared.

Source: Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), section 5.1: w_p = 1, w_q = 2.
"""

AGEING_S = 10.0


@dataclasses.dataclass(frozen=True)
class Order:
    """An order of the queue: its key, and whether a request's key stays as it was when the request was queued."""

    key: OrderKey
    steady: bool


# ---- orders ----


def fcfs(view: View, now_ticks: int) -> int:
    """First come, first served."""
    return view.arrival_ticks


def shortest_first(view: View, now_ticks: int) -> int:
    """Least left to prefill first. Long prompts starve for as long as shorter ones keep coming."""
    return view.prompt_tokens + view.generated


def ageing_priority(level_s: float = AGEING_S) -> OrderKey:
    """Makes the order by priority in which waiting `level_s` is worth one level, so that nobody starves.

    Everybody ages alike, so who is ahead of whom never changes: the order is steady.
    """
    level_ticks = to_ticks(level_s)

    def priority(view: View, now_ticks: int) -> int:
        return view.arrival_ticks - view.priority * level_ticks

    return priority


def fair_share(view: View, now_ticks: int) -> int:
    """The client that was served least is next; among its requests, the first.

    Source: Sheng et al. (OSDI 2024), virtual token counters; a client that comes back starts at the least counter of
    those that are here.
    """
    return view.client_tokens


def deadline(view: View, now_ticks: int) -> tuple[bool, int]:
    """Least slack first: the time left until the first token is due, less what the prefill takes.

    Requests that cannot make it any more, and those without a deadline, come after all that can; under a lasting
    overload they wait for its end.
    """
    if view.deadline_ticks is None:
        return True, view.arrival_ticks
    slack = view.deadline_ticks - now_ticks - view.prefill_ticks
    return slack < 0, slack


# ---- victims ----


def youngest(views: Sequence[View], now_ticks: int) -> int:
    """The last to come in; views are in the order of admission to decoding, then of prefill."""
    return views[-1].index


def least_progress(views: Sequence[View], now_ticks: int) -> int:
    """The one that generated least; the youngest of several. Under first come, first served that is `youngest`."""
    return min(reversed(views), key=lambda view: view.generated).index


def lowest_priority(views: Sequence[View], now_ticks: int) -> int:
    """The least urgent; the youngest of several."""
    return min(reversed(views), key=lambda view: view.priority).index


# ---- admission ----


def watermark(need: int, free: int, kept: int) -> bool:
    """The prompt's pages are free and `EngineConfig.free_page_watermark` of the pool besides, for those who decode."""
    return need + kept <= free


def full_prompt(need: int, free: int, kept: int) -> bool:
    """The prompt's pages are free."""
    return need <= free


# ---- names ----

_ORDERS: dict[str, Order] = {
    "fcfs": Order(fcfs, steady=True),
    "shortest_first": Order(shortest_first, steady=True),
    "priority": Order(ageing_priority(), steady=True),
    "fair_share": Order(fair_share, steady=False),
    "deadline": Order(deadline, steady=False),
}
_VICTIMS: dict[str, Victim] = {
    "youngest": youngest,
    "least_progress": least_progress,
    "lowest_priority": lowest_priority,
}
_ADMISSIONS: dict[str, Admission] = {"watermark": watermark, "full_prompt": full_prompt}


def register_order(name: str, key: OrderKey, *, steady: bool = False) -> None:
    """Makes an order known by a name, replacing one of that name.

    Args:
      name: for `EngineConfig.policy`.
      key: (view, now_ticks) -> anything that compares with its like.
      steady: the key depends on neither `now_ticks`, `waited_ticks`, `prefill_ticks` nor `client_tokens`.
    """
    _ORDERS[name] = Order(key, steady)


def register_victim(name: str, choose: Victim) -> None:
    """Makes a victim choice known by a name for `EngineConfig.victim`."""
    _VICTIMS[name] = choose


def register_admission(name: str, admits: Admission) -> None:
    """Makes an admission rule known by a name for `EngineConfig.admission`.

    Its answer does not count while nothing runs: then whoever is next starts, because it fits alone.
    """
    _ADMISSIONS[name] = admits


def order(name: str) -> Order:
    """The order of this name; raises `ConfigError` where there is none."""
    return _known("policy", name, _ORDERS)


def victim(name: str) -> Victim:
    """The victim choice of this name; raises `ConfigError` where there is none."""
    return _known("victim", name, _VICTIMS)


def admission(name: str) -> Admission:
    """The admission rule of this name; raises `ConfigError` where there is none."""
    return _known("admission", name, _ADMISSIONS)


def check(config: EngineConfig) -> None:
    """Checks that a config's policies exist.

    Raises:
      ConfigError: one that does not, with the nearest that does.
    """
    order(config.policy)
    victim(config.victim)
    admission(config.admission)


def _known[T](field: str, name: str, names: dict[str, T]) -> T:
    try:
        return names[name]
    except KeyError:
        raise ConfigError(f"Engine.{field} = '{name}': no such policy.{nearest(name, names)}") from None
