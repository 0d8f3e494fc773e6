"""What each out-of-memory error says of the pool at that moment, and which kind of shortage it was.

The last line of such a traceback is evidence, in blocks:

    tried to allocate 132 blocks; 310 of 2048 free, largest free run 96; 14 sequences hold 1402, 22 kept sessions hold
    336; largest holder session 1833 with 160

`external`: there was room in total, but not in one run. `leaked`: there would have been, but for blocks that are not
free and that nobody holds. `internal`: had running requests held no more than their tokens need. `kept`: without what
is kept for sessions between two turns. `full`: none of these. The first that applies is the kind.

Series of `failures.memory.errors`: `day` (days since the start), and `external`, `leaked`, `internal`, `kept`, `full`:
errors of that day. Next: `shortage`, the same for requests that waited.
"""

import numpy as np
import polars as pl

from nanoserve.analysis.failures.kinds import Kind, kinds_of_errors
from nanoserve.analysis.finding import Finding, not_computed
from nanoserve.analysis.service import DAY_S, Service

KEY = "failures.memory.errors"
KINDS = ("external", "leaked", "internal", "kept", "full")
_LINE = (
    r"tried to allocate (?P<tried>\d+) blocks; (?P<free>\d+) of (?P<total>\d+) free, largest free run (?P<run>\d+); "
    r"(?P<sequences>\d+) sequences hold (?P<running>\d+), (?P<sessions>\d+) kept sessions hold (?P<kept>\d+)"
)
_NUMBERS = ("tried", "free", "total", "run", "sequences", "running", "sessions", "kept")
_HOLDER = r"largest holder (\w+ \d+) with (\d+)"


def evidence(service: Service) -> pl.DataFrame:
    """The figures of every out-of-memory error that states them.

    Returns:
      One row an error: `time_s`, the groups of the line (blocks and counts, Int64), `holder` (who held most) and
      `holder_blocks`.
    """
    text = pl.col("traceback")
    found = _memory_errors(service).with_columns(text.str.extract_groups(_LINE).alias("line")).unnest("line")
    return found.filter(pl.col("tried").is_not_null()).select(
        "time_s",
        *(pl.col(name).cast(pl.Int64) for name in _NUMBERS),
        text.str.extract(_HOLDER, 1).alias("holder"),
        text.str.extract(_HOLDER, 2).cast(pl.Int64).alias("holder_blocks"),
    )


def _memory_errors(service: Service) -> pl.DataFrame:
    """The rows of the error log that are out-of-memory errors, with a traceback, be it empty."""
    errors = service.errors
    if errors is None:
        return pl.DataFrame(schema={"time_s": pl.Float64, "traceback": pl.String})
    if "traceback" not in errors.columns:
        errors = errors.with_columns(pl.lit("").alias("traceback"))
    return errors.filter(kinds_of_errors(errors) == Kind.OUT_OF_MEMORY).select("time_s", "traceback")


def shortage_kinds(lines: pl.DataFrame, written_share: float) -> pl.Series:
    """Which of `KINDS` each error is.

    Args:
      lines: from `evidence`. written_share: positions written, of those held by requests; 1 if unknown.
    """
    free, tried = pl.col("free"), pl.col("tried")
    leaked = pl.col("total") - free - pl.col("running") - pl.col("kept")
    unwritten = (1 - written_share) * pl.col("running")
    kind = (
        pl.when(tried <= free)
        .then(pl.lit("external"))
        .when(tried <= free + leaked)
        .then(pl.lit("leaked"))
        .when(tried * written_share <= free + unwritten)
        .then(pl.lit("internal"))
        .when(tried <= free + pl.col("kept"))
        .then(pl.lit("kept"))
        .otherwise(pl.lit("full"))
    )
    return lines.select(kind.alias("kind"))["kind"]


def out_of_memory(service: Service, written_share: float) -> Finding:
    """Counts out-of-memory errors by the kind of shortage, and says who held most.

    Args:
      service: with an error log. written_share: as in `shortage_kinds`.

    Returns:
      `failures.memory.errors`; rows are errors.
    """
    if service.errors is None:
        return not_computed(KEY, "Out-of-memory errors", "there is no error log")
    happened = _memory_errors(service).height
    lines = evidence(service)
    if not happened:
        return Finding(key=KEY, title="No request ran out of memory", rows=service.errors.height, values={"errors": 0})
    if not lines.height:
        why = f"{happened:,} errors, and no traceback says how many blocks were tried, free and held"
        return not_computed(KEY, "Out-of-memory errors", why)
    kinds = shortage_kinds(lines, written_share)
    counts = {kind: int((kinds == kind).sum()) for kind in KINDS}
    days = (lines["time_s"].to_numpy() // DAY_S).astype(np.int64)
    span = np.arange(days.max() + 1)
    return Finding(
        key=KEY,
        title=_title(counts, lines.height),
        rows=lines.height,
        values={"errors": happened, "with_evidence": lines.height, **counts, **_medians(lines)},
        series={"day": span}
        | {kind: np.bincount(days[(kinds == kind).to_numpy()], minlength=len(span)) for kind in KINDS},
        because=_because(counts, lines, written_share),
    )


def _medians(lines: pl.DataFrame) -> dict[str, float]:
    columns = ("tried", "free", "run", "running", "kept", "total")
    return {f"{name}_blocks_median": float(np.median(lines[name].to_numpy())) for name in columns}


def _title(counts: dict[str, int], errors: int) -> str:
    roomy = counts["external"] / errors
    if roomy >= 0.5:
        return f"{roomy:.0%} of {errors:,} out-of-memory errors found the blocks free, but not in one run"
    worst = max(counts, key=lambda kind: counts[kind])
    saying = {
        "external": "found the blocks free, but not in one run",
        "leaked": "fit but for blocks that nobody holds",
        "internal": "fit in blocks held and not written",
        "kept": "fit in what sessions keep between turns",
        "full": "met a pool that running requests had filled",
    }[worst]
    return f"{counts[worst] / errors:.0%} of {errors:,} out-of-memory errors {saying}"


def _because(counts: dict[str, int], lines: pl.DataFrame, written_share: float) -> tuple[str, ...]:
    holders = lines["holder"].drop_nulls()
    often = f"{holders.mode().sort()[0]} held most in the largest number of them" if len(holders) else "no holder named"
    middle = _medians(lines)
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in counts.items())
    return (
        f"By kind: {kinds}; of what requests hold, {written_share:.0%} is written.",
        f"In the middle one, {middle['tried_blocks_median']:.0f} blocks were tried with "
        f"{middle['free_blocks_median']:.0f} of {middle['total_blocks_median']:.0f} free and a largest run of "
        f"{middle['run_blocks_median']:.0f}.",
        f"Who held them: running requests {middle['running_blocks_median']:.0f} and sessions between two turns "
        f"{middle['kept_blocks_median']:.0f}, in the middle; {often}.",
    )
