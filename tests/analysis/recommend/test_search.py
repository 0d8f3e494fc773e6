"""Knobs are turned where the requests decide for it, and only there; on made-up trials whose truth is known."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from nanoserve.analysis.recommend import search
from nanoserve.analysis.recommend.knob_list import KNOBS, knobs_for
from nanoserve.analysis.recommend.knobs import Knob, Setting
from nanoserve.analysis.recommend.trial import Trial
from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import Cluster, Experiment, SloConfig
from nanoserve.specs.errors import ConfigError
from nanoserve.trace.source import TraceSource, open_trace

REQUESTS = 400
BLOCK = np.arange(REQUESTS) // 10
START = Experiment(engine=EngineConfig(max_seqs=64), slo=SloConfig(name="llama3.1-8b"))


def trial(good: float = 1.0, failed: float = 0.0, e2e_s: float = 10.0, noise: int = 0) -> Trial:
    """A share of the requests good and another failed, spread evenly; `noise` moves who is good."""
    place = (np.arange(REQUESTS) * 37 + 11 * noise) % REQUESTS / REQUESTS
    lost = place >= 1 - failed
    return Trial(
        good=(place < good) & ~lost,
        failed=lost,
        ttft_s=np.where(lost, np.nan, e2e_s / 10),
        tpot_s=np.where(lost, np.nan, 0.01),
        e2e_s=np.where(lost, np.nan, e2e_s),
        output_tokens=1,
        reasons={},
        peak_waiting=0,
        kv_utilization=1.0,
    )


def knob(*seqs: int) -> Knob:
    settings = [Setting(label=str(each), fields={"Engine.max_seqs": each}) for each in seqs]
    return Knob(name="batch", subject="Batch", settings=lambda now: list(settings), evidence=(), axis="sequences")


def by_seqs(trials: dict[int, Trial]) -> Callable[[Experiment], Trial]:
    return lambda experiment: trials[experiment.engine.max_seqs]


def turned(trials: dict[int, Trial]) -> search.Curve:
    curve = search.turn(knob(*trials), START, by_seqs(trials), BLOCK)
    assert curve is not None
    return curve


def test_a_value_that_is_worth_more_is_taken():
    curve = turned({32: trial(0.5), 64: trial(0.7), 128: trial(0.95)})
    assert (curve.verdict, curve.setting.label) == ("better", "128")
    assert curve.worth.value == pytest.approx(0.25, abs=0.01) and curve.worth.low > 0


def test_of_values_that_are_worth_the_same_the_nearest_is_taken():
    curve = turned({64: trial(0.5), 128: trial(0.9), 256: trial(0.9), 512: trial(0.9)})
    assert curve.setting.label == "128" and curve.tied == (1, 2, 3)


def test_of_values_that_are_worth_the_same_one_that_answers_sooner_is_taken():
    curve = turned({64: trial(0.5), 128: trial(0.9), 256: trial(0.9, e2e_s=9.0), 512: trial(0.9)})
    assert (curve.verdict, curve.setting.label) == ("better", "256")


def test_a_value_that_was_right_stays():
    curve = turned({32: trial(0.5), 64: trial(0.9), 128: trial(0.4)})
    assert (curve.verdict, curve.setting.label, curve.turned) == ("right", "64", False)


def test_what_the_requests_cannot_decide_stays_and_is_said():
    after = trial(0.9)
    swayed = np.random.default_rng(0).random(REQUESTS) < 0.5
    after = dataclasses.replace(after, good=after.good ^ (swayed & (BLOCK % 2 == 0)))
    before = dataclasses.replace(trial(0.9), good=trial(0.9).good ^ (swayed & (BLOCK % 2 == 1)))
    worth = search.mean_difference(before.worth, after.worth, BLOCK)
    assert worth.low < 0 < worth.high
    pair = {64: before, 128: after} if worth.value > 0 else {64: after, 128: before}
    assert turned(pair).verdict == "undecided" and not turned(pair).turned


def test_where_no_request_fares_differently_it_is_said():
    assert turned({64: trial(0.9), 128: trial(0.9)}).verdict == "same"


def test_answers_that_come_sooner_decide_between_equals():
    curve = turned({64: trial(0.9), 128: trial(0.9, e2e_s=9.0)})
    assert (curve.verdict, curve.setting.label) == ("sooner", "128")
    assert curve.pace.value == pytest.approx(0.1)


def test_answers_that_come_sooner_because_others_are_refused_do_not_count():
    curve = turned({64: trial(0.9), 128: trial(0.91, failed=0.02, e2e_s=5.0)})
    assert not curve.turned


def test_of_equals_the_safer_one_is_taken_and_stays_taken():
    careful = dataclasses.replace(knob(64, 128), safer="128")
    found, curves = search.descend([careful], START, lambda experiment: trial(0.9), BLOCK)
    assert curves[0].verdict == "safer" and found.engine.max_seqs == 128
    assert search.pruned(found, curves, lambda experiment: trial(0.9), BLOCK) == (found, [])


def test_a_safer_value_that_is_worth_less_is_not_taken():
    careful = dataclasses.replace(knob(64, 128), safer="128")
    _, curves = search.descend([careful], START, by_seqs({64: trial(0.9), 128: trial(0.5)}), BLOCK)
    assert curves[0].verdict == "right"


def test_a_value_in_force_that_is_not_among_the_options_is_tried_too():
    curve = search.turn(knob(16, 128), START, by_seqs({16: trial(0.1), 64: trial(0.9), 128: trial(0.2)}), BLOCK)
    assert curve is not None and curve.verdict == "right"
    assert [setting.label for setting in curve.settings] == ["16", "64", "128"] and curve.held == 1


def test_an_option_that_does_not_go_with_the_others_is_left_out():
    def run(experiment: Experiment) -> Trial:
        if experiment.engine.max_seqs == 128:
            raise ConfigError("not together")
        return trial(0.9)

    curve = search.turn(knob(32, 64, 128), START, run, BLOCK)
    assert curve is not None and [setting.label for setting in curve.settings] == ["32", "64"]


def test_a_change_that_others_made_needless_is_taken_back():
    def run(experiment: Experiment) -> Trial:
        few, chunked = experiment.engine.max_seqs < 128, experiment.engine.prefill_chunk_tokens == 512
        return trial(0.5 if few and not chunked else 0.9)

    chunk = dataclasses.replace(
        knob(),
        name="chunk",
        settings=lambda now: [
            Setting(label=str(tokens), fields={"Engine.prefill_chunk_tokens": tokens}) for tokens in (None, 512)
        ],
    )
    found, curves = search.descend([knob(64, 128), chunk], START, run, BLOCK)
    assert [curve.turned for curve in curves] == [True, False] and found.engine.max_seqs == 128
    chunked, curves = search.descend([chunk], START, run, BLOCK)
    both = dataclasses.replace(chunked, engine=dataclasses.replace(chunked.engine, max_seqs=128))
    pruned, back = search.pruned(both, curves, run, BLOCK)
    assert back == ["chunk"] and pruned == found
    pruned, back = search.pruned(both, curves, run, BLOCK, {"Engine.prefill_chunk_tokens": 512})
    assert not back and pruned == both


@pytest.mark.parametrize("limit", [0.5, 1.3, 2.4, 7.0])
def test_the_pressure_is_where_a_load_is_clearly_not_served(limit):
    found = search.pressure(lambda load: trial(min(1.0, (limit / load) ** 2)))
    lost = 1 - min(1.0, (limit / found) ** 2)
    assert found == 1.0 if limit < 1 else 0.2 - 1e-2 <= lost <= 0.5 + 1e-2


def test_a_config_that_never_fails_is_pressed_as_far_as_it_goes():
    assert search.pressure(lambda load: trial()) == 16.0


def test_every_setting_of_every_knob_can_be_applied_or_is_refused():
    trace = open_trace(TraceSource(requests=20, mean_turns=2.0))
    base = Experiment(model="llama-3.1-70b", cluster=Cluster(mesh={"tensor": 8}), slo=SloConfig(name="llama2-70b"))
    knobs = knobs_for(trace)
    assert len({each.name for each in knobs}) == len(knobs) >= 13
    for each in knobs:
        settings = each.settings(base)
        assert len({setting.label for setting in settings}) == len(settings) >= 2
        for setting in settings:
            assert setting.holds(setting.applied(base))
            assert each.label_of(settings, setting.applied(base)) == setting.label
        assert each.label_of(settings, base) in [setting.label for setting in settings]


def test_a_log_without_sessions_and_prefixes_has_no_knobs_for_them():
    names = {each.name for each in knobs_for(open_trace(TraceSource(requests=5)))}
    assert {each.name for each in KNOBS} - names == {"kept_sessions", "prefix_cache"}


def test_pages_of_another_size_are_as_much_memory():
    base = Experiment(engine=EngineConfig(num_pages=1000, page_tokens=16))
    page = next(each for each in KNOBS if each.name == "page")
    for setting in page.settings(base):
        engine = setting.applied(base).engine
        assert engine.page_tokens * (engine.num_pages or 0) == 16000


def test_axes_that_divide_nothing_do_not_make_another_mesh():
    setting = Setting(label="1 x 8", fields={"Cluster.mesh": {"data": 1, "tensor": 8}})
    assert setting.holds(Experiment(cluster=Cluster(mesh={"tensor": 8})))
    assert not setting.holds(Experiment(cluster=Cluster(mesh={"data": 2, "tensor": 4})))
