"""What we measured ourselves, as rows to fit constants to: results of `experiments/bench/h100.py` or `attention.py`.

A result is a record of a part: `attention` and `matmul` are single operations, `step` whole steps. The same functions
read records out of a file and records that a benchmark has just made. Invariant: from a file, only what was measured on
the chip asked for, and whose absolute times count.

Next: `measured`, which says what a row becomes; `fit` and `fit_steps`, which use them.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.efficiency import product_variant
from nanoserve.roofline.measured import ACTIVATION_BYTES, Heads, HostGap, Measured, MeasuredStep, attention_op
from nanoserve.roofline.op import Op, OpKind
from nanoserve.specs.chips import BYTES_PER_ELEMENT, ChipSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model, model_names
from nanoserve.specs.sizes import stored_bytes

Record = Mapping[str, Any]
Found = Mapping[str, Mapping[str, Record]]
"""Records by part and case, as a file of results holds them."""

MEASURED = "measured"
_ATTENTION: tuple[tuple[str, OpKind], ...] = (("decode", "attention_decode"), ("prefill", "attention_prefill"))
_HEADS = ("heads", "kv_heads", "head_size")
_PRODUCT = ("rows", "inputs", "outputs")
PLAIN = "bf16"


def read_found(path: Path, chip: ChipSpec) -> dict[str, dict[str, Record]]:
    """Returns the records of a file that were measured on a chip and whose times count.

    Raises:
      ConfigError: the file is not one of results.
    """
    try:
        results = json.loads(path.read_text())
        runs, parts = results["runs"], results["parts"] if "parts" in results else {"attention": results["shapes"]}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: is not a file of results of experiments/bench/h100.py or attention.py ({error!r})"
        ) from error
    return {
        part: {name: record for name, record in cases.items() if _counts(runs[record["run"]], chip)}
        for part, cases in parts.items()
    }


def operations(found: Found, source: str) -> Iterator[Measured]:
    """Yields the single operations of results: attention by KV dtype, products by how weights are stored.

    Args:
      found: records by part. source: what they are called, for people.
    """
    attention, products = _measured(found, "attention"), _measured(found, "matmul")
    for name, kind in _ATTENTION:
        of_kind = [record for record in attention if record["kind"] == name and record["kv"] in BYTES_PER_ELEMENT]
        for dtype, records in _by(of_kind, "kv"):
            yield _attention(kind, dtype, records, f"{source}, {dtype} KV")
    for stored, records in _by([*products, *_unquantised(products)], "scheme"):
        yield _product(stored, records, source)


def steps(found: Found) -> list[MeasuredStep]:
    """Returns the whole steps of results, of models of the registry: a toy's say nothing of anything else."""
    known, records = model_names(), found.get("step", {})
    return [
        _step(name, record)
        for name, record in records.items()
        if record["status"] == MEASURED and record["model"] in known
    ]


def ceilings(found: Found) -> dict[str, float]:
    """Returns what the device did at best, as shares of its datasheet, which the constants' shares are of, too."""
    return {
        name: record["datasheet_fraction"]
        for name, record in found.get("ceilings", {}).items()
        if record["status"] == MEASURED
    }


def _counts(run: Record, chip: ChipSpec) -> bool:
    return run["absolute_times_count"] and run["device"].strip().lower() in chip.device_kinds


def _measured(found: Found, part: str) -> list[Record]:
    return [record for record in found.get(part, {}).values() if record["status"] == MEASURED]


def _by(records: Sequence[Record], key: str) -> Iterator[tuple[str, list[Record]]]:
    for value in sorted({record[key] for record in records}):
        yield value, [record for record in records if record[key] == value]


def _unquantised(products: Sequence[Record]) -> list[Record]:
    """The same products with weights in bf16, which are measured beside every way to quantise them; each one once."""
    beside: dict[tuple[int, ...], list[float]] = {}
    for record in products:
        peer = record["peers"].get(PLAIN, {})
        if peer.get("status") == MEASURED:
            beside.setdefault(tuple(record[name] for name in _PRODUCT), []).append(peer["time"]["median_s"])
    return [
        {**dict(zip(_PRODUCT, sizes, strict=True)), "scheme": PLAIN, "time": {"median_s": statistics.median(times)}}
        for sizes, times in beside.items()
    ]


def _columns(records: Sequence[Record], *names: str) -> dict[str, np.ndarray]:
    return {name: np.array([record[name] for record in records], dtype=np.float64) for name in names}


def _seconds(records: Sequence[Record]) -> np.ndarray:
    return np.array([record["time"]["median_s"] for record in records])


def _attention(kind: OpKind, dtype: str, records: Sequence[Record], rows: str) -> Measured:
    """Every third size is held out: there are too few shapes of heads to hold some of them out."""
    at = _columns(records, *_HEADS, "rows", "new_tokens", "kv_tokens", "flops")
    queries, kv_heads, size, seqs, tokens, read, flops = at.values()
    op = attention_op(kind, dtype, Heads(queries, kv_heads, size), seqs, tokens, flops / (4 * queries * size), read)
    decodes = kind == "attention_decode"
    return Measured(
        kind=kind,
        variant=dtype,
        op=op,
        seconds=_seconds(records),
        shape={"kv_read_bytes": op.kv_read_bytes} if decodes else {"flops": op.flops},
        keys=at,
        size=op.kv_read_bytes if decodes else tokens,
        size_name="KV bytes" if decodes else "new tokens",
        rows=rows,
        of_models=True,
    )


def _product(stored: str, records: Sequence[Record], source: str) -> Measured:
    """Multiplied in bf16, whatever weights are stored in. Every third product is held out, in the order of FLOPs."""
    at = _columns(records, *_PRODUCT)
    tokens, inputs, outputs = at.values()
    weights = inputs * outputs
    op = Op(
        name="product",
        kind="matmul",
        compute=PLAIN,
        stored=stored,
        flops=2 * tokens * weights,
        weight_bytes=np.array([stored_bytes(int(elements), stored) for elements in weights]),
        activation_bytes=tokens * (inputs + outputs) * ACTIVATION_BYTES,
        launches=1,
        rows=inputs,  # pyright: ignore[reportArgumentType]  # an array, as all of a vectorised Op
        columns=outputs,  # pyright: ignore[reportArgumentType]
    )
    return Measured(
        kind="matmul",
        variant=product_variant(PLAIN, stored),
        op=op,
        seconds=_seconds(records),
        shape={"flops": op.flops},
        keys=at,
        size=tokens,
        size_name="tokens",
        rows=f"{source}, {stored} weights multiplied in {PLAIN}",
        of_models=True,
    )


def _step(name: str, record: Record) -> MeasuredStep:
    """As the benchmark runs it: activations and products in bf16, a decode step in a loop and by itself, too."""
    fields = {field.name for field in dataclasses.fields(StepCounts)}
    counts = StepCounts(**{key: value for key, value in record["counts"].items() if key in fields})
    step_s, loop_steps = record["time"]["median_s"], record.get("loop_steps", 1)
    calls = [HostGap(loop_steps, loop_steps * counts.sampled, loop_steps * record["host_gap_s"], loop_steps * step_s)]
    if "single" in record:
        single_s = record["single"]["median_s"]
        calls.append(HostGap(1, counts.sampled, max(0.0, single_s - record["device_step_s"]), single_s))
    return MeasuredStep(
        name=name,
        model=model(record["model"]),
        precision=Precision(weights=record["weights"], kv=record["kv"]),
        counts=counts,
        calls=tuple(calls),
        step_s=step_s,
    )
