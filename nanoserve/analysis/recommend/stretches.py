"""Which part of a trace a choice may look at, and which part judges it.

The rule, stated once and used for every trace: the span is cut into stretches (calendar days from its start where there
are at least three, else eighths of the span); the first, third, fifth ... are for training, the second, fourth, ... are
held out. Both halves then see busy and quiet stretches, and nothing is drawn by chance. `busiest` is the part of the
training time in which options are tried. Next: `trial`.
"""

import dataclasses

import numpy as np

from nanoserve.specs.errors import TraceError

DAY_S, HOUR_S = 86400.0, 3600.0
_LEAST_DAYS = 3
_PARTS = 8  # of a span shorter than that
_WINDOWS = 4  # in a stretch, for `busiest`
_LEAST_BLOCKS = 24
_BLOCKS_S = (HOUR_S, 600.0, 60.0, 10.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """A trace in two.

    Attributes:
      stretch_s: length of a stretch. training, held_out: which requests, bool [N], each true in one of them.
      training_s, held_out_s: time that they cover.
    """

    stretch_s: float
    training: np.ndarray
    held_out: np.ndarray
    training_s: float
    held_out_s: float

    @property
    def rule(self) -> str:
        """The rule, in words."""
        what = "days" if self.stretch_s == DAY_S else f"stretches of {self.stretch_s:,.0f} s"
        return f"the time is cut into {what}; the first, third, ... are for training, the second, fourth, ... held out"


def split(arrival_s: np.ndarray) -> Split:
    """Cuts a trace in two.

    Args:
      arrival_s: float [N], sorted, from the start of the first stretch.

    Raises:
      TraceError: one of the halves would be empty.
    """
    span_s = float(arrival_s[-1]) if len(arrival_s) else 0.0
    stretch_s = DAY_S if span_s >= _LEAST_DAYS * DAY_S else span_s / _PARTS
    if stretch_s <= 0:
        raise TraceError(
            f"{len(arrival_s)} requests over {span_s:g} s cannot be divided into training and held-out time"
        )
    number = np.minimum(arrival_s // stretch_s, np.ceil(span_s / stretch_s) - 1).astype(np.int64)
    held_out = number % 2 == 1
    if held_out.all() or not held_out.any():
        raise TraceError(
            f"all {len(arrival_s)} requests arrive in {'held-out' if held_out.any() else 'training'} time (stretches "
            f"of {stretch_s:g} s): there is nothing to compare. Give a longer trace"
        )
    lengths_s = np.minimum(stretch_s, span_s - np.arange(int(number[-1]) + 1) * stretch_s)
    return Split(
        stretch_s=stretch_s,
        training=~held_out,
        held_out=held_out,
        training_s=float(lengths_s[0::2].sum()),
        held_out_s=float(lengths_s[1::2].sum()),
    )


def busiest(arrival_s: np.ndarray, part: np.ndarray, stretch_s: float, requests: int) -> np.ndarray:
    """The busiest windows of a part, as many as hold so many requests.

    Args:
      arrival_s: float [N], sorted. part: bool [N], where to look. stretch_s: of the split; a window is a quarter of a
        day, or a whole stretch where that is shorter.
      requests: at least so many, or all.

    Returns:
      bool [N]: whole windows within `part`.
    """
    window = (arrival_s // _window_s(stretch_s)).astype(np.int64)
    counts = np.bincount(window[part], minlength=int(window.max()) + 1)
    order = np.argsort(-counts, kind="stable")
    taken = 1 + int(np.searchsorted(np.cumsum(counts[order]), requests))
    return part & np.isin(window, order[:taken])


def rate_rps(arrival_s: np.ndarray, chosen: np.ndarray, stretch_s: float) -> float:
    """The mean rate within the windows that `busiest` chose."""
    windows = len(np.unique(arrival_s[chosen] // _window_s(stretch_s)))
    return int(chosen.sum()) / (windows * _window_s(stretch_s))


def _window_s(stretch_s: float) -> float:
    return stretch_s / _WINDOWS if stretch_s == DAY_S else stretch_s


def blocks(arrival_s: np.ndarray) -> tuple[np.ndarray, float]:
    """Numbers requests by blocks of time that are resampled as a whole: hours where there are enough, else less.

    Returns:
      int [N], dense from 0, and the length of a block in seconds.
    """
    length_s = next((each for each in _BLOCKS_S if len(np.unique(arrival_s // each)) >= _LEAST_BLOCKS), _BLOCKS_S[-1])
    return np.unique(arrival_s // length_s, return_inverse=True)[1], length_s
