"""The command that fits constants: what it writes, and what it says of input that it cannot use."""

import json

import pytest

from experiments import calibrate
from experiments.calibrate import main
from nanoserve.roofline import constants_files
from tests.roofline import benchmark, tables

pytest.importorskip("polars")
NAMES = ("gemm", "generation_attention", "context_attention", "nccl", "custom_allreduce", "moe")


def run(*arguments: str) -> int:
    return main(["calibrate.py", *arguments])


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """A file of constants and a page, from small tables."""
    folder = tmp_path_factory.mktemp("calibrate")
    tables.write(folder, *NAMES)
    flags = ("--chip=h100_sxm", f"--from={folder}", f"--out={folder / 'out.json'}", f"--report={folder / 'page.md'}")
    assert run(*flags) == 0
    return folder


def test_every_table_becomes_an_entry_with_its_source_and_its_errors(written):
    constants = json.loads((written / "out.json").read_text())["constants"]
    for kind, variant in (
        ("matmul", "fp8"),
        ("attention_decode", "fp8"),
        ("grouped_matmul", "bf16"),
        ("all_reduce", "8"),
    ):
        entry = constants[kind][variant]
        assert entry["source"].startswith("fitted to h100_sxm__x__") and entry["fit"]["held_out"]["rows"] > 0
    assert constants["all_reduce"]["8"]["longest_message_bytes"] == 256 << 10


def test_what_no_table_has_stays_as_it_was_and_int8_borrows_from_fp8(written):
    constants = json.loads((written / "out.json").read_text())["constants"]
    shipped = constants_files.read("h100_sxm", "vllm").constants
    assert all(constants[kind] == shipped[kind] for kind in ("elementwise", "host", "memory"))
    assert constants["matmul"]["int8"]["overhead_s"] == constants["matmul"]["fp8"]["overhead_s"]
    assert constants["matmul"]["int8"]["source"] == "borrowed from matmul fp8: no table has it"


def test_the_file_names_the_command_that_makes_it_and_can_be_read_again(written, monkeypatch):
    monkeypatch.setattr(constants_files, "FOLDER", written)
    (written / "h100_sxm.again.json").write_text((written / "out.json").read_text())
    file = constants_files.read("h100_sxm", "again")
    assert file.command == f"python experiments/calibrate.py --chip=h100_sxm --stack=vllm --from={written}"
    assert file.kernel("matmul", "fp8").tile_tokens == 256


def test_the_page_has_a_row_for_each_fit_and_its_pictures(written):
    page = (written / "page.md").read_text()
    assert "| matrix product, fp8 |" in page and "| NCCL all-reduce, 8 GPUs |" in page
    for picture in ("page_measured.png", "page_residuals.png"):
        assert picture in page and (written / picture).read_bytes().startswith(b"\x89PNG")


def test_a_chip_without_a_file_takes_what_it_borrowed_and_says_so(tmp_path):
    import polars as pl

    for path in tables.write(tmp_path, "generation_attention").glob("*.parquet"):
        pl.read_parquet(path).write_parquet(tmp_path / path.name.replace("h100", "h200"))
    assert run("--chip=h200_sxm", f"--from={tmp_path}", f"--out={tmp_path / 'out.json'}") == 0
    written = json.loads((tmp_path / "out.json").read_text())
    assert (written["chip"], written["stack"], written["base"]) == ("h200_sxm", "vllm", "")
    assert written["constants"]["matmul"]["bf16"]["source"].endswith("taken from h100_sxm.vllm.json")
    assert "fit" not in written["constants"]["matmul"]["bf16"]
    assert written["constants"]["attention_decode"]["bf16"]["source"].startswith("fitted to h200_sxm__")


def test_results_of_our_own_become_a_file_that_says_how_far_off_steps_are(tmp_path, capsys):
    results, out = benchmark.write(tmp_path / "h100.json", noise=0.02), tmp_path / "out.json"
    report = tmp_path / "own.md"
    assert run(f"--from={results}", "--stack=nanoserve", f"--out={out}", f"--report={report}") == 0
    file = constants_files.ConstantsFile(**json.loads(out.read_text()))
    assert (file.name, file.base) == ("h100_sxm.nanoserve.json", "h100_sxm.vllm")
    assert file.command == f"python experiments/calibrate.py --chip=h100_sxm --stack=nanoserve --from={results}"
    assert file.entry("matmul", "bf16_int4")["source"] == "fitted to h100.json, int4 weights multiplied in bf16"
    known, entry = benchmark.KNOWN, file.entry("host", "step")
    assert (entry["call_s"], entry["gap_s"]) == pytest.approx((known.host_call_s, known.host_gap_s), rel=0.15)
    assert 0 < file.validation["step"]["mean_abs"] < 0.03
    shown = capsys.readouterr().out
    page = report.read_text()
    assert page.count("| held out |\n") == len(file.validation["held_out"]) and "`call_s` " in page
    assert shown.count("held out") == len(file.validation["held_out"]) + 1 and "matmul bf16_int4" in shown
    assert "of the datasheet at best: copy 90.0%" in shown and "copy 90.0%" in page


def test_results_without_rows_of_the_chip_change_nothing(tmp_path, capsys):
    results = benchmark.write(tmp_path / "h100.json", device="cpu", absolute_times_count=False)
    assert run(f"--from={results}", "--stack=nanoserve", f"--out={tmp_path / 'out.json'}") == 0
    assert "no rows: " in capsys.readouterr().out and not (tmp_path / "out.json").exists()


def test_a_file_is_of_our_own_stack_and_a_folder_of_any_other(tmp_path, capsys):
    results = benchmark.write(tmp_path / "h100.json")
    assert run(f"--from={results}") == 2 and "give --stack=nanoserve" in capsys.readouterr().err
    assert run(f"--from={tmp_path}", "--stack=nanoserve") == 2
    assert "is not a file of results" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ((), "--from is missing"),
        (("--from=/nowhere/at/all",), "no such folder"),
        (("--from=.", "--chip=h100_smx"), "Did you mean 'h100_sxm'"),
        (("--from=.", "--stack=vlm"), "Did you mean 'vllm'"),
        (("--from=.",), "no table of h100_sxm and vllm"),
        (("--form=.",), "Did you mean: from"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_exit_code_2(flags, said, capsys):
    assert run(*flags) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error.replace('"', "'") and error.count("\n") == 1


def test_help_names_every_flag(capsys):
    assert run("--help") == 0
    shown = capsys.readouterr().out
    assert calibrate.__doc__.splitlines()[0] in shown
    assert all(f"--{name}" in shown.replace("--[no]", "--") for name in ("chip", "from", "stack", "out", "report"))
