"""analyze.py from a command line to its files: small logs of every kind, and whatever a user gets wrong."""

import json
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments import analyze, analyze_files
from nanoserve.analysis.recommend import recommendation
from nanoserve.experiment import CONFIG_CLASSES
from nanoserve.specs.config import load as load_config
from nanoserve.trace.parquet import write_parquet
from nanoserve.trace.source import open_trace
from tests.analysis.recommend.factories import load

REPOSITORY = Path(__file__).parents[2]
CHOSEN = ("--model=llama-3.1-8b", "--chip=h100_sxm", "--slo=llama3.1-8b")

Analyze = Callable[..., tuple[int, str, str]]


class Here(Executor):
    """Does in this process what it is asked, so that no other has to be started."""

    def submit(self, fn, /, *args, **kwargs):
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.fixture
def run(capsys, monkeypatch, tmp_path) -> Analyze:
    """Calls the command with `--out=tmp_path/report`; returns its exit code and what it printed."""
    monkeypatch.setattr(analyze_files, "drawing_helper", Here)

    def call(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        code = analyze.main(["analyze.py", f"--out={tmp_path / 'report'}", *map(str, arguments)])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


@pytest.fixture
def no_plots(monkeypatch) -> None:
    """Leaves the drawing to the tests of the pages."""
    monkeypatch.setattr(analyze_files, "draw_all", lambda *_: {})


def api(count: int = 200, **columns) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    base = {
        "timestamp": [f"2026-03-02T{8 + row // 60:02d}:{row % 60:02d}:00Z" for row in range(count)],
        "request_id": [f"r{row}" for row in range(count)],
        "prompt_tokens": rng.integers(1, 900, count),
        "response_tokens": rng.integers(1, 200, count),
        "status": [200] * count,
        "latency_s": rng.uniform(0.5, 9, count),
    }
    return pl.DataFrame(base | columns)


def findings_of(tmp_path: Path) -> dict[str, dict]:
    written = json.loads((tmp_path / "report" / "findings.json").read_text())
    return {finding["key"]: finding for finding in written["findings"]}


def test_logs_in_three_formats_become_three_files(run: Analyze, tmp_path):
    api().write_csv(tmp_path / "api.csv")
    app = pl.DataFrame(
        {"request_id": ["r0", "r7"], "session_id": ["a", "a"], "user_id": ["x", "x"], "region": ["eu", "eu"]}
    )
    app.write_ndjson(tmp_path / "app.jsonl")
    code, out, err = run(*(tmp_path / name for name in ("api.csv", "app.jsonl")))
    assert (code, err) == (0, "")
    assert [Path(line).name for line in out.splitlines()] == ["report.html", "report.md", "findings.json"]
    assert findings_of(tmp_path)["anatomy.requests"]["values"]["requests"] == 200
    html, markdown = (tmp_path / "report" / name for name in ("report.html", "report.md"))
    assert "<svg" in html.read_text() and markdown.read_text().startswith("# api\n")
    assert str(tmp_path) not in html.read_text() + markdown.read_text()


def test_a_log_of_one_request_says_what_could_not_be_computed(run: Analyze, no_plots, tmp_path):
    api(1).write_csv(tmp_path / "api.csv")
    assert run(tmp_path / "api.csv")[0] == 0
    missing = [finding for finding in findings_of(tmp_path).values() if finding["missing"]]
    assert len(missing) > 5 and all(not finding["values"] for finding in missing)


def test_a_trace_without_statuses_is_a_log_too(run: Analyze, no_plots, tmp_path):
    write_parquet(load(100), tmp_path / "trace.parquet")
    assert run(tmp_path / "trace.parquet")[0] == 0
    assert findings_of(tmp_path)["anatomy.lengths.prompt"]["rows"] == 100


def test_a_unit_is_taken_from_the_flag(run: Analyze, no_plots, tmp_path):
    api().rename({"latency_s": "latency"}).with_columns(pl.col("latency") * 1e3).write_csv(tmp_path / "api.csv")
    code, _, err = run(tmp_path / "api.csv")
    assert code == 2 and "latency" in err and "units" in err
    assert run(tmp_path / "api.csv", "--units=latency=ms")[0] == 0
    assert findings_of(tmp_path)["anatomy.numbers"]["values"]["latency_s"]["p50"] < 10


def test_the_recommended_config_runs_on_the_requests_of_the_log(run: Analyze, no_plots, tmp_path, monkeypatch):
    monkeypatch.setattr(recommendation, "SEARCH_REQUESTS", 50)
    write_parquet(load(120), tmp_path / "trace.parquet")
    code, out, _ = run(tmp_path / "trace.parquet", "--recommend", *CHOSEN)
    assert code == 0
    assert [Path(line).name for line in out.splitlines()][3:] == ["recommended.gin", "requests.parquet"]
    experiment = load_config(tmp_path / "report" / "recommended.gin", CONFIG_CLASSES, "Experiment").value
    assert experiment.model == "llama-3.1-8b" and experiment.slo.name == "llama3.1-8b"
    again = open_trace(experiment.trace)
    assert again.prompt_tokens.tolist() == load(120).prompt_tokens.tolist()
    assert again.output_tokens.tolist() == load(120).answer_tokens.tolist()  # a log does not say what was stated
    keys = findings_of(tmp_path)
    assert {"recommend.values", "proof.outcome", "proof.saturation", "experiments.load"} <= set(keys)


def test_a_log_too_short_for_a_recommendation_says_so_in_the_report(run: Analyze, no_plots, tmp_path):
    api(1).write_csv(tmp_path / "api.csv")
    code, out, _ = run(tmp_path / "api.csv", "--recommend", *CHOSEN)
    assert code == 0 and "recommended.gin" not in out
    assert "held-out" in findings_of(tmp_path)["recommend.values"]["missing"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "no logs are named"),
        (["LOG", "--out="], "--out is missing"),
        (["nowhere.csv"], "nowhere.csv: no such file or folder"),
        (["LOG", "--recomend"], "Did you mean: recommend ?"),
        (["LOG", "--model=llama-3.1-8b"], "--model means something with --recommend only"),
        (["LOG", "--recommend"], "--recommend needs --baseline, or --model, --chip, --slo"),
        (["LOG", "--recommend", "--model=llama-3.1-8b", "--chip=h100_sxm"], "or --slo"),
        (["LOG", "--recommend", "--baseline=llama70_h100"], "Did you mean 'llama70b_h100'?"),
        (["LOG", "--recommend", "--baseline=tiny_cpu"], "--slo is missing"),
        (["LOG", "--recommend", *CHOSEN[:2], "--slo=llama3-8b"], "Did you mean 'llama3.1-8b'?"),
        (["LOG", "--recommend", *CHOSEN, "--mesh=tensor"], "--mesh: 'tensor' is not of the form name=value"),
        (["LOG", "--recommend", *CHOSEN, "--mesh=tensor=all"], "'all' is not a number of chips"),
        (["LOG", "--recommend", *CHOSEN, "--mesh=tensr=1"], "Did you mean 'tensor'?"),
        (["LOG", "--units=latency"], "--units: 'latency' is not of the form name=value"),
        (["LOG", "--time_zone=Mars/Olympus"], "no time zone"),
    ],
)  # fmt: skip
def test_a_slip_is_one_message_and_no_files(run: Analyze, no_plots, tmp_path, arguments, says):
    log = tmp_path / "api.csv"
    api().write_csv(log)
    code, out, err = run(*(str(log) if argument == "LOG" else argument for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ") and err.count("\n") == 1 and says in err
    assert not (tmp_path / "report").exists()


def test_missing_columns_are_said_with_what_is_there(run: Analyze, no_plots, tmp_path):
    api().drop("prompt_tokens").write_csv(tmp_path / "api.csv")
    code, _, err = run(tmp_path / "api.csv")
    assert code == 2 and "prompt_tokens" in err and "response_tokens" in err


def test_a_folder_that_cannot_be_written_is_said(run: Analyze, no_plots, tmp_path):
    api().write_csv(tmp_path / "api.csv")
    (tmp_path / "file").write_text("")
    code, _, err = run(tmp_path / "api.csv", f"--out={tmp_path / 'file' / 'below'}")
    assert code == 2 and "Name a folder that can be written" in err


def test_a_slip_is_said_before_anything_heavy_is_imported(tmp_path):
    heavy = ("jax", "polars", "matplotlib", "scipy", "rich")
    code = (
        "import sys; from experiments.analyze import main; code = main(['analyze.py', 'nowhere', '--out=x']); "
        f"print(code, [name for name in {heavy!r} if name in sys.modules])"
    )
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert ended.stdout == "2 []\n"


def test_the_helper_draws_in_a_process_of_its_own():
    import os

    with analyze_files.drawing_helper() as helper:
        assert helper.submit(os.getpid).result() != os.getpid()
