"""Policies: what each prefers, that nobody starves who should not, and that a function of one's own can be used."""

import dataclasses

import pytest

from nanoserve.engine import policy
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.policy import OUTPUT_WEIGHT, View
from nanoserve.engine.types import to_seconds
from nanoserve.specs.errors import ConfigError
from tests.engine.factories import FIXED_TICKS, Job, make_engine

ONE_SLOT = {"max_seqs": 1, "num_pages": 64}


def view(**fields) -> View:
    plain = View(
        index=0,
        client=0,
        priority=0,
        arrival_ticks=0,
        waited_ticks=0,
        prompt_tokens=1,
        generated=0,
        deadline_ticks=None,
    )
    return dataclasses.replace(plain, **fields)


def admissions(jobs, **config) -> list[int]:
    """Requests in the order in which they first got a slot."""
    engine = make_engine(jobs, **config)
    engine.run()
    columns = engine.log.request_columns()
    started = [i for i in columns["request"] if columns["admitted_s"][i] is not None]
    return sorted(started, key=lambda i: columns["first_token_s"][i])


def test_first_come_first_served_is_the_order_of_arrival():
    jobs = [Job(at, prompt, 4) for at, prompt in [(0, 30), (1, 5), (2, 20), (3, 1)]]
    assert admissions(jobs, **ONE_SLOT) == [0, 1, 2, 3]


def test_shortest_first_takes_the_shortest_prompt_that_waits():
    jobs = [Job(at, prompt, 4) for at, prompt in [(0, 30), (1, 9), (2, 20), (3, 1)]]
    assert admissions(jobs, policy="shortest_first", **ONE_SLOT) == [0, 3, 1, 2]


def test_the_more_urgent_goes_first_among_those_who_wait():
    jobs = [Job(0, 5, 4), Job(1, 5, 4), Job(2, 5, 4, priority=2), Job(3, 5, 4, priority=1)]
    assert admissions(jobs, policy="priority", **ONE_SLOT) == [0, 2, 3, 1]


def test_ageing_lets_nobody_starve():
    """Urgent requests come faster than they are served; one that is not urgent waits for those of a level's worth."""
    level = 40 * FIXED_TICKS
    policy.register_order("soon_aged", policy.ageing_priority(to_seconds(level)), steady=True)
    jobs = [Job(0, 5, 8), Job(1, 5, 8), *(Job(2 + 4 * FIXED_TICKS * i, 5, 8, priority=1) for i in range(60))]
    order = admissions(jobs, policy="soon_aged", **ONE_SLOT)
    before, after = order[1 : order.index(1)], order[order.index(1) + 1 :]
    assert len(before) > 5 and len(after) > 30
    assert max(jobs[index].arrival_ticks for index in before) <= level + 1 < min(jobs[i].arrival_ticks for i in after)


def test_without_ageing_the_same_request_would_starve():
    """What the test above relies on: by priority alone the request comes last."""
    policy.register_order("priority_alone", lambda view, now_ticks: -view.priority, steady=True)
    jobs = [Job(0, 5, 8), Job(1, 5, 4), *(Job(2 + i, 5, 8, priority=1) for i in range(30))]
    assert admissions(jobs, policy="priority_alone", **ONE_SLOT)[-1] == 1


def test_a_client_that_asks_for_much_does_not_delay_one_that_asks_for_little():
    greedy = [Job(index, 10, 10, client=0) for index in range(20)]
    jobs = [*greedy, *(Job(30 + index, 10, 10, client=1) for index in range(3))]
    fair, fcfs = (admissions(jobs, policy=name, **ONE_SLOT) for name in ("fair_share", "fcfs"))
    assert [fcfs.index(index) for index in (20, 21, 22)] == [20, 21, 22]
    assert [fair.index(index) for index in (20, 21, 22)] == [1, 3, 5]  # turn by turn


def test_a_client_that_was_away_has_saved_nothing():
    """Client 1 comes when client 0 has been served for long, and gets every other turn, not all turns."""
    late = 10_000 * FIXED_TICKS
    first = [Job(0, 10, 10, client=0) for _ in range(20)]
    jobs = [*first, *(Job(late + i // 2, 10, 10, client=i % 2) for i in range(12))]
    order = [index for index in admissions(jobs, policy="fair_share", **ONE_SLOT) if index >= 20]
    clients = [jobs[index].client for index in order]
    assert max(abs(2 * sum(clients[:n]) - n) for n in range(1, len(clients))) <= 2


def test_shares_count_prompts_and_outputs_by_their_weight():
    """One long output against several long prompts: the clients are level when their weighted tokens are."""
    jobs = [Job(0, 2, 40, client=0), Job(1, 2, 2, client=0), *(Job(1, 20, 1, client=1) for _ in range(8))]
    order = admissions(jobs, policy="fair_share", **ONE_SLOT)
    assert order[0] == 0
    assert order.index(1) == 1 + -(-(2 + OUTPUT_WEIGHT * 40) // (20 + OUTPUT_WEIGHT))


def test_least_slack_goes_first_and_the_hopeless_last():
    def key(due, prefill):
        return policy.deadline(view(deadline_ticks=due, prefill_ticks=prefill), 100)

    assert key(200, 90) < key(150, 20) < key(200, 10)
    assert key(10**9, 0) < key(120, 30) < (True, 0) == (True, 0)
    assert policy.deadline(view(arrival_ticks=3), 100) == (True, 3)


def test_under_a_deadline_more_requests_make_it_than_in_order_of_arrival():
    jobs = [Job(index, 60 if index % 2 else 4, 4) for index in range(40)]
    due = 45 * FIXED_TICKS

    def made(name: str) -> int:
        engine = make_engine(jobs, policy=name, deadline_s=to_seconds(due), **ONE_SLOT)
        engine.run()
        columns = engine.log.request_columns()
        pairs = zip(columns["first_token_s"], columns["arrival_s"], strict=True)
        return sum(first - arrival <= to_seconds(due) for first, arrival in pairs)

    assert made("deadline") >= made("fcfs") > 0


@pytest.mark.parametrize(("name", "expected"), [("youngest", 3), ("least_progress", 2), ("lowest_priority", 1)])
def test_victims(name, expected):
    views = [
        view(index=0, priority=1, generated=9),
        view(index=1, priority=0, generated=5),
        view(index=2, priority=2, generated=1),
        view(index=3, priority=1, generated=7),
    ]
    assert policy.victim(name)(views, 0) == expected


def test_a_victim_keeps_its_tokens_and_the_chosen_one_suffers():
    jobs = [Job(0, 8, 30, priority=int(index != 1)) for index in range(3)]
    engine = make_engine(jobs, num_pages=14, victim="lowest_priority")
    engine.run()
    columns = engine.log.request_columns()
    assert columns["output_tokens"] == [30, 30, 30]
    assert columns["preemptions"][1] > 0 == columns["preemptions"][0]


def test_the_watermark_saves_preemptions():
    jobs = [Job(index * 1000, 20, 40) for index in range(40)]

    def preemptions(**config) -> int:
        engine = make_engine(jobs, num_pages=60, **config)
        engine.run()
        return sum(engine.log.request_columns()["preemptions"])

    full = preemptions(admission="full_prompt")
    assert preemptions(free_page_watermark=0.0) == full > 0
    assert preemptions(free_page_watermark=0.3) * 3 <= full


def test_a_full_queue_refuses_with_its_reason():
    engine = make_engine([Job(index, 8, 20) for index in range(10)], queue_limit=2, **ONE_SLOT)
    engine.run()
    columns = engine.log.request_columns()
    assert columns["finish_reason"] == ["length"] * 3 + ["refused"] * 7
    assert columns["detail"][3] == "the queue is full: 2 requests wait, and Engine.queue_limit is 2"


def test_ones_own_functions_are_used_by_name():
    policy.register_order("longest_first", lambda view, now_ticks: -view.prompt_tokens, steady=True)
    policy.register_victim("oldest", lambda views, now_ticks: views[0].index)
    policy.register_admission("half", lambda need, free, kept: 2 * need <= free)
    jobs = [Job(0, 8, 30), Job(1, 9, 30), Job(2, 10, 30)]
    assert admissions(jobs, policy="longest_first", **ONE_SLOT) == [0, 2, 1]
    engine = make_engine(jobs, num_pages=14, victim="oldest", admission="half")
    engine.run()
    assert engine.log.request_columns()["preemptions"][0] > 0


def test_a_choice_that_does_not_run_is_the_policys_mistake():
    policy.register_victim("nobody", lambda views, now_ticks: 99)
    engine = make_engine([Job(0, 8, 30)] * 3, num_pages=14, victim="nobody")
    with pytest.raises(ConfigError, match=r"Engine\.victim = 'nobody' chose request 99, which does not run"):
        engine.run()


@pytest.mark.parametrize(
    ("field", "wrong", "nearest"),
    [("policy", "fifo", "fcfs"), ("victim", "yungest", "youngest"), ("admission", "water", "watermark")],
)
def test_a_policy_that_does_not_exist_is_named(field, wrong, nearest):
    with pytest.raises(ConfigError, match=rf"Engine\.{field} = '{wrong}'.*'?{nearest}"):
        policy.check(EngineConfig(**{field: wrong}))


def test_deadlines_must_be_set_to_be_kept():
    with pytest.raises(ConfigError, match=r"Engine\.deadline_s"):
        EngineConfig(policy="deadline")
