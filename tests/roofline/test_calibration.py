"""Constants: where they come from is always said, and they predict operations that others measured."""

import dataclasses
import json
from pathlib import Path

import pytest

from nanoserve.roofline import constants_files
from nanoserve.roofline.calibration import Calibration, Collective, Kernel, constants_for, provenance
from nanoserve.roofline.efficiency import Errors, Validation
from nanoserve.specs.chip_registry import chip, chip_names
from nanoserve.specs.errors import ConfigError
from tests.roofline import factories as make

H100 = chip("h100_sxm")
FILES = sorted(path for path in constants_files.FOLDER.glob("*.json") if path != constants_files.VALIDATION)
SHARES = ("memory_share", "compute_share", "quantise_share", "overlap")


@pytest.mark.parametrize("name", chip_names())
@pytest.mark.parametrize("mode", ["sol", "calibrated"])
def test_every_constant_of_every_chip_states_its_source(name, mode):
    for row in provenance(constants_for(chip(name), make.BF16, mode), chip(name)):
        assert len(row) == 4 and row[3], row


@pytest.mark.parametrize("name", chip_names())
def test_a_chip_without_a_file_of_its_own_says_that_it_borrows(name):
    calibration = constants_for(chip(name), make.BF16, "calibrated")
    borrows = not constants_files.stacks(name)
    assert calibration.file.startswith(name) != borrows
    assert ("uncalibrated" in calibration.name) == borrows
    for field in ("matmul", "decode_attention", "prefill_attention", "collectives", "host_gap_s"):
        assert ("uncalibrated" in calibration.sources[field]) == borrows, field


def test_a_chip_that_borrows_says_why_it_is_uncalibrated_until_it_is_validated(monkeypatch):
    monkeypatch.setattr(constants_files, "_validations", dict)
    said = str(constants_for(chip("tpu_v5p"), make.BF16, "calibrated").validation)
    assert said.startswith("uncalibrated: nothing was measured end to end on tpu_v5p")
    assert "not validated" in str(constants_for(H100, make.BF16, "calibrated").validation)


def test_validation_is_read_by_chip_stack_and_mode(monkeypatch):
    found = {"rows": 3, "sources": ["a"], "command": "c", "tpot": {"mean_abs": 0.05, "p50": 0.04, "p90": 0.1}}
    monkeypatch.setattr(constants_files, "_validations", lambda: {"h100_sxm/vllm/calibrated": found})
    validation = constants_for(H100, make.BF16, "calibrated").validation
    assert validation == Validation(
        rows=3, sources=("a",), command="c", errors={"tpot": Errors(mean_abs=0.05, p50=0.04, p90=0.1)}
    )
    assert str(validation) == "mean absolute error on 3 published results: tpot 5.0% (median 4.0%, p90 10.0%)"
    assert not constants_for(H100, make.BF16, "calibrated", "tensorrt_llm").validation.rows


def test_the_limit_has_no_overheads_and_full_shares():
    sol = constants_for(H100, make.FP8, "sol")
    assert sol.host_gap_s == sol.host_row_s == 0
    for field in dataclasses.fields(Calibration):
        value = getattr(sol, field.name)
        if isinstance(value, Kernel):
            assert (value.overhead_s, value.compute_share, value.overlap) == (0, 1, 1) and value.memory_share >= 1


def test_a_number_of_chips_between_two_known_ones_takes_the_larger():
    calibration = constants_for(H100, make.BF16, "calibrated")
    assert calibration.collective_for(3) == calibration.collectives[4]
    assert calibration.collective_for(16) == calibration.collectives[8]


def test_kv_of_eight_bits_has_attention_constants_of_its_own():
    wide, narrow = (constants_for(H100, precision, "calibrated") for precision in (make.BF16, make.FP8))
    assert wide.decode_attention != narrow.decode_attention and wide.prefill_attention != narrow.prefill_attention


def test_shares_are_carried_to_another_chip_and_overheads_are_kept():
    here, there = (constants_for(chip(name), make.BF16, "calibrated") for name in ("h100_sxm", "a100_sxm_80gb"))
    assert there.matmul == here.matmul
    scale = chip("a100_sxm_80gb").link_bytes_per_s / H100.link_bytes_per_s
    assert there.collectives[2].bytes_per_s == pytest.approx(scale * here.collectives[2].bytes_per_s)
    assert there.collectives[2].overhead_s == here.collectives[2].overhead_s


def test_our_own_stack_has_to_be_asked_for(tmp_path, monkeypatch):
    """Else measuring a chip that borrows would change what every simulation of it is priced with."""
    for path in constants_files.FOLDER.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    vllm = json.loads((tmp_path / "h100_sxm.vllm.json").read_text())
    own = vllm | {"chip": "h200_sxm", "stack": constants_files.OWN_STACK, "label": "ours on an H200"}
    (tmp_path / "h200_sxm.nanoserve.json").write_text(json.dumps(own))
    monkeypatch.setattr(constants_files, "FOLDER", tmp_path)
    assert constants_for(chip("h200_sxm"), make.BF16, "calibrated").stack == "vllm"
    asked = constants_for(chip("h200_sxm"), make.BF16, "calibrated", constants_files.OWN_STACK)
    assert (asked.stack, asked.name) == ("nanoserve", "ours on an H200")


def test_an_unknown_mode_or_stack_names_the_nearest():
    with pytest.raises(ConfigError, match="Did you mean 'calibrated'"):
        constants_for(H100, make.BF16, "calibrate")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match=r"Pricing\.stack = 'tensort_llm'.*Did you mean 'tensorrt_llm'"):
        constants_for(H100, make.BF16, "calibrated", "tensort_llm")


# ---- files ----


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_read_and_written_back_unchanged(path, tmp_path):
    name, stack = path.name.split(".")[:2]
    constants_files.save(tmp_path / "again.json", constants_files.read(name, stack))
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_no_constant_is_better_than_the_datasheet_and_every_entry_has_a_source(path):
    file = constants_files.load(*path.name.split(".")[:2])
    for kind, entries in file.constants.items():
        for variant, entry in entries.items():
            assert entry["source"], (kind, variant)
            for share in SHARES:
                assert 0 <= entry.get(share, 1) <= 1, (kind, variant, share)
            assert all(value >= 0 for value in entry.values() if isinstance(value, int | float))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_fitted_entry_states_its_errors_on_rows_that_it_has_not_seen(path):
    for entries in constants_files.read(*path.name.split(".")[:2]).constants.values():
        for entry in entries.values():
            assert ("fit" in entry) == entry["source"].startswith("fitted to ")
            if "fit" in entry:
                held_out = entry["fit"]["held_out"]
                assert held_out["rows"] > 0 and 0 <= held_out["p50"] <= held_out["p90"]
                assert sum(bucket["rows"] for bucket in entry["fit"]["buckets"]) == held_out["rows"]


def test_a_file_takes_from_its_base_what_it_does_not_state_and_says_so():
    base, sync = constants_files.load("h100_sxm", "vllm"), constants_files.load("h100_sxm", "vllm_sync")
    assert sync.kernel("matmul", "fp8") == base.kernel("matmul", "fp8")
    assert sync.source("matmul").endswith("as in h100_sxm.vllm.json")
    assert sync.entry("host", "step") != base.entry("host", "step")
    server = constants_files.load("h100_sxm", "trtllm_serve")  # of a base that has a base itself
    assert server.kernel("attention_decode", "bf16") == base.kernel("attention_decode", "bf16")


def test_constants_from_another_chips_file_say_so():
    sources = constants_for(chip("rtx_pro_6000"), make.BF16, "calibrated").sources
    assert "carried over from h100_sxm.vllm.json as shares of the datasheet" in sources["decode_attention"]


def test_a_damaged_or_incomplete_file_is_an_error_that_names_it(tmp_path, monkeypatch):
    monkeypatch.setattr(constants_files, "FOLDER", tmp_path)
    (tmp_path / "h100_sxm.bad.json").write_text("{")
    (tmp_path / "h100_sxm.odd.json").write_text('{"chip": "h100_sxm"}')
    for stack in ("bad", "odd"):
        with pytest.raises(ConfigError, match=f"h100_sxm.{stack}.json"):
            constants_files.load("h100_sxm", stack)
    file = constants_files.ConstantsFile(chip="c", stack="s", label="", command="", constants={})
    with pytest.raises(ConfigError, match=r"c\.s\.json: has no constants of 'matmul' for 'bf16'"):
        file.entry("matmul", "bf16")


# ---- collectives ----


def test_a_message_takes_the_faster_algorithm_and_many_take_as_long_as_one_by_one():
    both = Collective(1.0, 1.0, bulk=Collective(10.0, 4.0))
    assert sum(both.times(2.0, 1)) == 3.0
    assert sum(both.times(100.0, 1)) == 35.0
    assert sum(both.times(300.0, 3)) == 3 * 35.0


def test_a_message_longer_than_a_library_takes_waits_for_the_other_one():
    both = Collective(1.0, 1.0, longest_bytes=4.0, beyond=Collective(10.0, 1.0))
    assert sum(both.times(4.0, 1)) == 5.0
    assert sum(both.times(5.0, 1)) == 15.0
    assert sum(both.times(8.0, 2)) == 10.0
    assert sum(both.times(0.0, 0)) == 0.0


def test_vllm_leaves_long_messages_of_eight_gpus_to_nccl():
    """256 KiB is its limit there; both libraries' constants are in its file."""
    known = constants_for(H100, make.BF16, "calibrated").collective_for(8)
    ring = 2 * 7 / 8 * (256 << 10)
    assert known.beyond is not None
    assert known.times(ring, 1) != known.beyond.times(ring, 1)
    assert known.times(ring + 1, 1) == known.beyond.times(ring + 1, 1)


def test_a_stack_with_nccl_alone_uses_it_at_every_size():
    entry = {"overhead_s": 1.0, "link_share": 0.5, "source": "s"}
    file = constants_files.ConstantsFile(
        chip="c", stack="s", label="", command="", constants={"all_reduce_nccl": {"2": entry}}
    )
    assert file.collectives(4.0) == {2: Collective(1.0, 2.0)}


@pytest.mark.parametrize("ways", [2, 4, 8])
def test_no_all_reduce_is_faster_than_the_links(ways):
    for stack in constants_files.stacks("h100_sxm"):
        calibrated = constants_for(H100, make.BF16, "calibrated", stack).collective_for(ways)
        limit = constants_for(H100, make.BF16, "sol").collective_for(ways)
        for size in (1e3, 1e6, 1e9):
            assert sum(calibrated.times(size, 1)) >= sum(limit.times(size, 1))


def test_the_constants_ship_with_the_package():
    patterns = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    assert 'nanoserve = ["roofline/constants/*.json"]' in patterns
