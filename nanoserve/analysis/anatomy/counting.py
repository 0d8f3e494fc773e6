"""How many requests there are, how they ended, and the percentiles of every number a log has of them."""

import math

import polars as pl

from nanoserve.analysis.anatomy.sketch import Counts, Floats, merged
from nanoserve.analysis.finding import Finding, Value
from nanoserve.analysis.logs.log_set import Joined
from nanoserve.analysis.wording import figure

PERCENTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.9, 0.95, 0.99, 0.999)
_WHOLE = ("prompt_tokens", "response_tokens", "allocated_blocks", "used_tokens", "turn")
_FLOATS = ("latency_s", "ttft_s")
_SAID = (
    ("prompt_tokens", "The middle prompt has {} tokens"),
    ("response_tokens", "the middle answer {}"),
    ("latency_s", "the middle request takes {} s"),
)
_DAY_S, _HOUR_S = 86400.0, 3600.0


def requests(joined: Joined) -> Finding:
    """`anatomy.requests`: rows, span, mean rate, failures, and rows by status, region and replica."""
    first_s, last_s = span_of(joined)
    span_s = last_s - first_s
    by = {name: _rows_by(joined, name) for name in ("status", "region", "replica") if joined.has(name)}
    failed = sum(number for status, number in by["status"].items() if int(status) >= 400) if "status" in by else None
    rate = (joined.rows - 1) / span_s if span_s > 0 else None
    said = [f"{joined.rows:,} requests in {duration(span_s)}" if joined.rows > 1 else "One request"]
    said += [f"{rate:,.3g} a second on average"] if rate is not None else []
    said += [f"{failed / joined.rows:.2%} of them failed"] if failed is not None else ["no statuses in the log"]
    return Finding(
        key="anatomy.requests",
        title=", ".join(said),
        rows=joined.rows,
        values={
            "requests": joined.rows,
            "span_s": span_s,
            "mean_rate_per_s": rate,
            "failed": failed,
            "failed_share": None if failed is None else failed / joined.rows,
            **{f"requests_by_{name}": dict(numbers) for name, numbers in by.items()},
        },
    )


def numbers(joined: Joined) -> Finding:
    """`anatomy.numbers`: count, mean, standard deviation, least, most and percentiles of every number.

    Answers are those of requests that did not fail: a failed one has none, or a part. Percentiles are numpy's (linear
    between order statistics): exact for integers and for up to a million floats, within 0.1% beyond. The standard
    deviation divides by the number of values.
    """
    values: dict[str, Value] = {}
    for name in (*_WHOLE, *_FLOATS):
        if joined.has(name):
            column = _described(joined, name)
            if column["count"]:
                values[name] = column
    medians = [(words, column["p50"]) for name, words in _SAID if isinstance(column := values.get(name), dict)]
    title = ", ".join(words.format(figure(float(median))) for words, median in medians)
    return Finding(key="anatomy.numbers", title=title, rows=joined.rows, values=values)


def span_of(joined: Joined) -> tuple[float, float]:
    """Seconds of the first and the last arrival."""
    asked = joined.table.select(pl.col("time_s").min().alias("first"), pl.col("time_s").max().alias("last"))
    return asked.collect(engine="streaming").row(0)


def duration(seconds: float) -> str:
    """A time span as people say it."""
    for name, size in (("days", _DAY_S), ("hours", _HOUR_S), ("minutes", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.3g} {name}"
    return f"{seconds:,.3g} s"


def served(joined: Joined) -> pl.Expr:
    """Whether a request did not fail, as far as the log says."""
    return pl.col("status").fill_null(200) < 400 if joined.has("status") else pl.lit(True)


def counts_of(joined: Joined, column: str, only: pl.Expr | None = None) -> Counts:
    """How often each integer of a column occurs; nulls do not.

    Args:
      joined: the log. column: of it. only: which rows count; None means all.
    """
    table = joined.table if only is None else joined.table.filter(only)
    grouped = table.group_by(column).len().drop_nulls().sort(column).collect(engine="streaming")
    return Counts(grouped[column].cast(pl.Int64).to_numpy(), grouped["len"].cast(pl.Int64).to_numpy())


def _described(joined: Joined, column: str) -> dict[str, Value]:
    names = [f"p{100 * at:g}".replace(".", "") for at in PERCENTILES]
    if column in _WHOLE:
        counts = counts_of(joined, column, served(joined) if column == "response_tokens" else None)
        count, mean, std = counts.count, counts.mean, counts.std
        ends = (int(counts.values[0]), int(counts.values[-1])) if count else (math.nan, math.nan)
        percentiles = counts.quantiles(PERCENTILES)
    else:
        floats = merged(joined.batches(column), lambda part: Floats.of(part[column].drop_nulls().to_numpy()))
        count, mean, std = floats.moments.count, floats.moments.mean, floats.moments.std
        ends, percentiles = (floats.least, floats.most), floats.quantiles(PERCENTILES)
    described: dict[str, Value] = {"count": count, "missing": joined.rows - count, "mean": mean, "std": std}
    return described | {"least": ends[0], **dict(zip(names, percentiles.tolist(), strict=True)), "most": ends[1]}


def _rows_by(joined: Joined, column: str) -> dict[str, int]:
    """Rows by value of a column, most first; rows without one are not counted."""
    grouped = joined.table.group_by(column).len().drop_nulls().collect(engine="streaming")
    ordered = grouped.sort(["len", column], descending=[True, False])
    return {str(value): number for value, number in ordered.select(column, "len").iter_rows()}
