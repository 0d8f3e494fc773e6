"""Which constants turn a chip's operations into time, each with where it comes from.

`sol` (speed of light): datasheet limits, no launches, nothing moved twice, no host. `calibrated`: constants of a chip
and a software stack from `constants/CHIP.STACK.json`, fitted to measured single operations. A GPU without a file of its
own borrows the H100's, as shares of its own datasheet; a TPU or CPU has generic ones. `Calibration.stack`, every source
and the validation then say so. Invariant: no calibrated constant is better than its `sol` counterpart, so a calibrated
time is never below the limit.

Next: `constants_files`, which reads the files; `timing`, which applies the constants.
"""

import dataclasses
import math
from pathlib import Path

from nanoserve.roofline import constants_files
from nanoserve.roofline.constants_files import OWN_STACK, ConstantsFile
from nanoserve.roofline.efficiency import MODES, Calibration, Collective, Errors, Kernel, Mode, Validation
from nanoserve.roofline.links import ideal_bus_bytes_per_s
from nanoserve.specs.chips import ChipSpec, Platform, Precision
from nanoserve.specs.errors import ConfigError, nearest

__all__ = [
    "MODES",
    "Calibration",
    "Collective",
    "Errors",
    "Kernel",
    "Mode",
    "Validation",
    "calibration_of",
    "constants_for",
    "provenance",
]

AUTO = "auto"
EIGHT_BIT = ("fp8", "int8")
_GIB = 2**30
_REFERENCE: dict[Platform, str] = {
    "gpu": "h100_sxm",
    "tpu": "tpu",
    "cpu": "cpu",
}  # whose file a chip without one borrows
_DEFAULT_STACK: dict[Platform, str] = {"gpu": "vllm", "tpu": "generic", "cpu": "generic"}


def constants_for(
    chip: ChipSpec, precision: Precision, mode: Mode, stack: str = AUTO, table: str | None = None
) -> Calibration:
    """Returns the constants of a chip.

    Args:
      chip, precision: what operations run on, and in which dtypes. mode: `sol`, `calibrated` or `table`.
      stack: whose kernels; `auto` is the one that the chip is calibrated for, or its platform's usual one; our own,
        whose constants stand on another's, has to be asked for.
      table: for mode `table`, the folder of measured tables.

    Raises:
      ConfigError: unknown mode or stack, or a file of constants or a folder of tables that cannot be used.
    """
    if mode not in MODES:
        raise ConfigError(f"Pricing.mode = {mode!r} is not a way of pricing.{nearest(mode, MODES)}")
    file = constants_file(chip, stack)
    if mode == "sol":
        return _speed_of_light(chip, file)
    calibrated = calibration_of(chip, precision, file)
    return calibrated if mode == "calibrated" else _looked_up(chip, precision, file, calibrated, table)


def constants_file(chip: ChipSpec, stack: str = AUTO) -> ConstantsFile:
    """Returns the file of a chip and stack: the chip's own, or the one that it borrows.

    Raises:
      ConfigError: no such stack, with the nearest that there is.
    """
    own, reference = constants_files.stacks(chip.name), _REFERENCE[chip.platform]
    borrowed = constants_files.stacks(reference)
    if stack == AUTO:
        usual, others = _DEFAULT_STACK[chip.platform], [name for name in own if name != OWN_STACK]
        stack = others[0] if others and usual not in own else usual
    if stack not in own + borrowed:
        known = sorted({*own, *borrowed, AUTO})
        raise ConfigError(f"Pricing.stack = {stack!r}: no constants of it for {chip.name}.{nearest(stack, known)}")
    return constants_files.load(chip.name if stack in own else reference, stack)


def provenance(calibration: Calibration, chip: ChipSpec) -> list[tuple[str, str, str, str]]:
    """Returns rows (name, value, unit, source) of every constant and the chip's figures behind it, for printing."""
    source = calibration.sources
    rows = [
        *(
            (f"peak {name}", f"{peak / 1e12:g}", "TFLOP/s", chip.sources.get("peak_flops_per_s", ""))
            for name, peak in chip.peak_flops_per_s.items()
        ),
        ("HBM bandwidth", f"{chip.hbm_bytes_per_s / 1e9:g}", "GB/s", chip.sources.get("hbm_bytes_per_s", "")),
        ("link bandwidth", f"{chip.link_bytes_per_s / 1e9:g}", "GB/s", chip.sources.get("link_bytes_per_s", "")),
    ]
    for name, kernels in {"matmul": calibration.matmul, "grouped_matmul": calibration.grouped_matmul}.items():
        for dtype, kernel in kernels.items():
            rows += _kernel_rows(f"{name.replace('_', ' ')} {dtype}", kernel, source[name])
    rows += _kernel_rows("decode attention", calibration.decode_attention, source["decode_attention"])
    rows += _kernel_rows("prefill attention", calibration.prefill_attention, source["prefill_attention"])
    for ways, collective in calibration.collectives.items():
        rows += _collective_rows(f"all-reduce, {ways} chips", collective, source["collectives"])
    rows += _kernel_rows("element-wise", calibration.elementwise, source["elementwise"])
    return [
        *rows,
        ("host gap per step", f"{calibration.host_gap_s * 1e3:g}", "ms", source["host_gap_s"]),
        ("host gap per row sampled", f"{calibration.host_row_s * 1e3:g}", "ms", source["host_gap_s"]),
        ("host gap per plan", f"{calibration.host_call_s * 1e3:g}", "ms", source["host_gap_s"]),
        ("runtime memory", f"{calibration.runtime_bytes / _GIB:.3g}", "GiB", source["runtime_bytes"]),
        ("collectives' memory", f"{calibration.collectives_bytes / _GIB:.3g}", "GiB", source["runtime_bytes"]),
    ]


def _kernel_rows(name: str, kernel: Kernel, source: str) -> list[tuple[str, str, str, str]]:
    """What differs from a kernel without losses."""
    rows = [
        (f"{name} overhead", f"{kernel.overhead_s * 1e6:.3g}", "us", source),
        (
            f"{name} bandwidth share",
            "not moved" if math.isinf(kernel.memory_share) else f"{kernel.memory_share:.3g}",
            "",
            source,
        ),
    ]
    if kernel.compute_share != 1:
        rows.append((f"{name} compute share", f"{kernel.compute_share:.3g}", "", source))
    if kernel.overlap != 1:
        rows.append((f"{name} overlap of moving and computing", f"{kernel.overlap:.3g}", "", source))
    if kernel.item_s:
        rows.append((f"{name} per sequence and KV head", f"{kernel.item_s * 1e9:.3g}", "ns", source))
    if not math.isinf(kernel.quantise_share):
        rows.append((f"{name} bandwidth share of quantising inputs", f"{kernel.quantise_share:.3g}", "", source))
    return rows


def _collective_rows(name: str, collective: Collective, source: str) -> list[tuple[str, str, str, str]]:
    rows = [
        (f"{name}: overhead", f"{collective.overhead_s * 1e6:.3g}", "us", source),
        (f"{name}: bus bandwidth", f"{collective.bytes_per_s / 1e9:.4g}", "GB/s", source),
    ]
    if collective.bulk is not None:
        rows += _collective_rows(f"{name}, bulk algorithm", collective.bulk, source)
    if collective.beyond is not None and not math.isinf(collective.longest_bytes):
        rows.append((f"{name}: longest message", f"{collective.longest_bytes / 1e6:.3g}", "MB sent", source))
        rows += _collective_rows(f"{name}, beyond", collective.beyond, source)
    return rows


# ---- datasheet limits ----

_IDEAL = Kernel(0.0, 1.0)
_NVLINK_WAYS = (2, 4, 8, 16, 72)  # up to the largest switched domain
_LIMIT = "by definition: the datasheet's limit"
_TIME_FIELDS = (
    "matmul",
    "grouped_matmul",
    "decode_attention",
    "prefill_attention",
    "collectives",
    "elementwise",
    "host_gap_s",
)


def _speed_of_light(chip: ChipSpec, file: ConstantsFile) -> Calibration:
    ways = _NVLINK_WAYS if chip.link_kind == "nvlink" else (2,)
    reserve = file.entry("memory", "chip")
    return Calibration(
        name="sol",
        chip=chip.name,
        mode="sol",
        stack="none: datasheet limits",
        matmul={"bf16": _IDEAL},
        decode_attention=_IDEAL,
        prefill_attention=_IDEAL,
        collectives={n: Collective(0.0, ideal_bus_bytes_per_s(chip, n)) for n in ways},
        elementwise=Kernel(0.0, math.inf),
        host_gap_s=0.0,
        runtime_bytes=reserve["runtime_bytes"],
        collectives_bytes=reserve["collectives_bytes"],
        sources=dict.fromkeys(_TIME_FIELDS, _LIMIT)
        | {
            "elementwise": "a fused program moves no bytes for them",
            "collectives": "link bandwidth; over NVLink, with reduction in the switch",
            "runtime_bytes": reserve["source"],
        },
        validation=Validation(reason="a lower limit, not a prediction"),
    )


# ---- measured constants, and chips that borrow them ----

_KINDS = {
    "matmul": ("matmul",),
    "grouped_matmul": ("grouped_matmul",),
    "decode_attention": ("attention_decode",),
    "prefill_attention": ("attention_prefill",),
    "collectives": ("all_reduce", "all_reduce_nccl"),
    "elementwise": ("elementwise",),
    "host_gap_s": ("host",),
    "runtime_bytes": ("memory",),
}


def calibration_of(chip: ChipSpec, precision: Precision, file: ConstantsFile) -> Calibration:
    """Returns the constants that a file has for a chip, which may be another than its own.

    Raises:
      ConfigError: the file lacks some of them.
    """
    borrowed = "" if file.chip == chip.name else _borrowed(chip, file)
    memory, host = file.entry("memory", "chip"), file.entry("host", "step")
    validation = constants_files.validation(chip.name, file.stack, "calibrated")
    if not validation.rows and file.chip == chip.name and file.validation:
        validation = file.own_validation()
    return Calibration(
        name=f"{file.label}{borrowed}",
        chip=chip.name,
        mode="calibrated",
        stack=file.stack,
        file=file.name,
        matmul={dtype: file.kernel("matmul", dtype) for dtype in file.variants("matmul")},
        grouped_matmul={dtype: file.kernel("grouped_matmul", dtype) for dtype in file.variants("grouped_matmul")},
        decode_attention=_attention(file, "attention_decode", precision.kv),
        prefill_attention=_attention(file, "attention_prefill", precision.kv),
        collectives=file.collectives(chip.link_bytes_per_s),
        elementwise=file.kernel("elementwise", "any"),
        host_gap_s=host["gap_s"],
        host_row_s=host.get("row_s", 0.0),
        host_call_s=host.get("call_s", 0.0),
        runtime_bytes=memory["runtime_bytes"],
        collectives_bytes=memory["collectives_bytes"],
        sources={field: file.source(*kinds) + borrowed for field, kinds in _KINDS.items()},
        validation=validation if validation.rows or not borrowed else _uncalibrated(chip, file),
    )


def _attention(file: ConstantsFile, kind: str, kv: str) -> Kernel:
    """Of the KV dtype itself, where it is known; else of 8 bits, or of 16."""
    usual = "fp8" if kv in EIGHT_BIT else "bf16"
    return file.kernel(kind, kv if kv in file.variants(kind) else usual)


_TABLE_FIELDS = ("matmul", "decode_attention", "prefill_attention", "collectives")


def _looked_up(
    chip: ChipSpec, precision: Precision, file: ConstantsFile, calibrated: Calibration, folder: str | None
) -> Calibration:
    """The calibrated constants, with measured tables before them."""
    if folder is None:
        raise ConfigError(
            "Pricing.mode = 'table' needs Pricing.table, the folder of measured operations (CHIP__*_perf.parquet, as "
            "aiconfigurator publishes them). Name it, or choose Pricing.mode = 'calibrated'"
        )
    from nanoserve.roofline.measured_tables import read
    from nanoserve.roofline.table import Table

    longest = {ways: known.longest_bytes for ways, known in calibrated.collectives.items()}
    groups = read(Path(folder), chip, file.stack)
    return dataclasses.replace(
        calibrated,
        name=f"tables of {folder}, else {calibrated.name}",
        mode="table",
        table=Table(chip, groups, "fp8" if precision.kv in EIGHT_BIT else "bf16", longest),
        sources={**calibrated.sources}
        | {field: f"measured where {folder} has it; else {calibrated.sources[field]}" for field in _TABLE_FIELDS},
        validation=constants_files.validation(chip.name, file.stack, "table"),
    )


def _borrowed(chip: ChipSpec, file: ConstantsFile) -> str:
    if file.chip == chip.platform:
        return f" for {chip.name}: uncalibrated"
    return f", carried over to {chip.name} as shares of its datasheet: uncalibrated"


def _uncalibrated(chip: ChipSpec, file: ConstantsFile) -> Validation:
    what = "its constants are generic" if file.chip == chip.platform else f"its constants are those of {file.label}"
    return Validation(reason=f"uncalibrated: nothing was measured end to end on {chip.name}; {what}")
