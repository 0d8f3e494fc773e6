"""A file of constants, made of fits: what was fitted replaces what was there, the rest stays (`file_of`).

The file of our own stack has nothing but what was fitted, and a base for the rest (`file_on`).

Invariant: every entry keeps its source; one that was fitted says on which rows, which were held out, and how far off it
is on both, by buckets of size. Next: `constants_files`, which reads the file.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from nanoserve.roofline.constants_files import ConstantsFile
from nanoserve.roofline.efficiency import Errors
from nanoserve.roofline.fit import Bucket, Fit
from nanoserve.roofline.fit_steps import StepFit

KINDS = ("matmul", "grouped_matmul", "attention_decode", "attention_prefill", "all_reduce", "all_reduce_nccl")
# vLLM's own all-reduce serves messages up to these sizes, and NCCL longer ones: CUSTOM_ALL_REDUCE_MAX_SIZES of vllm
# distributed/device_communicators/all_reduce_utils.py, compute capability 9.0. With 8 GPUs, only its one-shot kernel.
LIMITED_STACKS = ("vllm",)
LONGEST_MESSAGE_BYTES: Mapping[str, int] = {"2": 64 << 20, "4": 32 << 20, "8": 256 << 10}
BORROWED: Mapping[tuple[str, str], str] = {("matmul", "int8"): "fp8"}  # no table has them
_ERROR_DIGITS = 3
OWN_ATTENTION = ("attention_decode", "attention_prefill")
STEPS_OF = "whole steps of our own that no constant was fitted to"
Entries = dict[str, dict[str, dict[str, Any]]]


def file_of(
    fits: Sequence[Fit], *, chip: str, stack: str, label: str, command: str, before: ConstantsFile
) -> ConstantsFile:
    """Returns the file that a calibration writes.

    Args:
      fits: of any kinds; those that are no part of a file (algorithms that a stack chooses from) are left out.
      chip, stack, label, command: see `ConstantsFile`.
      before: the file that is replaced, or the one that the chip borrowed so far.
    """
    entries = _kept(before, chip)
    for fit in fits:
        if fit.group.kind in KINDS:
            entries.setdefault(fit.group.kind, {})[fit.group.variant] = entry_of(fit)
    for ways, entry in entries.get("all_reduce", {}).items():
        if stack in LIMITED_STACKS and ways in LONGEST_MESSAGE_BYTES:
            entry["longest_message_bytes"] = LONGEST_MESSAGE_BYTES[ways]
    for (kind, variant), of in BORROWED.items():
        if of in entries.get(kind, {}):
            entries[kind][variant] = _borrowed(entries[kind][of], kind, of, "no table")
    fitted, others = [kind for kind in KINDS if kind in entries], [kind for kind in entries if kind not in KINDS]
    ordered = {kind: entries[kind] for kind in fitted + others}
    base = before.base if before.chip == chip else ""
    return ConstantsFile(chip=chip, stack=stack, label=label, command=command, base=base, constants=ordered)


def file_on(
    base: ConstantsFile,
    fits: Sequence[Fit],
    steps: StepFit | None,
    *,
    chip: str,
    stack: str,
    label: str,
    command: str,
    source: str,
) -> ConstantsFile:
    """Returns the file of our own stack: what was fitted, on top of the file of another stack.

    Args:
      base: whose constants stand for what was not measured. fits: of single operations.
      steps: of whole steps; None where too few were measured.
      chip, stack, label, command: see `ConstantsFile`. source: what the measurements are called.
    """
    entries: Entries = {}
    for fit in fits:
        entries.setdefault(fit.group.kind, {})[fit.group.variant] = entry_of(fit)
    for kind in OWN_ATTENTION:
        of_kind = entries.get(kind, {})
        if "bf16" in of_kind and "fp8" not in of_kind:  # our kernels multiply in 16 bits whatever they read
            of_kind["fp8"] = _borrowed(of_kind["bf16"], kind, "bf16", f"nothing in {source}")
    if steps is not None:
        entries["elementwise"] = {"any": _elementwise_entry(steps, source)}
        entries["host"] = {"step": {**steps.host, "source": f"least squares over the host gaps of steps in {source}"}}
    return ConstantsFile(
        chip=chip,
        stack=stack,
        label=label,
        command=command,
        base=f"{base.chip}.{base.stack}",
        constants=entries,
        validation={} if steps is None else _validation(steps),
    )


def _borrowed(entry: Mapping[str, Any], kind: str, of: str, where: str) -> dict[str, Any]:
    constants = {name: value for name, value in entry.items() if name != "fit"}
    return constants | {"source": f"borrowed from {kind} {of}: {where} has it"}


def _elementwise_entry(steps: StepFit, source: str) -> dict[str, Any]:
    held_out = {"rows": int(steps.held_out.sum()), **_errors(steps.test)}
    bias = round(statistics.median(line.error for line in steps.lines if line.held_out), _ERROR_DIGITS)
    return {
        **steps.elementwise,
        "source": f"fitted to whole steps in {source}, less their host gap and the price of their other operations",
        "fit": {
            "domain": "all steps; errors are of whole steps",
            "train": {"rows": int((~steps.held_out).sum()), **_errors(steps.train)},
            "held_out": held_out,
            "held_out_by": "what a step reads",
            "buckets": [{"below": None, **held_out, "bias": bias}],
        },
    }


def _validation(steps: StepFit) -> dict[str, Any]:
    names = steps.held_out_names
    return {"rows": len(names), "of": STEPS_OF, "held_out": names, "step": _errors(steps.test)}


def entry_of(fit: Fit) -> dict[str, Any]:
    """Returns one entry: constants, their source, and how they were fitted."""
    train, test = int((fit.used & ~fit.held_out).sum()), int((fit.used & fit.held_out).sum())
    return {
        **fit.constants,
        "source": f"fitted to {fit.group.rows}",
        "fit": {
            "domain": fit.domain,
            "train": {"rows": train, **_errors(fit.train)},
            "held_out": {"rows": test, **_errors(fit.test)},
            "held_out_by": fit.group.size_name,
            "buckets": [_bucket(bucket) for bucket in fit.buckets],
        },
    }


def _kept(before: ConstantsFile, chip: str) -> Entries:
    note = "" if before.chip == chip else f"; taken from {before.name}"
    return {
        kind: {
            variant: {k: v for k, v in entry.items() if k != "fit" or not note} | {"source": entry["source"] + note}
            for variant, entry in entries.items()
        }
        for kind, entries in before.constants.items()
    }


def _errors(errors: Errors) -> dict[str, float]:
    return {name: round(value, _ERROR_DIGITS) for name, value in _fields(errors).items()}


def _bucket(bucket: Bucket) -> dict[str, Any]:
    below = None if bucket.below == float("inf") else bucket.below
    return {"below": below, "rows": bucket.rows, **_errors(bucket.errors), "bias": round(bucket.bias, _ERROR_DIGITS)}


def _fields(errors: Errors) -> dict[str, float]:
    return {"mean_abs": errors.mean_abs, "p50": errors.p50, "p90": errors.p90}
