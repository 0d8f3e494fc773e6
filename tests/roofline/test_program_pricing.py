"""A table of timed programs prices plans: what was timed comes back, and what lies between is linear."""

import pytest

from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.program_pricing import Measured, Program, ProgramPricer, ProgramTime, program_times

TICKS_PER_S = 1 << 60
TRUE = {
    Program(1): ProgramTime(0.0, 0.010, 1e-5, 0.0),
    Program(4): ProgramTime(0.0, 0.013, 2e-5, 0.0),
    Program(1, loops=True): ProgramTime(0.002, 0.008, 1e-5, 0.0),
    Program(4, loops=True): ProgramTime(0.002, 0.011, 2e-5, 0.0),
    Program(0, 16): ProgramTime(0.0, 0.020, 0.0, 3e-5),
    Program(0, 64): ProgramTime(0.0, 0.050, 0.0, 5e-5),
    Program(4, 16): ProgramTime(0.0, 0.030, 2e-5, 3e-5),
    Program(4, 64): ProgramTime(0.0, 0.060, 2e-5, 5e-5),
}


def call(program: Program, steps: int, decode_kv: int, prefill_kv: int) -> Measured:
    """What timing a program of `TRUE` gives, without noise."""
    time = TRUE[program]
    seconds = time.call_s + steps * time.step_s + decode_kv * time.decode_kv_s + prefill_kv * time.prefill_kv_s
    return Measured(
        program=program, steps=steps, decode_kv_tokens=decode_kv, prefill_kv_tokens=prefill_kv, seconds=seconds
    )


def calls() -> list[Measured]:
    """The fewest calls from which every number can be had, pairs before their parts."""
    found = []
    for program in reversed(TRUE):
        rows, tokens, loops = program
        if rows and tokens:
            found.append(call(program, 1, rows, tokens))
        elif tokens:
            found += [call(program, 1, 0, tokens), call(program, 1, 0, 500)]
        elif loops:
            found += [call(program, 8, 36 * rows, 0), call(program, 8, 900 * rows, 0), call(program, 2, 3 * rows, 0)]
        else:
            found += [call(program, 1, rows, 0), call(program, 1, 200 * rows, 0)]
    return found


def test_the_table_is_what_the_calls_were_made_of():
    found = program_times(calls())
    assert found.keys() == TRUE.keys()
    for program, time in TRUE.items():
        assert found[program] == pytest.approx(time, abs=1e-12), program


@pytest.mark.parametrize(
    ("counts", "seconds"),
    [
        (StepCounts(decode_seqs=1, decode_kv_tokens=100), 0.010 + 100e-5),
        (StepCounts(decode_seqs=3, decode_kv_tokens=100), 0.013 + 200e-5),  # padded to 4 rows
        (StepCounts(steps=5, decode_seqs=2, decode_kv_tokens=50), 0.002 + 5 * 0.011 + 100e-5),
        (StepCounts(prefill_seqs=1, prefill_tokens=17, prefill_kv_tokens=20), 0.050 + 100e-5),
        (  # beside a chunk there is no program of a single row
            StepCounts(decode_seqs=1, decode_kv_tokens=10, prefill_seqs=1, prefill_tokens=16, prefill_kv_tokens=16),
            0.030 + 20e-5 + 48e-5,
        ),
    ],
)
def test_a_plan_costs_its_program_and_the_kv_it_reads(counts, seconds):
    pricer = ProgramPricer(TRUE, ticks_per_s=TICKS_PER_S)
    assert pricer.plan_ticks(counts) / TICKS_PER_S == pytest.approx(seconds, rel=1e-12)


def test_the_first_step_and_its_growth_add_up_to_the_plan():
    pricer = ProgramPricer(TRUE, ticks_per_s=TICKS_PER_S)
    rows, steps, past = 2, 7, 90
    attended = sum(rows * (past + 1 + step) for step in range(steps))
    counts = StepCounts(steps=steps, decode_seqs=rows, decode_kv_tokens=attended)
    first, growth = pricer.first_step_ticks(counts, rows), rows * TRUE[Program(4, loops=True)].decode_kv_s
    whole = steps * first / TICKS_PER_S + growth * steps * (steps - 1) / 2
    assert whole == pytest.approx(pricer.plan_ticks(counts) / TICKS_PER_S, rel=1e-9)


@pytest.mark.parametrize("span_s", [0.001, 0.0105, 0.05, 0.7])
def test_the_steps_before_an_event_are_the_fewest_that_last_until_it(span_s):
    pricer = ProgramPricer(TRUE, ticks_per_s=TICKS_PER_S)
    rows, past = 3, 40
    span = round(span_s * TICKS_PER_S)

    def lasting(steps: int) -> int:
        attended = sum(rows * (past + 1 + step) for step in range(steps))
        # priced as a loop also where there is one step: that is the call that the answer decides about
        time = TRUE[Program(4, loops=True)]
        return round((time.call_s + steps * time.step_s + attended * time.decode_kv_s) * TICKS_PER_S)

    one = StepCounts(decode_seqs=rows, decode_kv_tokens=rows * (past + 1))
    steps = pricer.steps_before(one, span, rows)
    assert steps >= 1
    if steps > 1:
        assert lasting(steps - 1) < span
    assert lasting(steps) >= span or steps == 1


def test_steps_that_noise_made_free_are_as_many_as_one_likes_before_an_event():
    free = {program: time._replace(step_s=0.0, decode_kv_s=0.0) for program, time in TRUE.items()}
    one = StepCounts(decode_seqs=3, decode_kv_tokens=120)
    assert ProgramPricer(free, ticks_per_s=TICKS_PER_S).steps_before(one, TICKS_PER_S, 3) > 1024


def test_without_loops_plans_have_one_step():
    single = {program: time for program, time in TRUE.items() if not program.loops}
    assert ProgramPricer(single).steps_before(StepCounts(decode_seqs=1, decode_kv_tokens=5), 1 << 62, 1) == 1


def test_a_slope_below_zero_is_noise_and_taken_as_none():
    noisy = [
        Measured(program=Program(1), steps=1, decode_kv_tokens=1, prefill_kv_tokens=0, seconds=0.011),
        Measured(program=Program(1), steps=1, decode_kv_tokens=500, prefill_kv_tokens=0, seconds=0.010),
    ]
    time = program_times(noisy)[Program(1)]
    assert time.decode_kv_s == 0 and 0.010 <= time.step_s <= 0.011
