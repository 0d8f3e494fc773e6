"""Generated traces: repeatable, and with the statistics that were asked for."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from nanoserve.specs.errors import ConfigError
from nanoserve.trace.arrivals import Diurnal, Gamma, OnOff, Poisson
from nanoserve.trace.lengths import LogNormal, Quantiles
from nanoserve.trace.presets import LEVELS, PRESETS, twin
from nanoserve.trace.readers import read_trace
from nanoserve.trace.synth import SESSION_BLOCK_TOKENS, Sessions, SynthSpec, synthesize
from tests.trace.factories import same, shared

SPEC = SynthSpec(
    name="spec",
    requests=2_000,
    arrivals=Poisson(rate_rps=10.0),
    prompt=LogNormal(median_tokens=300, sigma=0.8, max_tokens=4000),
    output=LogNormal(median_tokens=100, sigma=0.5),
)
CHAT = dataclasses.replace(SPEC, sessions=Sessions(mean_turns=4.0, think_time_s=5.0, max_context_tokens=6000))
PROCESSES = [
    Poisson(rate_rps=10.0),
    Gamma(rate_rps=10.0, cv=3.0),
    OnOff(on_rate_rps=40.0, off_rate_rps=2.5, mean_on_s=1.0, mean_off_s=4.0),
    OnOff(on_rate_rps=50.0, off_rate_rps=0.0, mean_on_s=1.0, mean_off_s=4.0),
    Diurnal(rate_rps=10.0, amplitude=0.9, period_s=60.0),
    Diurnal(rate_rps=10.0, period_s=60.0, table=(0.0, 1.0, 5.0)),
]


def gaps_of(process, count: int = 100_000, seed: int = 0) -> np.ndarray:
    return np.diff(process.times_s(count, np.random.default_rng(seed)), prepend=0.0)


@pytest.mark.parametrize("spec", [SPEC, CHAT, twin("azure_conversation", requests=500)])
def test_one_seed_is_one_trace(spec):
    assert same(synthesize(spec, 7), synthesize(spec, 7))
    assert not same(synthesize(spec, 7), synthesize(spec, 8))


def test_changing_lengths_leaves_arrivals_as_they_were_and_the_other_way_round():
    base = synthesize(SPEC, 1)
    longer = synthesize(dataclasses.replace(SPEC, output=LogNormal(median_tokens=400, sigma=0.5)), 1)
    faster = synthesize(dataclasses.replace(SPEC, arrivals=Poisson(rate_rps=20.0)), 1)
    assert longer.arrival_s.tobytes() == base.arrival_s.tobytes()
    assert longer.prompt_tokens.tobytes() == base.prompt_tokens.tobytes()
    assert faster.output_tokens.tobytes() == base.output_tokens.tobytes()
    np.testing.assert_allclose(faster.arrival_s * 2, base.arrival_s)


@pytest.mark.parametrize("process", PROCESSES, ids=repr)
def test_arrivals_are_sorted_and_keep_their_mean_rate(process):
    gaps = gaps_of(process)
    assert gaps.min() >= 0
    assert 1 / gaps.mean() == pytest.approx(10.0, rel=0.04)


@pytest.mark.parametrize("cv", [0.3, 1.0, 4.0])
def test_gamma_gaps_have_the_spread_asked_for(cv):
    gaps = gaps_of(Gamma(rate_rps=10.0, cv=cv))
    assert gaps.std() / gaps.mean() == pytest.approx(cv, rel=0.03)


def test_poisson_gaps_are_exponential():
    assert stats.kstest(gaps_of(Poisson(rate_rps=10.0), 5_000), "expon", args=(0, 0.1)).pvalue > 0.01


def test_on_off_arrivals_are_burstier_than_poisson_as_theory_says():
    """Index of dispersion of counts in long windows, from the two-state process's closed form."""
    process = OnOff(on_rate_rps=40.0, off_rate_rps=2.5, mean_on_s=1.0, mean_off_s=4.0)
    times = process.times_s(400_000, np.random.default_rng(3))
    counts = np.histogram(times, np.arange(0.0, times[-1], 50.0))[0]
    on, off, window_s = 1 / process.mean_on_s, 1 / process.mean_off_s, 50.0
    both = on + off
    excess = 2 * on * off * (40.0 - 2.5) ** 2 / (both**2 * (40.0 * off + 2.5 * on))
    expected = 1 + excess * (1 - (1 - np.exp(-both * window_s)) / (both * window_s))
    assert counts.var() / counts.mean() == pytest.approx(expected, rel=0.1)


def test_diurnal_table_sends_each_part_its_share():
    times = Diurnal(rate_rps=10.0, period_s=60.0, table=(0.0, 1.0, 5.0)).times_s(60_000, np.random.default_rng(0))
    counts = np.histogram(times % 60.0, [0, 20, 40, 60])[0]
    assert counts[0] == 0
    assert counts[2] / counts[1] == pytest.approx(5.0, rel=0.05)


def test_diurnal_sine_sends_most_a_quarter_into_the_period():
    times = Diurnal(rate_rps=10.0, amplitude=0.8, period_s=60.0).times_s(60_000, np.random.default_rng(0))
    counts = np.histogram(times % 60.0, np.linspace(0, 60, 13))[0]
    expected = 5_000 * (1 + 0.8 * np.sinc(1 / 12) * np.sin(2 * np.pi * (np.arange(12) + 0.5) / 12))
    np.testing.assert_allclose(counts, expected, rtol=0.08)


def test_log_normal_lengths_have_its_quantiles():
    tokens = synthesize(SPEC, 0).prompt_tokens
    levels = np.linspace(0.02, 0.98, 25)
    expected = np.minimum(stats.lognorm.ppf(levels, 0.8, scale=300), 4000)
    np.testing.assert_allclose(np.quantile(tokens, levels), expected, rtol=0.02, atol=1)
    assert tokens.max() <= 4000


@pytest.mark.parametrize("correlation", [-0.7, 0.0, 0.9])
def test_prompt_and_output_are_correlated_as_asked(correlation):
    trace = synthesize(dataclasses.replace(SPEC, requests=20_000, correlation=correlation), 0)
    spearman = stats.spearmanr(trace.prompt_tokens, trace.output_tokens).statistic
    assert spearman == pytest.approx(6 / np.pi * np.arcsin(correlation / 2), abs=0.02)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_azure_twin_has_the_published_trace_statistics(seed):
    published = read_trace(shared("AzureLLMInferenceTrace_conv_2023.csv"))
    made = synthesize(twin("azure_conversation", requests=20_000), seed)
    percentiles = np.arange(1, 100)
    for column in ("prompt_tokens", "output_tokens"):
        wanted = np.percentile(getattr(published, column), percentiles)
        found = np.percentile(getattr(made, column), percentiles)
        assert (np.abs(found - wanted) <= np.maximum(2.0, 0.02 * wanted)).all(), column
        assert getattr(made, column).mean() == pytest.approx(getattr(published, column).mean(), rel=0.02)
    wanted_gaps, found_gaps = np.diff(published.arrival_s), np.diff(made.arrival_s)
    assert found_gaps.mean() == pytest.approx(wanted_gaps.mean(), rel=0.03)
    assert found_gaps.std() / found_gaps.mean() == pytest.approx(wanted_gaps.std() / wanted_gaps.mean(), rel=0.03)


def test_the_azure_constants_are_what_the_command_prints():
    from experiments.trace_quantiles import as_tuple, copula_correlation

    trace = read_trace(shared("AzureLLMInferenceTrace_conv_2023.csv"))
    preset = PRESETS["azure_conversation"]
    for lengths, tokens in ((preset.prompt, trace.prompt_tokens), (preset.output, trace.output_tokens)):
        assert lengths.levels == LEVELS
        assert eval(as_tuple(tokens)) == lengths.tokens
    gaps = np.diff(trace.arrival_s)
    assert preset.rate_rps == round(1 / gaps.mean(), 4)
    assert preset.cv == round(gaps.std() / gaps.mean(), 4)
    assert preset.correlation == round(copula_correlation(trace.prompt_tokens, trace.output_tokens), 4)
    assert preset.requests == len(trace)


def test_a_turn_holds_everything_its_session_said_before():
    trace = synthesize(CHAT, 0)
    assert trace.session is not None and trace.turn is not None
    alone = synthesize(SPEC, 0)
    # Lengths are drawn as without sessions, so each turn's new part can be found again by its output.
    for session in range(int(trace.session.max()) + 1):
        rows = np.flatnonzero(trace.session == session)
        assert trace.turn[rows].tolist() == list(range(len(rows)))
        prompt, output = trace.prompt_tokens[rows], trace.output_tokens[rows]
        assert (prompt[1:] > prompt[:-1] + output[:-1]).all()
        assert len(rows) == 1 or (prompt + output).max() <= 6000
    assert sorted(trace.output_tokens.tolist()) == sorted(alone.output_tokens.tolist())


def test_prompts_of_one_session_share_their_whole_blocks_and_no_others():
    trace = synthesize(CHAT, 0)
    assert trace.session is not None and trace.prefix_hashes is not None
    assert trace.prefix_block_tokens == SESSION_BLOCK_TOKENS
    owner: dict[int, tuple[int, int]] = {}
    for row in range(len(trace)):
        ids = trace.prefix_hashes.row(row).tolist()
        assert len(ids) == trace.prompt_tokens[row] // SESSION_BLOCK_TOKENS
        for depth, block in enumerate(ids):
            assert owner.setdefault(block, (int(trace.session[row]), depth)) == (trace.session[row], depth)
    assert len(owner) == len(set(owner.values()))


def test_session_turns_and_think_times_have_the_means_asked_for():
    spec = dataclasses.replace(
        CHAT, requests=20_000, sessions=dataclasses.replace(CHAT.sessions, max_context_tokens=10**6)
    )
    trace = synthesize(spec, 0)
    assert trace.session is not None
    assert 20_000 / (trace.session.max() + 1) == pytest.approx(4.0, rel=0.05)
    order = np.lexsort((trace.arrival_s, trace.session))
    within = np.diff(trace.session[order]) == 0
    assert np.diff(trace.arrival_s[order])[within].mean() == pytest.approx(5.0, rel=0.05)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Poisson(rate_rps=0.0), "Poisson.rate_rps = 0.0"),
        (lambda: Gamma(rate_rps=1.0, cv=float("nan")), "Gamma.cv = nan"),
        (lambda: OnOff(on_rate_rps=1.0, off_rate_rps=-1.0, mean_on_s=1.0, mean_off_s=1.0), "OnOff.off_rate_rps = -1.0"),
        (lambda: Diurnal(rate_rps=1.0, amplitude=1.5), "Diurnal.amplitude = 1.5"),
        (lambda: Diurnal(rate_rps=1.0, table=(0.0, 0.0)), "Diurnal.table"),
        (lambda: LogNormal(median_tokens=10, sigma=1, max_tokens=0), "LogNormal.max_tokens = 0"),
        (lambda: Quantiles(levels=(0.0, 0.5), tokens=(1, 2)), "Quantiles.levels"),
        (lambda: Quantiles(levels=(0.0, 1.0), tokens=(2, 1)), "Quantiles.tokens"),
        (lambda: Sessions(mean_turns=0.5, think_time_s=1.0), "Sessions.mean_turns = 0.5"),
        (lambda: dataclasses.replace(SPEC, correlation=2.0), "SynthSpec.correlation = 2.0"),
        (lambda: synthesize(SPEC, -1), "seed = -1"),
    ],
)
def test_a_spec_that_cannot_be_names_its_field(make, named):
    with pytest.raises(ConfigError) as caught:
        make()
    assert named in str(caught.value)
