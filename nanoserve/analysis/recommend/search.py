"""Turns one knob after another on the training requests, and keeps a change only where the requests decide for it.

Each knob is turned while all others are held at what was chosen before it: the curve of trials that this gives is what
its value is read from. A value replaces the one in force if its requests are worth more (`trial`), by an interval that
does not hold zero; or if they are worth the same, and answers come at least 2% sooner or the value is the knob's safer
one. Of several that are worth the same, the one that answers soonest is taken, or, where that cannot be told, the one
nearest to the value in force: the least change that gets there. Next: `proof`.
"""

import dataclasses
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nanoserve.analysis.estimate import Estimate
from nanoserve.analysis.recommend.bootstrap import mean_difference
from nanoserve.analysis.recommend.knobs import Knob, Setting
from nanoserve.analysis.recommend.trial import Trial
from nanoserve.experiment import Experiment
from nanoserve.specs.errors import CapacityError, ConfigError

Run = Callable[[Experiment], Trial]

NO_REMEDIES: Mapping[str, Any] = types.MappingProxyType({})
_NO_VALUE = object()
LEAST_WORTH = 0.001  # of a request: smaller differences are nobody's business
LEAST_PACE = 0.02  # of the time to a first token and to a whole answer
_SERVED = 0.99  # worth of a load that is served
_AT_STAKE = (0.5, 0.8)  # worth of one that is not
MOST_LOAD = 16.0
_NARROWED = 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Curve:
    """One knob, turned while the others were held.

    Attributes:
      knob: which. settings, trials: the values and what they did, in the knob's order.
      held: place of the value that was in force. chosen: place of the value that is to be.
      worth: what the chosen value (or, where none was chosen, the best other one) is worth more than the held one, of a
        request. pace: likewise, how much sooner answers come, as a share.
      verdict: `better`, `sooner`, `safer`, `right`, `undecided`, `alike`, or `same`: no request fares differently.
      tied: places of the settings that cannot be told from the best.
    """

    knob: Knob
    settings: tuple[Setting, ...]
    trials: tuple[Trial, ...]
    held: int
    chosen: int
    worth: Estimate
    pace: Estimate
    verdict: str
    tied: tuple[int, ...]

    @property
    def setting(self) -> Setting:
        """What was chosen."""
        return self.settings[self.chosen]

    @property
    def turned(self) -> bool:
        """Whether something else than the value in force was chosen."""
        return self.chosen != self.held


def turn(knob: Knob, now: Experiment, run: Run, block: np.ndarray) -> Curve | None:
    """Turns one knob.

    Args:
      knob: which. now: what is in force. run: replays the training requests.
      block: int [N], of each request, what is resampled together.

    Returns:
      What was found; None where the knob has nothing to turn here.
    """
    settings = knob.options(now)
    found = [(setting, trial) for setting in settings if (trial := _tried(setting, now, run)) is not None]
    if len(found) < 2:
        return None
    settings, trials = (list(each) for each in zip(*found, strict=True))
    held = next((place for place, setting in enumerate(settings) if setting.holds(now)), None)
    return None if held is None else _judged(knob, settings, trials, held, block)


def _tried(setting: Setting, now: Experiment, run: Run) -> Trial | None:
    """None where the setting does not go with the others."""
    try:
        return run(setting.applied(now))
    except (ConfigError, CapacityError):
        return None


def _judged(knob: Knob, settings: Sequence[Setting], trials: Sequence[Trial], held: int, block: np.ndarray) -> Curve:
    worth = [mean_difference(trials[held].worth, trial.worth, block) for trial in trials]
    pace = [pace_gain(trials[held], trial, block) for trial in trials]
    best = max((place for place in range(len(trials)) if place != held), key=lambda place: worth[place].value)
    tied = tuple(place for place in range(len(trials)) if _level(trials[best], trials[place], block))
    verdict, chosen = _decision(trials, worth, pace, held, best)
    if verdict == "better":
        chosen = _of_equals(tied, trials, held, block)
    safer = next((place for place, setting in enumerate(settings) if setting.label == knob.safer), held)
    if chosen == held != safer and not _worse(worth[safer]):
        verdict, chosen = "safer", safer
    shown = chosen if chosen != held else best
    return Curve(
        knob=knob,
        settings=tuple(settings),
        trials=tuple(trials),
        held=held,
        chosen=chosen,
        worth=worth[shown],
        pace=pace[shown],
        verdict=verdict,
        tied=tied,
    )


def _of_equals(tied: Sequence[int], trials: Sequence[Trial], held: int, block: np.ndarray) -> int:
    """Of places that are worth the same: the one that answers soonest, if that can be told; else the nearest."""
    nearest = min(tied, key=lambda place: abs(place - held))
    allowed = trials[nearest].failed.mean() + LEAST_WORTH
    pace = {place: pace_gain(trials[nearest], trials[place], block) for place in tied}
    sooner = [place for place in tied if _sooner(pace[place]) and trials[place].failed.mean() <= allowed]
    return max(sooner, key=lambda place: pace[place].value) if sooner else nearest


def _sooner(pace: Estimate) -> bool:
    return pace.low > 0 and pace.value >= LEAST_PACE


def _decision(
    trials: Sequence[Trial], worth: Sequence[Estimate], pace: Sequence[Estimate], held: int, best: int
) -> tuple[str, int]:
    """The verdict, and the place that it falls on; `worth` and `pace` are changes from the value in force."""
    if all(_equal(trials[held], trial) for trial in trials):
        return "same", held
    if worth[best].decided and worth[best].value > LEAST_WORTH:
        return "better", best
    allowed = trials[held].failed.mean() + LEAST_WORTH  # refusing some makes the others faster
    others = [place for place in range(len(trials)) if place != held]
    level = [place for place in others if not _worse(worth[place]) and trials[place].failed.mean() <= allowed]
    sooner = [place for place in level if _sooner(pace[place])]
    if sooner:
        return "sooner", max(sooner, key=lambda place: pace[place].value)
    if not level or worth[best].value < -LEAST_WORTH:
        return "right", held
    undecided = worth[best].high > LEAST_WORTH and not worth[best].decided
    return ("undecided" if undecided else "alike"), held


def _equal(one: Trial, other: Trial) -> bool:
    return np.array_equal(one.worth, other.worth) and np.array_equal(one.e2e_s, other.e2e_s, equal_nan=True)


def _level(best: Trial, other: Trial, block: np.ndarray) -> bool:
    return not _worse(mean_difference(best.worth, other.worth, block))


def _worse(worth: Estimate) -> bool:
    return worth.high < 0 and worth.value < -LEAST_WORTH


def pace_gain(before: Trial, after: Trial, block: np.ndarray) -> Estimate:
    """How much sooner answers come, as a share, mean of first tokens and whole answers, of requests that both answer.

    The mean is of logarithms, so that short answers count as much as long ones.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        before_log, after_log = (np.log(trial.ttft_s) + np.log(trial.e2e_s) for trial in (before, after))
    slower = mean_difference(before_log / 2, after_log / 2, block)
    return Estimate(*(float(-np.expm1(each)) for each in (slower.value, slower.high, slower.low)))


def descend(knobs: Sequence[Knob], start: Experiment, run: Run, block: np.ndarray) -> tuple[Experiment, list[Curve]]:
    """Turns every knob once, in order.

    Args:
      knobs: what to turn. start: what is in force at first. run, block: as for `turn`.

    Returns:
      The experiment with all that was chosen, and the curves.
    """
    now, curves = start, []
    for knob in knobs:
        curve = turn(knob, now, run, block)
        if curve is None:
            continue
        curves.append(curve)
        now = curve.setting.applied(now) if curve.turned else now
    return now, curves


def pruned(
    chosen: Experiment, curves: Sequence[Curve], run: Run, block: np.ndarray, remedies: Mapping[str, Any] = NO_REMEDIES
) -> tuple[Experiment, list[str]]:
    """Takes back every change that the others have made needless.

    Args:
      chosen: what `descend` returned. curves: its curves. run: replays more of the training time. block: of those.
      remedies: field of a config -> the value that takes a cause away which the logs name: such a change stays.

    Returns:
      The experiment, and the names of the knobs that were turned back.
    """
    now, taken_back = chosen, []
    full = run(now)
    for curve in reversed([curve for curve in curves if curve.turned]):
        remedy = any(remedies.get(key, _NO_VALUE) == value for key, value in curve.setting.fields.items())
        if remedy or curve.setting.label == curve.knob.safer:
            continue
        without = curve.settings[curve.held].applied(now)
        trial = _tried(curve.settings[curve.held], now, run)
        if trial is None:
            continue
        worth, pace = mean_difference(trial.worth, full.worth, block), pace_gain(trial, full, block)
        gains = (worth.decided and worth.value > LEAST_WORTH) or _sooner(pace)
        if not gains:
            now, full = without, trial
            taken_back.append(curve.knob.name)
    return now, taken_back


def pressure(run_at: Callable[[float], Trial], most: float = MOST_LOAD) -> float:
    """The load at which a config clearly fails its objective, as a multiple of the logged one; at least 1.

    Options can only be told apart where something is at stake. Where the logged load loses less than one request in a
    hundred, times are compressed until between a fifth and a half of the worth is lost, so that many moments speak and
    not one burst.

    Args:
      run_at: replays the training requests at a multiple of their load. most: that is tried.
    """
    if run_at(1.0).worth.mean() < _SERVED:
        return 1.0
    low = high = 1.0
    while run_at(high).worth.mean() > _AT_STAKE[1]:
        if high >= most:
            return most
        low, high = high, min(2 * high, most)
    for _ in range(_NARROWED):
        middle = (low * high) ** 0.5
        worth = run_at(middle).worth.mean()
        if _AT_STAKE[0] <= worth <= _AT_STAKE[1]:
            return middle
        low, high = (middle, high) if worth > _AT_STAKE[1] else (low, middle)
    return high
