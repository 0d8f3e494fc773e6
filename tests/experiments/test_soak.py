"""The soak holds on to nothing, and would notice if it did."""

import dataclasses

import pytest

from experiments.bench.soak import GROWTH_LIMIT, Sample, Soak, experiment_of, soak

STEADY = Sample(requests=100, resident_bytes=1_000_000, live_arrays=7, compiled=20)


def test_a_short_soak_compiles_nothing_after_warm_up_and_holds_no_more_arrays():
    experiment = experiment_of("tiny_cpu", 1000)
    one_program = dataclasses.replace(experiment.engine, batch_invariant=True)  # compiling takes longer than the soak
    soaked = soak(dataclasses.replace(experiment, engine=one_program))
    assert soaked.requests == 1000 and len(soaked.samples) > 50
    faults = [fault for fault in soaked.faults() if "resident" not in fault]  # so few requests are within the noise
    assert not faults
    assert soaked.samples[0].compiled > 1 and soaked.samples[0].live_arrays > 5


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        ({"compiled": 21}, "1 programs compiled"),
        ({"live_arrays": 8}, "live arrays between 7 and 8"),
        ({"resident_bytes": int(1_000_000 * (1 + 2 * GROWTH_LIMIT))}, "resident memory grew by 2.00%"),
    ],
)
def test_each_fault_is_named(changed: dict, fault: str):
    assert Soak(samples=(STEADY, STEADY), requests=200).faults() == []
    assert Soak(samples=(STEADY, dataclasses.replace(STEADY, **changed)), requests=200).faults() == [fault]
