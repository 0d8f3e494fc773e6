"""ServeGen's clients: rates, spreads and lengths come out as they went in."""

import collections
import csv
import io
import json
import tarfile

import numpy as np
import pytest

from nanoserve.specs.errors import ConfigError, TraceError
from nanoserve.trace.servegen import generate
from tests.trace.factories import same, shared

RATES = """client,window_start_s,rate_rps,cv,pattern,param1,param2
3,0,0.5,1,Gamma,1.0,2.0
3,600,1.0,2,Gamma,0.25,4.0
5,0,0.25,1,Weibull,1.0,4.0
5,600,0,0,Gamma,1.0,1.0
"""
LENGTHS = {
    3: {
        "0": {"input_tokens": "{4: 0.5, 6: 0.5}", "output_tokens": "{9: 1.0}"},
        "600": {"input_tokens": "{}", "output_tokens": "{}"},
    },
    5: {"0": {"input_tokens": "{100: 0.25, 200: 0.75}", "output_tokens": "{7: 2.0}"}},
}


@pytest.fixture
def files(tmp_path):
    """A rates file and a lengths archive of two clients."""
    return write(tmp_path, RATES, LENGTHS)


def write(folder, rates: str, lengths: dict) -> tuple[str, str]:
    (folder / "rates.csv").write_text(rates)
    with tarfile.open(folder / "lengths.tar.xz", "w:xz") as archive:
        for client, periods in lengths.items():
            content = json.dumps(periods).encode()
            member = tarfile.TarInfo(f"model/chunk-{client}-dataset.json")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return str(folder / "rates.csv"), str(folder / "lengths.tar.xz")


def test_every_client_sends_what_its_windows_say(files):
    trace = generate(*files, end_s=1200)
    long = trace.prompt_tokens >= 100
    assert np.histogram(trace.arrival_s[~long], [0, 600, 1200])[0].tolist() == [300, 600]
    assert np.histogram(trace.arrival_s[long], [0, 600, 1200])[0].tolist() == [150, 0]
    assert trace.client is not None
    assert [len(set(trace.client[part].tolist())) for part in (long, ~long)] == [1, 1]


def test_lengths_follow_the_histograms(files):
    trace = generate(*files, end_s=1200)
    counts = collections.Counter(trace.prompt_tokens.tolist())
    assert counts[200] / (counts[100] + counts[200]) == pytest.approx(0.75, abs=0.12)
    assert set(counts) == {4, 6, 100, 200}
    assert set(trace.output_tokens.tolist()) == {9, 7}


def test_lengths_come_from_the_period_that_has_begun(tmp_path):
    later = {3: LENGTHS[3] | {"600": {"input_tokens": "{50: 1.0}", "output_tokens": "{9: 1.0}"}}, 5: LENGTHS[5]}
    trace = generate(*write(tmp_path, RATES, later), end_s=1200)
    assert set(trace.prompt_tokens[trace.arrival_s >= 600].tolist()) == {50}
    assert 50 not in trace.prompt_tokens[trace.arrival_s < 600]


@pytest.mark.parametrize(("pattern", "shape", "cv"), [("Gamma", 0.25, 2.0), ("Weibull", 0.5, 5**0.5)])
def test_gaps_have_the_spread_of_their_pattern(tmp_path, pattern, shape, cv):
    """Coefficient of variation in closed form: 1/sqrt(shape) of a Gamma; of a Weibull with shape 1/2, sqrt(5)."""
    rates = RATES.split("\n")[0] + f"\n3,0,100.0,0,{pattern},{shape},1.0\n"
    gaps = np.diff(generate(*write(tmp_path, rates, LENGTHS), end_s=600).arrival_s)
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.04)


def test_a_rate_scales_all_clients_alike(files):
    trace = generate(*files, end_s=600, rate_rps=7.5)
    assert len(trace) == pytest.approx(4500, abs=2)
    assert (trace.prompt_tokens >= 100).mean() == pytest.approx(1 / 3, abs=0.001)


def test_a_part_of_the_day_is_that_part_of_the_day(files):
    whole = generate(*files, end_s=1200, seed=4)
    part = generate(*files, start_s=300, end_s=600, seed=4)
    inside = (whole.arrival_s >= 300) & (whole.arrival_s < 600)
    np.testing.assert_allclose(part.arrival_s, whole.arrival_s[inside] - 300)


def test_one_seed_is_one_trace(files):
    assert same(generate(*files, end_s=600, seed=1), generate(*files, end_s=600, seed=1))
    assert not same(generate(*files, end_s=600, seed=1), generate(*files, end_s=600, seed=2))


def test_fitted_clients_keep_their_counts_and_mean_lengths():
    rates, lengths = shared("servegen_deepseek-r1_rates.csv"), shared("servegen_deepseek-r1_lengths_top73.tar.xz")
    trace = generate(str(rates), str(lengths), start_s=3600, end_s=4800)
    with open(rates, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["window_start_s"] in ("3600", "4200")]
    assert len(trace) == pytest.approx(sum(float(row["rate_rps"]) * 600 for row in rows), rel=1e-3)
    assert trace.client is not None and trace.client.max() + 1 == len({row["client"] for row in rows})
    assert trace.prompt_tokens.mean() == pytest.approx(_mean_prompt(lengths, rows), rel=0.03)


def _mean_prompt(lengths, rows: list[dict[str, str]]) -> float:
    """The mean prompt length that rates and histograms imply, computed without arrays."""
    weights: collections.Counter[str] = collections.Counter()
    for row in rows:
        weights[row["client"]] += float(row["rate_rps"])  # type: ignore[assignment]
    total = 0.0
    with tarfile.open(lengths, "r|xz") as archive:
        for member in archive:
            weight, file = weights[member.name.split("-")[2]], archive.extractfile(member)
            if file is None or weight == 0:
                continue
            pairs = [pair.split(":") for pair in json.load(file)["0"]["input_tokens"].strip("{}").split(",")]
            shares = sum(float(share) for _, share in pairs)
            total += weight * sum(float(tokens) * float(share) for tokens, share in pairs) / shares
    return total / sum(weights.values())


@pytest.mark.parametrize(
    ("rates", "says"),
    [
        (RATES.replace("param1", "param"), "rates.csv:1: not ServeGen's rates: column param1 is missing"),
        (RATES.replace("Weibull", "Pareto"), "rates.csv:4: client 5"),
        (RATES.replace("0.25,1,W", "fast,1,W"), "rates.csv:4: could not convert string to float: 'fast'"),
        (RATES.replace("600,1.0,2,Gamma,0.25,4.0", "600"), "rates.csv:3: "),
        (RATES.replace("\n5,", "\n6,"), "no lengths for clients [6]"),
    ],
)
def test_bad_rates_are_refused(tmp_path, rates, says):
    with pytest.raises(TraceError) as caught:
        generate(*write(tmp_path, rates, LENGTHS), end_s=1200)
    assert says in str(caught.value)


def test_bad_lengths_are_refused(tmp_path, files):
    rates, lengths = files
    content = (tmp_path / "lengths.tar.xz").read_bytes()
    for damaged in (content[: len(content) // 2], content[:40], b"", b"not a tar" * 99):
        (tmp_path / "lengths.tar.xz").write_bytes(damaged)
        with pytest.raises(TraceError, match=r"lengths\.tar\.xz"):
            generate(rates, lengths, end_s=1200)
    broken = {3: {"0": {"input_tokens": "{4: x}", "output_tokens": "{9: 1.0}"}}}
    with pytest.raises(TraceError, match=r"lengths\.tar\.xz"):
        generate(*write(tmp_path, RATES, broken), end_s=1200)


def test_parts_of_the_day_that_cannot_be_are_refused(files):
    with pytest.raises(ConfigError, match="out of range"):
        generate(*files, start_s=10, end_s=10)
    with pytest.raises(TraceError, match="no client sends anything"):
        generate(*files, start_s=5000, end_s=6000)
