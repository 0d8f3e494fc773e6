"""What the attention benchmark writes down: runs, shapes, and a summary that only measured shapes are in.

A file holds `runs` (a command on a machine, with the ceilings measured then) and `shapes`, each naming its run: figures
are compared within a run. A shape is `measured`, `skipped` (the implementation asked for does not serve it) or `failed`
(with its error); none is ever dropped. The file is complete after every shape.

Next: `attention_plot`.
"""

import dataclasses
import statistics
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.bench.attention_shapes import KINDS, BenchShape, Useful
from experiments.bench.results_file import FAILED, MEASURED, SKIPPED, Record, ResultsFile
from nanoserve.report.units import MISSING, share, short, significant, time

OURS, CEILINGS = "ours", "ceilings"
COUNTS = (
    "useful_bytes: KV positions attended, read once, and queries and results, by nanoserve.roofline.ops; "
    "flops: q k and p v of the query-key pairs under the causal mask; "
    "copy_fraction, matmul_fraction: against the ceilings of the same run; "
    "error: |result - truth| / |truth| of the first call"
)


@dataclasses.dataclass
class Results(ResultsFile):
    """The content of a file.

    Attributes:
      shapes: see the module.
    """

    shapes: dict[str, Record] = dataclasses.field(default_factory=dict)

    same = ("device", "implementation")

    def content(self) -> Record:
        """What the file holds."""
        return {"counts": COUNTS, "summary": summary(self.shapes), "runs": self.runs, "shapes": self.shapes}

    def add_ceilings(self, ceilings: Record) -> None:
        """Adds what the run's device does at best."""
        self.runs[-1][CEILINGS] = ceilings
        self.write()

    def add(self, name: str, record: Record) -> None:
        """Adds a shape, or replaces it."""
        self.shapes[name] = {"run": self.run, **record}
        self.write()

    def has(self, name: str, with_peers: bool) -> bool:
        """A shape is measured, beside peers if they are asked for; one that failed is taken again."""
        record = self.shapes.get(name)
        return record is not None and record["status"] != FAILED and (not with_peers or bool(record.get("peers")))


def resumed(path: Path) -> Results:
    """What a file holds already; nothing if there is none.

    Raises:
      ConfigError: for a file that this command did not write.
    """
    return Results.resumed(path, lambda content: Results(path, content["runs"], content["shapes"]))


def shape_record(shape: BenchShape, needs: Useful) -> Record:
    """What a shape is, whatever becomes of it."""
    return {
        "kind": shape.kind,
        "model": shape.model,
        "ways": shape.ways,
        "heads": shape.heads,
        "kv_heads": shape.kv_heads,
        "head_size": shape.head_size,
        "page_tokens": shape.page_tokens,
        "kv": shape.kv,
        "rows": len(shape.kv_lens),
        "new_tokens": shape.tokens,
        "kv_tokens": sum(shape.kv_lens),
        "longest_tokens": max(shape.kv_lens),
        "useful_bytes": needs.bytes,
        "flops": needs.flops,
    }


def achieved(needs: Useful, seconds: float, ceilings: Mapping[str, Any] | None) -> Record:
    """Rates of a call, and how far they are from the ceilings; None for a ceiling that was not measured."""
    rates = {"bytes_per_s": needs.bytes / seconds, "flops_per_s": needs.flops / seconds}
    copy, matmul = ((ceilings or {}).get(name) for name in ("copy_bytes_per_s", "matmul_flops_per_s"))
    return rates | {
        "copy_fraction": rates["bytes_per_s"] / copy if copy else None,
        "matmul_fraction": rates["flops_per_s"] / matmul if matmul else None,
    }


def fraction_of(record: Mapping[str, Any], kind: str) -> float | None:
    """The fraction that a kind is judged by: of the copy for decode, of the matrix product for prefill."""
    return record["copy_fraction" if kind == "decode" else "matmul_fraction"]


def summary(shapes: Mapping[str, Record]) -> Record:
    """Of each kind: how many shapes there are, how near the ceiling, and how many times as fast as each peer."""
    return {kind: _kind_summary(of_kind) for kind in KINDS if (of_kind := _of_kind(shapes, kind))}


def _of_kind(shapes: Mapping[str, Record], kind: str) -> dict[str, Record]:
    return {name: record for name, record in shapes.items() if record["kind"] == kind}


def _kind_summary(shapes: Mapping[str, Record]) -> Record:
    measured = {name: record for name, record in shapes.items() if record["status"] == MEASURED}
    fractions = {name: fraction_of(record, record["kind"]) for name, record in measured.items()}
    return {
        "measured": len(measured),
        "skipped": [name for name, record in shapes.items() if record["status"] == SKIPPED],
        "failed": [name for name, record in shapes.items() if record["status"] == FAILED],
        "fraction": _spread({name: value for name, value in fractions.items() if value is not None}),
        "times_as_fast_as": {peer: _spread(ratios) for peer, ratios in _ratios(measured).items()},
    }


def _ratios(measured: Mapping[str, Record]) -> dict[str, dict[str, float]]:
    """Peer -> shape -> how many times as fast as it ours is."""
    ratios: dict[str, dict[str, float]] = {}
    for name, record in measured.items():
        for peer, value in times_as_fast(record):
            ratios.setdefault(peer, {})[name] = value
    return ratios


def times_as_fast(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    """Peers that were measured beside a shape, and how many times as fast ours is."""
    for peer, beside in record.get("peers", {}).items():
        if beside["status"] == MEASURED:
            yield peer, beside["time"]["median_s"] / record["time"]["median_s"]


def _spread(values: Mapping[str, float]) -> Record | None:
    if not values:
        return None
    least = min(values, key=lambda name: values[name])
    return {
        "shapes": len(values),
        "median": statistics.median(values.values()),
        "least": values[least],
        "least_shape": least,
    }


def table(shapes: Mapping[str, Record]) -> Iterator[str]:
    """The lines that a person reads: a shape each, in columns."""
    rows = [_HEADER, *(_cells(name, record) for name, record in shapes.items())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    sides = ("<", "<", *(">",) * (len(widths) - 3), "<")
    for row in rows:
        cells = (f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
        yield "  ".join(cells).rstrip()


_HEADER = ("shape", "implementation", "a call", "spread", "B/s", "of copy", "FLOP/s", "of matmul", "error", "ours is")


def _cells(name: str, record: Record) -> tuple[str, ...]:
    if record["status"] != MEASURED:
        return (name, record.get("implementation", MISSING), *("",) * 7, f"{record['status']}: {record['reason']}")
    measured = record["time"]
    spread = (measured["most_s"] - measured["least_s"]) / measured["median_s"]
    peers = ", ".join(f"{significant(ratio)} x {peer}" for peer, ratio in times_as_fast(record))
    failed = [f"{peer} {beside['status']}" for peer, beside in record["peers"].items() if beside["status"] == FAILED]
    return (
        name,
        record["implementation"],
        time(measured["median_s"]),
        share(spread),
        short(record["bytes_per_s"]),
        _share(record["copy_fraction"]),
        short(record["flops_per_s"]),
        _share(record["matmul_fraction"]),
        f"{record['error']:.0e}",
        "; ".join(filter(None, (peers, *failed))),
    )


def _share(part: float | None) -> str:
    return MISSING if part is None else share(part)


def summary_lines(found: Mapping[str, Any]) -> Iterator[str]:
    """The summary in words."""
    for kind, of_kind in found.items():
        ceiling = "the copy" if kind == "decode" else "the matrix product"
        counts = [f"{of_kind['measured']} measured"]
        counts += [f"{len(of_kind[status])} {status}" for status in (SKIPPED, FAILED) if of_kind[status]]
        yield f"{kind}: {', '.join(counts)}"
        if spread := of_kind["fraction"]:
            yield f"  {share(spread['median'])} of {ceiling} (median); least {_least(spread, share)}"
        for peer, spread in of_kind["times_as_fast_as"].items():
            yield (
                f"  {significant(spread['median'])} times as fast as {peer} (median of {spread['shapes']}); "
                f"least {_least(spread, significant)}"
            )


def _least(spread: Mapping[str, Any], written: Callable[[float], str]) -> str:
    return f"{written(spread['least'])} at {spread['least_shape']}"


def skipped_peers(shapes: Mapping[str, Record]) -> list[str]:
    """Peers that no shape was measured beside, with the reasons."""
    reasons: dict[str, set[str]] = {}
    met: set[str] = set()
    for record in shapes.values():
        for peer, beside in record.get("peers", {}).items():
            if beside["status"] == MEASURED:
                met.add(peer)
            else:
                reasons.setdefault(peer, set()).add(beside["reason"])
    return [f"{peer}: {'; '.join(sorted(why))}" for peer, why in reasons.items() if peer not in met]
