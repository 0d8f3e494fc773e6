"""Whether latencies can be what their unit says: seconds that are milliseconds, or a column that holds both.

An answer takes between 0.1 ms and 5 s a token on every machine there is; a log whose middle request is outside was
named in the wrong unit, and one in which a part of the requests takes a thousand times as long as the rest has two. It
is asked for, not mended. A unit that the caller states is believed.
"""

import numpy as np
import polars as pl

from nanoserve.specs.errors import TraceError

_LEAST_S, _MOST_S = 1e-4, 5.0
_LEAST_ROWS, _LEAST_SHARE = 20, 0.01
_ROWS = 1_000_000  # the first so many answers stand for all
_DECADES_APART = (2.5, 3.5)
_EMPTY_DECADES = 0.5


def check(api: pl.LazyFrame, column: str) -> None:
    """Refuses latencies that cannot be.

    Args:
      api: the api log, cleaned, with `latency_s`. column: what the file calls it.

    Raises:
      TraceError: saying what the latencies would mean, and how to state their unit.
    """
    stated = api.collect_schema().names()
    served = pl.col("status").fill_null(200) < 400 if "status" in stated else pl.lit(True)
    answered = api.filter(served & (pl.col("response_tokens") > 0) & (pl.col("latency_s") > 0))
    per_token = answered.select(pl.col("latency_s") / pl.col("response_tokens")).head(_ROWS).collect(engine="streaming")
    values = np.sort(per_token.to_series().to_numpy())
    if len(values) < _LEAST_ROWS:
        return
    middle = float(values[len(values) // 2])
    if not _LEAST_S <= middle <= _MOST_S:
        raise TraceError(
            f"{column} makes {middle:,.3g} s for each token of the middle answer, which no machine takes: its unit is "
            f"not what its name says. State it: units={{'{column}': 'ms'}} (--units={column}=ms)"
        )
    share = _share_apart(values)
    if share:
        raise TraceError(
            f"{column} of {share:.1%} of the requests is about a thousand times that of the others for each token, "
            "with nothing in between: it seems to hold milliseconds and seconds. Put each into a file of its own, "
            "with a name that says the unit; if it is right as it is, state "
            f"units={{'{column}': 's'}} (--units={column}=s)"
        )


def _share_apart(values: np.ndarray) -> float:
    """The share of the larger ones of two heaps a thousandfold apart; 0 where there are no two such heaps.

    Args:
      values: float [N], sorted, positive.
    """
    decades = np.log10(values)
    least = max(int(_LEAST_SHARE * len(decades)), 5)
    steps = np.diff(decades)[least - 1 : len(decades) - least]
    if not len(steps) or steps.max() < _EMPTY_DECADES:
        return 0.0
    cut = least + int(np.argmax(steps))
    apart = np.median(decades[cut:]) - np.median(decades[:cut])
    return (len(decades) - cut) / len(decades) if _DECADES_APART[0] <= apart <= _DECADES_APART[1] else 0.0
