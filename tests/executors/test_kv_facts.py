"""What engines are told of KV agrees with the trace and with the cost model; what it costs to move is charged."""

import dataclasses

import numpy as np
import pytest

from nanoserve.building import pools_of, priced_executors, prompts_of
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.types import TICKS_PER_S, Kind, Move, MoveKind, Plan
from nanoserve.executors.kv_facts import kv_facts, page_cost_of, page_keys_of
from nanoserve.executors.roofline_executor import RooflineExecutor
from nanoserve.experiment import Cluster, Experiment, resolve
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.counts import StepCounts, causal_pairs
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import step_time
from nanoserve.roofline.transfer import copy_seconds, swap_seconds
from nanoserve.specs.chip_registry import chip, chip_names
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model
from nanoserve.trace.types import Ragged
from tests.executors.factories import lengths_trace

MODEL, PRECISION = model("llama-2-70b"), Precision()
EIGHT = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 8})
CONSTANTS = constants_for(EIGHT.chip, PRECISION, "calibrated")


def ragged(rows: list[list[int]]) -> Ragged:
    return Ragged(np.array([one for row in rows for one in row], np.int64), np.cumsum([0, *map(len, rows)]))


def test_ids_of_a_trace_say_what_pages_hold_answers_included():
    trace = lengths_trace([4, 9], [4, 1], [0.0, 1.0])
    first, second = [1, 2, 3, 4], [1, 2, 3, 4, 5, 6, 7, 8, 9]
    prompts = dataclasses.replace(trace, prompt_ids=ragged([first, second]))
    whole = dataclasses.replace(prompts, output_ids=ragged([[5, 6, 7, 8], [0]]))
    assert page_keys_of(prompts, 4)(0, 8) == page_keys_of(prompts, 4)(1, 9)[:1]
    assert page_keys_of(whole, 4)(0, 8) == page_keys_of(whole, 4)(1, 9)


def test_prompts_that_are_drawn_share_exactly_the_hashed_blocks():
    trace = lengths_trace([14, 13, 9], [1] * 3, [0.0] * 3)
    trace = dataclasses.replace(trace, prefix_hashes=ragged([[7, 8, 9], [7, 8, 3], [-2, 8]]), prefix_block_tokens=4)
    first, second, third = (prompts_of(trace, 50_000, seed=1)(row).tolist() for row in range(3))
    assert [len(first), len(second), len(third)] == [14, 13, 9]
    assert first[:8] == second[:8] and first[8:12] != second[8:12] and first[:4] != third[:4]
    assert first[12] != second[12]
    assert prompts_of(trace, 50_000, seed=2)(0).tolist() != first


def test_a_page_costs_its_products_and_the_attention_to_what_came_before():
    cost = page_cost_of(MODEL, 16)
    assert cost(0) == 1.0
    assert [cost(depth + 1) > cost(depth) for depth in (0, 10, 1000)] == [True] * 3
    assert cost(2000) - cost(1000) == pytest.approx(cost(1000) - cost(0))
    windowed = page_cost_of(model("mistral-7b-v0.1"), 16)
    assert windowed(1000) == windowed(300) > windowed(0)


def test_swapping_is_chosen_where_two_trips_take_less_time_than_one_prefill():
    config = EngineConfig(preemption="cheaper")
    decide = kv_facts(config, lengths_trace([1], [1], [0.0]), MODEL, EIGHT, PRECISION, CONSTANTS).swap_is_cheaper
    assert decide is not None
    for tokens in (1, 100, 1000, 10_000, 100_000):
        pairs = causal_pairs(0, tokens)
        counts = StepCounts(1, 0, 0, 0, 1, tokens, pairs, pairs, tokens, tokens, 0)
        prefill_s = step_time(step_ops(MODEL, EIGHT, PRECISION, counts), EIGHT, CONSTANTS)
        assert decide(tokens) == (2 * swap_seconds(MODEL, EIGHT, PRECISION, tokens) < prefill_s)


def test_a_plan_waits_for_what_it_swaps_and_not_for_what_another_engine_sent():
    executor = RooflineExecutor(MODEL, EIGHT, PRECISION, CONSTANTS)
    counts = StepCounts(1, 4, 4000, 4000, sampled=4)

    def ticks(*kinds: MoveKind) -> int:
        moves = [Move(kind, 0, 0, range(63), 1000) for kind in kinds]
        result = executor.submit(Plan(0, Kind.DECODE, 1, counts, tuple, moves=moves)).result()
        assert result.duration_ticks == result.first_step_ticks
        return result.duration_ticks

    trip = swap_seconds(MODEL, EIGHT, PRECISION, 1000) * TICKS_PER_S
    assert ticks(MoveKind.OUT) - ticks() == pytest.approx(trip)
    assert ticks(MoveKind.OUT, MoveKind.IN) - ticks() == pytest.approx(2 * trip)
    assert ticks(MoveKind.RECEIVE) == ticks()
    copy = copy_seconds(MODEL, EIGHT, PRECISION, 1000) * TICKS_PER_S
    assert ticks(MoveKind.COPY) - ticks() == pytest.approx(copy)
    assert ticks(MoveKind.COPY, MoveKind.OUT, MoveKind.COPY) - ticks() == pytest.approx(trip + 2 * copy)


def test_a_chip_whose_host_link_is_not_published_cannot_be_swapped_on_in_simulation():
    name = next(name for name in chip_names() if chip(name).host_bytes_per_s is None)
    experiment = Experiment(
        model="tiny-llama", cluster=Cluster(chip=name), engine=EngineConfig(preemption="swap", num_pages=9)
    )
    with pytest.raises(ConfigError, match="no host_bytes_per_s"):
        list(priced_executors(pools_of(experiment, resolve(experiment)), lengths_trace([1], [1], [0.0])))
