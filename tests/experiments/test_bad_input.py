"""Whatever the user gets wrong is one message and exit code 2, said before anything runs."""

import gzip
import os
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.experiments.conftest import REAL, SIMULATED, Command, refusal
from tests.weights.factories import write_gguf

REPOSITORY = Path(__file__).parents[2]
APART = "--set=Disaggregation.decode_mesh={'tensor': 1}"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.68,374,44\n2023-11-16 18:15:50.99,396,109\n"
MOONCAKE = '{"timestamp": 0, "input_length": 20, "output_length": 5}\n'
MOONCAKE += '{"timestamp": 9, "input_length": 7, "output_length": 3}\n'


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        # flags
        (["--confg=tiny_cpu"], "Unknown command line flag 'confg'. Did you mean: config ?"),
        (["--executor=gpu"], "flag --executor=gpu: value should be one of <auto|jax|roofline>"),
        (["tiny_cpu"], "unexpected argument 'tiny_cpu'"),
        (["--config"], "Missing value for flag --config"),
        (["--trace="], "--trace= is empty"),
        (["--out="], "--out= is empty"),
        (["--flagfile=missing"], "missing"),
        # config
        (["--config=llama70_h100"], "Did you mean 'llama70b_h100'?"),
        (["--config=" + "a" * 5000], "no such file"),
        (["--config=/dev/null/x.gin"], "no such file"),
        (["--config=configs"], "no such file"),
        # --set
        (["--set=Engine.max_seqs"], "wanted Class.field=value"),
        (["--set=Engine.max_seqs="], "'' is not a value"),
        (["--set=Engine.max_seqs=[1"], "'[1' is not a value"),
        (["--set=Engin.max_seqs=3"], "there is no class 'Engin'. Did you mean 'Engine'?"),
        (["--set=Engine.max_seq=3"], "Engine has no field 'max_seq'. Did you mean 'max_seqs'?"),
        (["--set=Engine.max_seqs=many"], "Engine.max_seqs = 'many': wanted int"),
        (["--set=Engine.max_seqs=2.5"], "Engine.max_seqs = 2.5: wanted int"),
        (["--set=Engine.max_seqs=0"], "Engine.max_seqs = 0: must be at least 1"),
        (["--set=Engine.max_seqs=%SEQS"], "%SEQS is not defined"),
        (["--set=Engine.max_seqs=@Engine"], "references are not used"),
        (["--set=Experiment.engine=3"], "Experiment.engine is made of fields"),
        # names in the config
        (["--set=Experiment.model=llama-3.1-80b"], "Did you mean 'llama-3.1-8"),
        (["--set=Cluster.chip=h100_sxn"], "Did you mean 'h100_sxm'?"),
        (["--set=Cluster.mesh={'tensr': 1}"], "no axis 'tensr' is priced or executed. Did you mean 'tensor'?"),
        (["--set=Cluster.mesh={'tensor': 0}"], "axis 'tensor' has size 0"),
        (["--set=Fleet.router=least_laoded"], "Did you mean 'least_loaded'?"),
        (["--set=Disaggregation.decode_chip=h200"], "mean nothing without Disaggregation.decode_mesh"),
        ([APART, "--set=Disaggregation.decode_mesh={'tensr': 1}"], "Disaggregation.decode_mesh: no axis 'tensr'"),
        ([APART, "--set=Disaggregation.decode_engine={'max_seq': 3}"], "no field 'max_seq'. Did you mean 'max_seqs'?"),
        ([APART, "--set=Disaggregation.decode_engine={'max_seqs': 2.5}"], "['max_seqs'] = 2.5: wanted int"),
        ([APART, "--set=Disaggregation.decode_engine={'page_tokens': 8}"], "pages go from one pool to the other"),
        ([APART, "--set=Disaggregation.decode_router=first"], "Disaggregation.decode_router = 'first': no such router"),
        ([APART, "--compare_executors"], "compare"),
        (["--set=Cluster.mesh={'pipeline': 2}", "--executor=jax"], "the config asks for 2 x h100_sxm"),
        (["--set=Cluster.expert_divides=pages"], "Cluster.expert_divides"),
        (["--set=Precision.kv=fp7"], "Precision.kv = 'fp7': no such dtype"),
        (["--set=TraceSource.preset=azure_conversatoin"], "Did you mean 'azure_conversation'?"),
        (["--set=Slo.name=llama2-70"], "Did you mean 'llama2-70b'?"),
        (["--set=TraceSource.rate_rps=-1"], "TraceSource.rate_rps = -1"),
        (["--set=Sampling.top_p=2"], "Sampling.top_p = 2"),
    ],
)  # fmt: skip
def test_a_slip_in_the_command_names_itself_and_what_was_meant(command: Command, arguments, says):
    assert says in refusal(command(*SIMULATED, *arguments))


@pytest.mark.parametrize(
    ("text", "line", "says"),
    [
        ("\nEngine.max_seqs = 'x'\n", 2, "wanted int"),
        ("Engine.max_seq = 3\n", 1, "Did you mean 'max_seqs'?"),
        ("\n\nSEQS = 3\n", 3, "SEQS is defined and never used"),
        ("SEQS = 3\nEngine.max_seqs = %SEQ\n", 2, "%SEQ is not defined. Did you mean 'SEQS'?"),
        ("Engine.max_seqs = \n", 1, "syntax error: Unable to parse value"),
        ("Engine.max_seqs = 3\nEngine.max_seqs = 4\n", 2, "already set"),
        ("include 'nowhere.gin'\n", 1, "there is no file"),
        ("import os\n", 1, "a config holds values, not code"),
    ],
)
def test_a_slip_in_a_config_is_said_with_file_and_line(command: Command, tmp_path, text, line, says):
    path = tmp_path / "mine.gin"
    path.write_text(text)
    message = refusal(command(f"--config={path}"))
    assert message.startswith(f"error: {path}:{line}: ")
    assert says in message


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"\x00"])
def test_a_config_that_is_not_text_is_refused(command: Command, tmp_path, content):
    path = tmp_path / "mine.gin"
    path.write_bytes(content)
    assert str(path) in refusal(command(f"--config={path}"))


def test_a_config_whose_name_cannot_name_a_folder_is_refused(command: Command, tmp_path):
    path = tmp_path / "my config.gin"
    path.write_text("TraceSource.requests = 2\n")
    assert "cannot name a folder of a run" in refusal(command(f"--config={path}", "--executor=roofline"))


def test_a_config_error_is_said_before_anything_heavy_is_imported():
    """What makes it fast; the time itself depends on the machine."""
    heavy = ("jax", "polars", "matplotlib", "pandas", "gguf", "tokenizers", "rich")
    code = (
        "import sys; from experiments.run import main; code = main(['run.py', '--set=Engine.max_seq=3']); "
        f"print(code, [name for name in {heavy!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout == "2 []\n"
    assert "Did you mean 'max_seqs'?" in ended.stderr


@pytest.mark.parametrize(
    ("content", "line", "says"),
    [
        (AZURE.replace("ContextTokens", "ContextToken"), 1, "Did you mean 'ContextToken'?"),
        (AZURE.replace(",396,", ",-396,"), 3, "ContextTokens is -396"),
        (AZURE.replace(",396,", ",99999999999,"), 3, "ContextTokens is 99999999999"),
        (AZURE.replace(",396,", ",many,"), 3, "wanted a whole number"),
        (AZURE.replace("18:15:50", "18:15:40"), 3, "Sort the file by time"),
        (AZURE[:-8], 3, "the line is cut short"),
        (MOONCAKE.replace('"timestamp": 9', '"timestamp": NaN'), 2, "arrival time nan s"),
        (MOONCAKE.replace('"timestamp": 0', '"timestamp": 10'), 2, "Sort the file by time"),
        (MOONCAKE.replace('"timestamp": 0', '"timestamp": -1'), 1, "wanted a finite time >= 0"),
        (MOONCAKE[:-20], 2, "the last line is cut short"),
        (MOONCAKE.replace('"output_length": 3', '"output_length": 0'), 2, "output_length is 0"),
    ],
)  # fmt: skip
def test_a_bad_row_of_a_trace_is_said_with_file_and_line(command: Command, tmp_path, content, line, says):
    path = tmp_path / "trace"
    path.write_text(content)
    message = refusal(command(*SIMULATED, f"--trace={path}"))
    assert message.startswith(f"error: {path}:{line}: ")
    assert says in message


def _parquet(path: Path, **columns) -> bytes:
    frame = {"arrival_s": [0.0, 1.0], "prompt_tokens": [3, 4], "output_tokens": [5, 6]} | columns
    pl.DataFrame({name: values for name, values in frame.items() if values}).write_parquet(path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda path: b"", "the file is empty"),
        (lambda path: gzip.compress(AZURE.encode())[:-9], "cut short or damaged"),
        (lambda path: _parquet(path)[:-9], "cut short or damaged"),
        (lambda path: _parquet(path, prompt_tokens=None), "column prompt_tokens is missing"),
        (lambda path: _parquet(path, prompt_tokens=[3, -4]), "prompt_tokens of request 1 is -4"),
        (lambda path: _parquet(path, arrival_s=[0.0, float("nan")]), "arrival_s of request 1 is nan"),
        (lambda path: _parquet(path, arrival_s=[2.0, 1.0]), "wanted sorted times"),
        (lambda path: os.urandom(64) + b"\xff\x00", "is not text"),
    ],
)
def test_a_damaged_trace_file_is_refused_by_name(command: Command, tmp_path, change, says):
    path = tmp_path / "trace"
    path.write_bytes(change(path))
    message = refusal(command(*SIMULATED, f"--trace={path}"))
    assert message.startswith(f"error: {path}") and says in message


def test_a_missing_trace_and_a_folder_are_refused(command: Command, tmp_path):
    assert "is a directory" in refusal(command(*SIMULATED, f"--trace={tmp_path}"))
    assert "no such file" in refusal(command(*SIMULATED, f"--trace={tmp_path / 'trace.csv'}"))
    assert "cannot be read" in refusal(command(*SIMULATED, f"--trace={'a' * 5000}"))


def test_prompts_without_a_tokenizer_are_refused(command: Command, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "Hello", "output_tokens": 4}\n')
    assert "there is no tokenizer" in refusal(command(*SIMULATED, f"--trace={path}"))


def test_a_cut_or_hostile_gguf_header_is_refused(command: Command, tmp_path):
    path = write_gguf(tmp_path / "model.gguf", "llama", {"general.name": "x"}, {})
    whole = path.read_bytes()
    damaged = [whole[:10], whole[:-1], whole[:8] + b"\xff" * 8 + whole[16:], whole[:16] + b"\xff" * 8 + whole[24:]]
    for content in damaged:
        path.write_bytes(content)
        assert str(path) in refusal(command(*REAL, f"--set=Experiment.weights={path}"))


def test_a_cut_or_hostile_safetensors_header_is_refused(command: Command, tmp_path):
    path = tmp_path / "model.safetensors"
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE", "vocab": {}, "merges": []}}')
    header = b'{"a": {"dtype": "F32", "shape": [4611686018427387904, 4], "data_offsets": [0, 8]}}'
    whole = len(header).to_bytes(8, "little") + header + bytes(8)
    for content in (b"", whole[:5], whole[:40], whole, b"\xff" * 8 + whole[8:]):
        path.write_bytes(content)
        message = refusal(command(*REAL, f"--set=Experiment.weights={tmp_path}"))
        assert str(path) in message and "Download it again" in message


@pytest.mark.parametrize(
    ("weights", "says"),
    [("nowhere", "no such file or folder"), ("package:nanoserve-nothing", "'nanoserve-nothing' is not installed")],
)
def test_weights_that_are_not_there_are_refused(command: Command, weights, says):
    assert says in refusal(command(*REAL, f"--set=Experiment.weights={weights}"))


def test_a_model_that_cannot_be_executed_here_says_why(command: Command):
    message = refusal(command("--config=llama70b_h100", "--executor=jax"))
    assert "cannot execute llama-3.1-70b on 8 x h100_sxm with JAX" in message
    assert "Use --executor=auto to simulate it" in message


def test_a_model_that_does_not_fit_its_chips_is_refused(command: Command):
    message = refusal(command(*SIMULATED, "--set=Experiment.model=llama-3.1-70b"))
    assert "leaves no room for KV on 1 x h100_sxm" in message and "It fits with 4 chips" in message


def test_a_page_pool_larger_than_the_device_is_refused(command: Command):
    """800 TB: more than any address space, so that no machine tries to lend them."""
    message = refusal(command(*REAL, "--set=TraceSource.requests=2", f"--set=Engine.num_pages={10**11}"))
    assert "the device has not enough memory" in message and "Lower Engine.num_pages" in message


def test_help_lists_every_flag(command: Command):
    ended = command("--help")
    assert ended.code == 0 and not ended.err
    for name in ("config", "set", "trace", "executor", "out", "print_config"):
        assert f"--{name}" in ended.out.replace("[no]", "")


def test_the_printed_config_loads_to_itself(command: Command, tmp_path):
    printed = command(*SIMULATED, "--set=Engine.max_seqs=7", "--print_config").out
    assert "Engine.max_seqs = 7\n" in printed
    path = tmp_path / "again.gin"
    path.write_text(printed)
    assert command(f"--config={path}", "--print_config").out == printed
