"""The constants that turn operations into time, each with where it comes from.

Two modes. `sol` (speed of light): datasheet limits, no launches, nothing moved twice, no host. `calibrated`: about
twenty constants fitted to measured single operations of vLLM on an H100; elsewhere the same constants carried over
(GPUs) or generic ones (TPU, CPU), which `Calibration.stack` and every source then say. Invariant: no calibrated
constant is better than its `sol` counterpart, so a calibrated time is never below the limit.

Next: `timing`, which applies them.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

from nanoserve.specs.chips import ChipSpec, Precision
from nanoserve.specs.errors import ConfigError, nearest

Mode = Literal["sol", "calibrated"]
MODES = ("sol", "calibrated")
_GIB = 2**30


@dataclasses.dataclass(frozen=True, slots=True)
class Kernel:
    """A kind of kernel: its overhead, and the shares of the datasheet's bandwidth and peak that it reaches.

    `memory_share` is infinite where the bytes are not moved at all (element-wise kernels of a fused program).
    """

    overhead_s: float
    memory_share: float
    compute_share: float = 1.0


@dataclasses.dataclass(frozen=True, slots=True)
class Collective:
    """All-reduce and its relatives: overhead, and bus bandwidth (ring bytes over time) of one chip."""

    overhead_s: float
    bytes_per_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Calibration:
    """Every constant of the cost model for one chip and precision.

    Attributes:
      name: short label. chip, mode. stack: whose kernels were measured.
      matmul: by operand dtype; `bf16` is always there and stands for dtypes that are not.
      decode_attention. prefill_attention: its compute share is `prefill_curve`.
      prefill_curve: (reuse tokens, share of peak), ascending; see `ops.Op.reuse_tokens`.
      collectives: by ways. elementwise: norms, rotation, activation, embedding, sampling.
      host_gap_s: per step, while the chip waits.
      runtime_bytes, collectives_bytes: memory that neither weights, activations nor KV may use, per chip; the second
        only with more than one chip.
      sources: field name -> where it was read. validation: what the mode's error is known to be.
    """

    name: str
    chip: str
    mode: Mode
    stack: str
    matmul: Mapping[str, Kernel]
    decode_attention: Kernel
    prefill_attention: Kernel
    prefill_curve: tuple[tuple[float, float], ...]
    collectives: Mapping[int, Collective]
    elementwise: Kernel
    host_gap_s: float
    runtime_bytes: int
    collectives_bytes: int
    sources: Mapping[str, str]
    validation: str

    def matmul_for(self, compute: str) -> Kernel:
        """Constants of matrix products with operands in `compute`."""
        return self.matmul.get(compute, self.matmul["bf16"])

    def collective_for(self, ways: int) -> Collective:
        """Constants for `ways` chips: the next larger number that is known, else the largest."""
        known = [n for n in sorted(self.collectives) if n >= ways] or [max(self.collectives)]
        return self.collectives[known[0]]


def constants_for(chip: ChipSpec, precision: Precision, mode: Mode) -> Calibration:
    """Returns the constants of a chip.

    Raises:
      ConfigError: unknown mode.
    """
    if mode not in MODES:
        raise ConfigError(f"Pricing.mode = {mode!r} is not a way of pricing.{nearest(mode, MODES)}")
    if mode == "sol":
        return _speed_of_light(chip)
    return _vllm_h100(chip, precision) if chip.platform == "gpu" else _generic(chip)


def provenance(calibration: Calibration, chip: ChipSpec) -> list[tuple[str, str, str, str]]:
    """Returns rows (name, value, unit, source) of every constant and the chip's figures behind it, for printing."""
    rows = [
        *(
            (f"peak {name}", f"{peak / 1e12:g}", "TFLOP/s", chip.sources.get("peak_flops_per_s", ""))
            for name, peak in chip.peak_flops_per_s.items()
        ),
        ("HBM bandwidth", f"{chip.hbm_bytes_per_s / 1e9:g}", "GB/s", chip.sources.get("hbm_bytes_per_s", "")),
        ("link bandwidth", f"{chip.link_bytes_per_s / 1e9:g}", "GB/s", chip.sources.get("link_bytes_per_s", "")),
    ]
    source = calibration.sources
    for dtype, kernel in calibration.matmul.items():
        rows += _kernel_rows(f"matmul {dtype}", kernel, source["matmul"])
    rows += _kernel_rows("decode attention", calibration.decode_attention, source["decode_attention"])
    rows += _kernel_rows("prefill attention", calibration.prefill_attention, source["prefill_attention"], compute=False)
    rows += [
        (f"prefill attention compute share at {tokens:g} tokens", f"{share:.3g}", "", source["prefill_curve"])
        for tokens, share in calibration.prefill_curve
    ]
    for ways, collective in calibration.collectives.items():
        rows += [
            (f"all-reduce overhead, {ways} chips", f"{collective.overhead_s * 1e6:.3g}", "us", source["collectives"]),
            (
                f"all-reduce bus bandwidth, {ways} chips",
                f"{collective.bytes_per_s / 1e9:.4g}",
                "GB/s",
                source["collectives"],
            ),
        ]
    rows += _kernel_rows("element-wise", calibration.elementwise, source["elementwise"], compute=False)
    rows += [
        ("host gap per step", f"{calibration.host_gap_s * 1e3:g}", "ms", source["host_gap_s"]),
        ("runtime memory", f"{calibration.runtime_bytes / _GIB:.3g}", "GiB", source["runtime_bytes"]),
        ("collectives' memory", f"{calibration.collectives_bytes / _GIB:.3g}", "GiB", source["runtime_bytes"]),
    ]
    return rows


def _kernel_rows(name: str, kernel: Kernel, source: str, compute: bool = True) -> list[tuple[str, str, str, str]]:
    free = math.isinf(kernel.memory_share)
    rows = [
        (f"{name} overhead", f"{kernel.overhead_s * 1e6:.3g}", "us", source),
        (f"{name} bandwidth share", "not moved" if free else f"{kernel.memory_share:.3g}", "", source),
    ]
    return [*rows, (f"{name} compute share", f"{kernel.compute_share:.3g}", "", source)] if compute else rows


# ---- speed of light ----

_IDEAL = Kernel(0.0, 1.0)
_LIMIT = "by definition: the datasheet's limit"
_NVLINK_WAYS = (2, 4, 8, 16, 72)  # up to the largest switched domain


def ideal_bus_bytes_per_s(chip: ChipSpec, ways: int) -> float:
    """Returns the largest bus bandwidth an all-reduce can show over `ways` chips.

    A ring keeps every link busy: the link bandwidth itself. An NVLink switch can add up in the network, so that each
    chip sends a message once instead of 2 (n-1)/n times, and the ring's formula then shows more than the links carry.
    """
    return chip.link_bytes_per_s * (2 * (ways - 1) / ways if chip.link_kind == "nvlink" else 1)


def _speed_of_light(chip: ChipSpec) -> Calibration:
    ways = _NVLINK_WAYS if chip.link_kind == "nvlink" else (2,)
    return Calibration(
        name="sol",
        chip=chip.name,
        mode="sol",
        stack="none: datasheet limits",
        matmul={"bf16": _IDEAL},
        decode_attention=_IDEAL,
        prefill_attention=_IDEAL,
        prefill_curve=((1, 1.0),),
        collectives={n: Collective(0.0, ideal_bus_bytes_per_s(chip, n)) for n in ways},
        elementwise=Kernel(0.0, math.inf),
        host_gap_s=0.0,
        **_reserve(chip),
        sources=_sources(
            chip,
            dict.fromkeys(_TIME_FIELDS, _LIMIT)
            | {
                "elementwise": "a fused program moves no bytes for them",
                "collectives": "link bandwidth; over NVLink, with reduction in the switch",
            },
        ),
        validation="a lower limit, not a prediction: measured serving has been seen 28-70% above it on an H100",
    )


_TIME_FIELDS = (
    "matmul",
    "decode_attention",
    "prefill_attention",
    "prefill_curve",
    "collectives",
    "elementwise",
    "host_gap_s",
)

# ---- vLLM on an H100, and GPUs that borrow its constants ----

_H100_BF16_FLOPS_PER_S = 989.4e12
_H100_LINK_BYTES_PER_S = 450e9
_PROFILE = "fitted to the measured single operations of aiconfigurator's H100 SXM tables (vLLM 0.24)"
_HOST_GAP_S = 0.5e-3

_VLLM_MATMUL = {
    "bf16": Kernel(3.5e-6, 0.87, 0.80),
    "fp8": Kernel(5.6e-6, 0.78, 0.50),  # of 0.5-0.65 the end nearest to the profile; includes quantising
}
_VLLM_DECODE_ATTENTION = {"bf16": Kernel(11.7e-6, 0.90), "fp8": Kernel(14.5e-6, 0.80)}
_VLLM_PREFILL_FLOPS_PER_S = (
    (16, 7e12),
    (64, 30e12),
    (128, 58e12),
    (256, 101e12),
    (512, 175e12),
    (1024, 260e12),
    (2048, 405e12),
    (4096, 540e12),
    (8192, 600e12),
)
_VLLM_COLLECTIVES = {2: Collective(4.2e-6, 230e9), 4: Collective(4.8e-6, 260e9), 8: Collective(5.3e-6, 309e9)}


def _vllm_h100(chip: ChipSpec, precision: Precision) -> Calibration:
    measured = chip.name == "h100_sxm"
    suffix = "" if measured else f"; measured on an H100, carried over to {chip.name} as shares of its datasheet"
    link_scale = chip.link_bytes_per_s / _H100_LINK_BYTES_PER_S
    eight_bit_kv = precision.kv in ("fp8", "int8")
    return Calibration(
        name="vllm-h100" if measured else f"vllm-h100 carried over to {chip.name}",
        chip=chip.name,
        mode="calibrated",
        stack="vLLM" if measured else f"vLLM on an H100: uncalibrated for {chip.name}",
        matmul=_VLLM_MATMUL | {"int8": _VLLM_MATMUL["fp8"]},
        decode_attention=_VLLM_DECODE_ATTENTION["fp8" if eight_bit_kv else "bf16"],
        prefill_attention=Kernel(11.7e-6, 0.90),
        prefill_curve=tuple((tokens, rate / _H100_BF16_FLOPS_PER_S) for tokens, rate in _VLLM_PREFILL_FLOPS_PER_S),
        collectives={n: Collective(c.overhead_s, c.bytes_per_s * link_scale) for n, c in _VLLM_COLLECTIVES.items()},
        elementwise=Kernel(3e-6, 0.80),
        host_gap_s=_HOST_GAP_S,
        **_reserve(chip),
        sources=_sources(
            chip,
            dict.fromkeys(_TIME_FIELDS, _PROFILE + suffix)
            | {
                "matmul": _PROFILE + "; fp8 compute is weak (0.5-0.65 fit), int8 borrows it" + suffix,
                "prefill_attention": "as decode attention; agrees with the profile's short prompts" + suffix,
                "prefill_curve": "1k and above: 64 heads, same tables; below: median of the tables' rows, head size 128"
                + suffix,
                "host_gap_s": "assumed: a vLLM of 2025" + suffix,
            },
        ),
        validation=_H100_VALIDATION if measured else f"not validated on {chip.name}",
    )


_H100_VALIDATION = (
    "single operations are fitted; whole steps are not validated by a command here yet; this run's model, lengths and "
    "stack may differ"
)

# ---- chips without measurements ----

_GUESS = "generic constant, not measured on this chip: uncalibrated"


def _generic(chip: ChipSpec) -> Calibration:
    """TPU and CPU: one compiled program a step, so launches cost little; shares are what good kernels usually reach."""
    launch_s = 1e-6 if chip.platform == "tpu" else 5e-6
    return Calibration(
        name=f"generic {chip.platform}",
        chip=chip.name,
        mode="calibrated",
        stack=f"uncalibrated: nothing was measured on {chip.name}",
        matmul={"bf16": Kernel(launch_s, 0.80, 0.70)},
        decode_attention=Kernel(5 * launch_s, 0.70),
        prefill_attention=Kernel(5 * launch_s, 0.70),
        prefill_curve=((128, 0.10), (512, 0.20), (2048, 0.35), (8192, 0.50)),
        collectives={2: Collective(5e-6, 0.6 * chip.link_bytes_per_s)},
        elementwise=Kernel(launch_s, 0.80),
        host_gap_s=_HOST_GAP_S,
        **_reserve(chip),
        sources=_sources(chip, dict.fromkeys(_TIME_FIELDS, _GUESS)),
        validation=f"not validated: uncalibrated for {chip.name}",
    )


def _reserve(chip: ChipSpec) -> dict:
    if chip.platform == "gpu":
        return {"runtime_bytes": int(3.5 * _GIB), "collectives_bytes": int(0.4 * _GIB)}
    return {"runtime_bytes": _GIB // 4 if chip.platform == "tpu" else 0, "collectives_bytes": 0}


def _sources(chip: ChipSpec, sources: dict[str, str]) -> dict[str, str]:
    reserve = {
        "gpu": "assumed: CUDA context, compiled graphs and workspaces; collectives' buffers",
        "tpu": "XLA for a TPU v5e of 16 GiB plans with 15.75",
        "cpu": "none: the operating system's share is in hbm_utilization",
    }
    return sources | {"runtime_bytes": reserve[chip.platform]}
