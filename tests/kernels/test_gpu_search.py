"""The search for block sizes keeps what fits and compiles, prefers what its costs say, and ships what it found."""

import dataclasses
import json

import pytest

from experiments import tune
from kernels.pallas import aot_gpu
from kernels.pallas.gpu_target import MULTIPROCESSORS
from kernels.pallas.paged_attention import gpu_search, gpu_tuning
from kernels.pallas.paged_attention.gpu_search import PROBLEMS, Problem, Verdict
from kernels.pallas.paged_attention.gpu_tuning import Blocks
from nanoserve.specs import chip_registry
from nanoserve.specs.errors import ConfigError

CHIP, SM = chip_registry.chip("h100_sxm"), MULTIPROCESSORS["h100_sxm"]
DECODE = Problem(kind="decode", head_size=128, kv_bytes=2)
GOOD = aot_gpu.ResourceReport(
    kernels=1, registers=168, spill_bytes=0, shared_bytes=1000, wgmma_serialised=False, seconds=1.0
)


def cost(problem: Problem, **sizes: int) -> float:
    return gpu_search.seconds_per_position(problem, Blocks(**sizes), CHIP, SM)


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_every_problem_has_candidates_and_all_of_them_fit(problem):
    found = gpu_search.candidates(problem, SM)
    assert found
    assert all(gpu_search.shared_bytes(problem, blocks) <= SM.block_shared_bytes for blocks in found)
    assert all((blocks.converted == 0) == (problem.kv_bytes == 2) for blocks in found)


def test_with_little_in_flight_latency_sets_the_pace_and_then_bandwidth_does():
    bytes_of_position = 2 * DECODE.head_size * DECODE.kv_bytes
    one, two, four, five = (cost(DECODE, block_tokens=64, stages=stages) for stages in (1, 2, 4, 5))
    assert one == bytes_of_position * gpu_search.LATENCY_S / (64 * bytes_of_position / 2)
    assert one > two
    assert four == five == pytest.approx(bytes_of_position * SM.count / CHIP.hbm_bytes_per_s)


def test_a_conversion_costs_nothing_where_it_has_a_second_slot_to_hide_in():
    prefill = Problem(kind="prefill", head_size=128, kv_bytes=1)
    alone, beside = (cost(prefill, block_tokens=64, stages=4, converted=slots) for slots in (1, 2))
    assert alone > beside


def test_candidates_are_ranked_by_cost_and_equals_by_bytes_in_flight():
    found = gpu_search.ranked(DECODE, CHIP, SM)
    costs = [gpu_search.seconds_per_position(DECODE, blocks, CHIP, SM) for blocks in found]
    assert costs == sorted(costs)
    equals = [gpu_search.bytes_in_flight(DECODE, blocks) for blocks in found if costs[0] == cost(
        DECODE, block_tokens=blocks.block_tokens, stages=blocks.stages, converted=blocks.converted
    )]  # fmt: skip
    assert equals == sorted(equals, reverse=True)
    assert set(found) == set(gpu_search.candidates(DECODE, SM))


def test_the_search_ends_with_the_first_that_the_compiler_takes():
    order = gpu_search.ranked(DECODE, CHIP, SM)

    def compiles(problem, blocks):
        if blocks == order[0]:
            raise ValueError("no such layout\nand a long story")
        return dataclasses.replace(GOOD, spill_bytes=8) if blocks == order[1] else GOOD

    verdicts = list(gpu_search.search(DECODE, CHIP, SM, compiles))
    assert [verdict.blocks for verdict in verdicts] == order[:3]
    assert [verdict.refused for verdict in verdicts] == ["no such layout", "spills 8 bytes of registers", ""]
    assert gpu_search.chosen(verdicts) is verdicts[2]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({}, ""),
        ({"spill_bytes": 4}, "spills 4 bytes"),
        ({"wgmma_serialised": True}, "products wait"),
        ({"shared_bytes": 232_449}, "232,448 are there"),
    ],
)
def test_a_refusal_gives_its_reason(change, reason):
    got = gpu_search.refusal(dataclasses.replace(GOOD, **change), SM)
    assert reason in got
    assert bool(got) == bool(reason)


def test_where_all_are_refused_the_one_that_spills_least_is_chosen_and_nothing_is_an_error():
    def verdict(spilled: int | None) -> Verdict:
        report = None if spilled is None else dataclasses.replace(GOOD, spill_bytes=spilled)
        return Verdict(problem=DECODE, blocks=Blocks(), seconds_per_position=1.0, report=report, refused="bad")

    few = verdict(4)
    assert gpu_search.chosen([verdict(8), few, verdict(None)]) is few
    with pytest.raises(ConfigError, match=r"no block sizes for Problem.*: bad"):
        gpu_search.chosen([verdict(None)])


def test_the_shipped_table_has_an_entry_that_fits_for_every_problem():
    entries = gpu_tuning.entries()
    assert set(entries) == {dataclasses.astuple(problem) for problem in PROBLEMS}
    for problem in PROBLEMS:
        entry = entries[dataclasses.astuple(problem)]
        sizes = {name: entry[name] for name in ("block_tokens", "stages", "converted")}
        assert entry["source"] in ("static", "measured")
        assert Blocks(**sizes) in gpu_search.candidates(problem, SM)
        # The compiler's count of shared memory is the model's, less what that reserves.
        reserved = gpu_search.shared_bytes(problem, Blocks(**sizes)) - entry["shared_bytes"]
        assert 0 <= reserved <= gpu_search.RESERVED_BYTES


def test_the_command_writes_the_table_that_the_kernels_read(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(aot_gpu, "available", lambda: True)
    monkeypatch.setattr(gpu_search, "compile_for", lambda problem, blocks: GOOD)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    out = tmp_path / "gpu.json"
    assert tune.main(["tune.py", "--chip=h100_sxm", f"--out={out}"]) == 0
    written = json.loads(out.read_text())
    assert written["chip"] == "h100_sxm"
    monkeypatch.setattr(gpu_tuning, "TABLE", out)
    gpu_tuning.entries.cache_clear()
    assert len(gpu_tuning.entries()) == len(PROBLEMS)
    gpu_tuning.entries.cache_clear()
    assert capsys.readouterr().out.count(": taken") == len(PROBLEMS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chip=h100"], "h100_sxm"),
        (["--chip=tpu_v5e"], "--chip=tpu_v5e: its kernels have no tuner"),
        (["--chips=h100_sxm"], "See --help"),
        ([], "run `make aot-gpu`, and then this command"),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(arguments, message, monkeypatch, capsys):
    monkeypatch.setattr(aot_gpu, "available", lambda: False)
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert tune.main(["tune.py", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert message in error
