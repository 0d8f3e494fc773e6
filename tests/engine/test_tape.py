"""A recorded run is made again from its tape, decision by decision, whatever the clock says now."""

import random

import pytest

from nanoserve.engine.engine import Engine
from nanoserve.engine.snapshot import Outline, freeze, thaw
from nanoserve.engine.tape import Diverged, play, record
from nanoserve.engine.types import TICKS_PER_S, Plan
from nanoserve.roofline.counts import StepCounts
from tests.engine.factories import Done, Job, LinearExecutor, make_engine


class Erratic:
    """Has a random number generator, which belongs to the world and not to the engine's state."""

    _rng: random.Random

    def __getstate__(self):
        return {name: value for name, value in vars(self).items() if name != "_rng"}


class Moody(Erratic, LinearExecutor):
    """An executor that takes another time for every plan, and estimates badly, as a shared machine does."""

    def __init__(self, seed: int | None):
        super().__init__({index: 1 + index % 5 for index in range(0, 30, 4)})
        self._rng = random.Random(seed)

    def submit(self, plan: Plan) -> Done:
        done = super().submit(plan)
        factor = self._rng.randint(1, 9)
        done.value.duration_ticks *= factor
        done.value.first_step_ticks *= factor
        done.value.host_ticks = self._rng.randrange(1000)
        return done

    def steps_before(self, counts: StepCounts, span_ticks: int | None) -> int:
        return self._rng.randint(1, 6)


class Jumpy(Erratic):
    """A clock that passes while nobody looks; ticks as large as in the middle of a long run."""

    def __init__(self, seed: int | None):
        self._rng, self._now = random.Random(seed), 0

    def start(self) -> None:
        self._now = max(self._now, 40 * TICKS_PER_S)

    def now(self) -> int:
        self._now += self._rng.randrange(2_000_000)
        return self._now

    def step_done(self, duration_ticks: int) -> int:
        return self.now()

    def wait_until(self, ticks: int) -> None:
        self._now = max(self._now, ticks - self._rng.randrange(500_000))


JOBS = [Job(40 * TICKS_PER_S + 1_500_000 * n, 1 + n * 7 % 40, 1 + n * 5 % 30) for n in range(30)]


def engine_of(seed: int | None, **knobs) -> Engine:
    engine = make_engine(JOBS, num_pages=24, executor=Moody(seed), **knobs)
    engine.clock = Jumpy(seed)  # type: ignore[assignment]
    return engine


def records(engine: Engine) -> list[str]:
    return [*engine.log.event_lines(), repr(engine.log.request_columns()), repr(engine.log.step_columns(24))]


def plans_of(engine: Engine) -> list[tuple]:
    return engine.executor.executor.plans  # type: ignore[attr-defined]


@pytest.mark.parametrize("knobs", [{}, {"policy": "shortest_first"}, {"batching": "static", "static_timeout_s": 1e-11}])
def test_a_played_run_is_the_recorded_one(knobs: dict):
    recorded, again = engine_of(1, **knobs), engine_of(2, **knobs)
    tape = record(recorded)
    recorded.run()
    player = play(again, tape.rows())
    again.run()
    assert plans_of(again) == plans_of(recorded) and len(plans_of(again)) > 40
    assert records(again) == records(recorded)
    assert player.played == len(tape.rows())


def test_recording_changes_nothing():
    recorded, alone = engine_of(1), engine_of(1)
    record(recorded)
    recorded.run()
    alone.run()
    assert records(recorded) == records(alone)


def test_times_are_kept_to_the_tick():
    tape = record(engine := engine_of(1))
    for ticks in (0, 1, TICKS_PER_S - 1, TICKS_PER_S, 86_400 * TICKS_PER_S + 7):
        tape.note(0, ticks)
    played = play(engine, tape.rows())
    assert [played.next(0) for _ in range(5)] == [0, 1, TICKS_PER_S - 1, TICKS_PER_S, 86_400 * TICKS_PER_S + 7]


@pytest.mark.parametrize("knobs", [{"policy": "shortest_first"}, {"max_step_tokens": 16}, {"max_seqs": 2}])
def test_a_run_under_another_config_parts_from_the_tape_or_makes_other_records(knobs: dict):
    tape = record(recorded := engine_of(1))
    recorded.run()
    other = engine_of(1, **knobs)
    play(other, tape.rows())
    try:
        other.run()
    except Diverged as parted:
        assert "answers the engine asks for a" in str(parted)
    else:
        assert records(other) != records(recorded)


def test_a_tape_that_ends_too_soon_is_said():
    tape = record(recorded := engine_of(1))
    recorded.run()
    again = engine_of(1)
    play(again, tape.rows()[:100])
    with pytest.raises(Diverged, match=r"after 100 answers the engine asks for a .*; the recorded run had its end"):
        again.run()


def test_a_run_that_was_interrupted_by_a_snapshot_is_played_whole():
    """The tape is part of the state, so that of a resumed run has no gap; the world's answers after it are its own."""
    first, resumed, again = engine_of(1), engine_of(2), engine_of(3)
    record(first)
    tape = record(resumed)
    outline, fresh, kept = Outline(first), Outline(resumed), []
    first.run(observe=lambda done, now: kept.append(freeze(first, outline)) if len(kept) < 20 else None)
    thaw(kept[-1], fresh)
    resumed.run()
    play(again, tape.rows())
    again.run()
    assert records(again) == records(resumed)
