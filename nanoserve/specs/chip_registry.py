"""The chips nanoserve ships by name, every figure with the place it was read.

Invariants: peaks are dense (vendors' headlines are often sparse, see `sources["peak_flops_per_s"]`); a rate in GB is
1e9 bytes; a memory size in GB is 2**30 bytes, because that is what the parts hold: a program on an H100 "80 GB" sees
79.6 GiB, XLA's compiler for the TPU v5e "16 GB" allows 15.75 GiB, and JAX's own table gives 17.2e9 bytes for it. Link
bandwidth is one direction. `cpu_2core` is measured by `experiments/bench/host.py`.
"""

from collections.abc import Mapping
from typing import Any

from nanoserve.specs.chips import ChipSpec
from nanoserve.specs.errors import ConfigError, nearest

_T = 1e12
_GB_PER_S = 1e9
_GIB = 2**30
_MIB = 2**20

_AICONFIGURATOR = "ai-dynamo/aiconfigurator@095f58a systems/{}.yaml (NVIDIA's dense figures)"
_SCALING_BOOK = "jax-ml/scaling-book@0819a7d tpus.md"
_TPU7X_TABLE = "docs.cloud.google.com/tpu/docs/tpu7x (comparison table)"
_JAX_TABLE = "jax 0.11.2 jax/_src/tpu_info.py (VMEM per core times cores)"
_NOMINAL = "nominal size in GiB; a program sees slightly less"
_HGX = {"switch_chips": 8, "network_bytes_per_s": 50 * _GB_PER_S, "host_bytes_per_s": 64 * _GB_PER_S}
_HGX_SOURCES = {
    "switch_chips": "NVIDIA, HGX boards of eight",
    "network_bytes_per_s": "NVIDIA, DGX H100, H200 and B200: a ConnectX-7 of 400 Gbit/s for each GPU",
    "host_bytes_per_s": "PCIe 5.0 x16, nominal",
}
_HGX_A100 = {"switch_chips": 8, "network_bytes_per_s": 25 * _GB_PER_S, "host_bytes_per_s": 32 * _GB_PER_S}
_HGX_A100_SOURCES = {
    "switch_chips": "NVIDIA, HGX boards of eight",
    "network_bytes_per_s": "NVIDIA, DGX A100: a ConnectX-6 of 200 Gbit/s for each GPU",
    "host_bytes_per_s": "PCIe 4.0 x16, nominal",
}
_PCIE_4 = "PCIe 4.0 x16, nominal: the same link"
_L2 = "NVIDIA, L2 cache; not verified on a device"


def _gpu(
    name: str, device_kind: str, *, memory_gib: int, memory_gb_per_s: float, source: str, **fields: Any
) -> ChipSpec:
    """A GPU whose compute, memory and link figures come from one `source`; `fields` override and complete."""
    sources = {
        "peak_flops_per_s": source,
        "hbm_bytes": f"{_NOMINAL}; {source}",
        "hbm_bytes_per_s": source,
        "link_bytes_per_s": source,
        "tdp_w": source,
        "on_chip_bytes": _L2,
        **fields.pop("sources", {}),
    }
    return ChipSpec(
        name=name,
        platform="gpu",
        device_kinds=(device_kind,),
        hbm_bytes=memory_gib * _GIB,
        hbm_bytes_per_s=memory_gb_per_s * _GB_PER_S,
        sources=sources,
        **fields,
    )


def _tpu(
    name: str, *device_kinds: str, memory_gib: int, memory_gb_per_s: float, source: str, **fields: Any
) -> ChipSpec:
    """A TPU whose compute and memory figures come from one `source`; ICI has two links per torus dimension."""
    sources = {
        "peak_flops_per_s": source,
        "hbm_bytes": f"{_NOMINAL}; {source}",
        "hbm_bytes_per_s": source,
        "link_bytes_per_s": source,
        "on_chip_bytes": f"VMEM, {_JAX_TABLE}",
        **fields.pop("sources", {}),
    }
    return ChipSpec(
        name=name,
        platform="tpu",
        device_kinds=device_kinds,
        hbm_bytes=memory_gib * _GIB,
        hbm_bytes_per_s=memory_gb_per_s * _GB_PER_S,
        link_kind="ici",
        link_count=2 * fields["torus_dims"],
        sources=sources,
        **fields,
    )


_HOPPER_PEAKS = {"bf16": 989.4 * _T, "fp8": 1978.9 * _T, "int8": 1978.9 * _T}
_AMPERE_PEAKS = {"bf16": 312 * _T, "int8": 624 * _T}

_GPUS = (
    _gpu(
        "h100_sxm",
        "nvidia h100 80gb hbm3",
        peak_flops_per_s=_HOPPER_PEAKS,
        memory_gib=80,
        memory_gb_per_s=3350,
        link_kind="nvlink",
        link_count=18,
        link_bytes_per_s=450 * _GB_PER_S,
        **_HGX,
        on_chip_bytes=50 * _MIB,
        tdp_w=700.0,
        usd_per_hour=2.99,
        source=_AICONFIGURATOR.format("h100_sxm"),
        sources={
            **_HGX_SOURCES,
            "usd_per_hour": "SkyPilot catalog v8 lambda/vms.csv @95eaf484, 8x node, per GPU; nebius asks 2.95",
        },
    ),
    _gpu(
        "h100_pcie",
        "nvidia h100 pcie",
        peak_flops_per_s={"bf16": 756.5 * _T, "fp8": 1513 * _T, "int8": 1513 * _T},
        memory_gib=80,
        memory_gb_per_s=2000,
        link_kind="pcie",
        link_bytes_per_s=64 * _GB_PER_S,
        host_bytes_per_s=64 * _GB_PER_S,
        on_chip_bytes=50 * _MIB,
        tdp_w=350.0,
        source=_AICONFIGURATOR.format("h100_pcie"),
        sources={
            "host_bytes_per_s": "PCIe 5.0 x16, nominal: the same link",
            "link_bytes_per_s": "PCIe 5.0 x16; the optional NVLink bridge is not counted",
        },
    ),
    _gpu(
        "h200_sxm",
        "nvidia h200",
        peak_flops_per_s=_HOPPER_PEAKS,
        memory_gib=141,
        memory_gb_per_s=4800,
        link_kind="nvlink",
        link_count=18,
        link_bytes_per_s=450 * _GB_PER_S,
        **_HGX,
        on_chip_bytes=50 * _MIB,
        tdp_w=700.0,
        usd_per_hour=3.50,
        source=_AICONFIGURATOR.format("h200_sxm"),
        sources={
            **_HGX_SOURCES,
            "hbm_bytes": "144384 MiB = 141 GiB in SkyPilot catalog v8 nebius/vms.csv @0082b043",
            "usd_per_hour": "SkyPilot catalog v8 nebius/vms.csv @0082b043",
        },
    ),
    _gpu(
        "a100_sxm_80gb",
        "nvidia a100-sxm4-80gb",
        peak_flops_per_s=_AMPERE_PEAKS,
        memory_gib=80,
        memory_gb_per_s=2039,
        link_kind="nvlink",
        link_count=12,
        link_bytes_per_s=300 * _GB_PER_S,
        **_HGX_A100,
        on_chip_bytes=40 * _MIB,
        tdp_w=400.0,
        usd_per_hour=1.59,
        source=_AICONFIGURATOR.format("a100_sxm"),
        sources={
            **_HGX_A100_SOURCES,
            "usd_per_hour": "RunPod (Canada), for the PCIe 80 GB card: no price of the SXM part was found",
        },
    ),
    _gpu(
        "a100_sxm_40gb",
        "nvidia a100-sxm4-40gb",
        peak_flops_per_s=_AMPERE_PEAKS,
        memory_gib=40,
        memory_gb_per_s=1555,
        link_kind="nvlink",
        link_count=12,
        link_bytes_per_s=300 * _GB_PER_S,
        **_HGX_A100,
        on_chip_bytes=40 * _MIB,
        tdp_w=400.0,
        usd_per_hour=1.29,
        source="glennklockwood.com/garden/processors/A100 (cites NVIDIA's datasheet)",
        sources={
            **_HGX_A100_SOURCES,
            "on_chip_bytes": "deviceQuery: 41943040 bytes of L2",
            "usd_per_hour": "SkyPilot catalog v8 lambda/vms.csv @95eaf484, 8x node, per GPU",
        },
    ),
    _gpu(
        "l4",
        "nvidia l4",
        peak_flops_per_s={"bf16": 121 * _T, "fp8": 242 * _T, "int8": 242 * _T},
        memory_gib=24,
        memory_gb_per_s=300,
        link_kind="pcie",
        link_bytes_per_s=32 * _GB_PER_S,
        host_bytes_per_s=32 * _GB_PER_S,
        on_chip_bytes=48 * _MIB,
        tdp_w=72.0,
        usd_per_hour=0.70,
        source=_AICONFIGURATOR.format("l4") + "; sustained clocks at 72 W are far below the peak",
        sources={
            "host_bytes_per_s": _PCIE_4,
            "usd_per_hour": "Google Cloud g2-standard-4, 0.70-0.80, second hand (costnimbus.com, March 2026)",
        },
    ),
    _gpu(
        "l40s",
        "nvidia l40s",
        peak_flops_per_s={"bf16": 362.05 * _T, "fp8": 733 * _T, "int8": 733 * _T},
        memory_gib=48,
        memory_gb_per_s=864,
        link_kind="pcie",
        link_bytes_per_s=32 * _GB_PER_S,
        host_bytes_per_s=32 * _GB_PER_S,
        on_chip_bytes=96 * _MIB,
        tdp_w=350.0,
        usd_per_hour=1.55,
        source=_AICONFIGURATOR.format("l40s"),
        sources={
            "host_bytes_per_s": _PCIE_4,
            "hbm_bytes": "nominal size in GiB; with ECC on, 46068 MiB of it remain",
            "usd_per_hour": "SkyPilot catalog v8 nebius/vms.csv @0082b043",
        },
    ),
    _gpu(
        "rtx_4090",
        "nvidia geforce rtx 4090",
        peak_flops_per_s={"bf16": 165.2 * _T, "fp8": 330.3 * _T, "int8": 660.6 * _T},
        memory_gib=24,
        memory_gb_per_s=1008,
        link_kind="pcie",
        link_bytes_per_s=32 * _GB_PER_S,
        host_bytes_per_s=32 * _GB_PER_S,
        on_chip_bytes=72 * _MIB,
        tdp_w=450.0,
        usd_per_hour=0.74,
        source="waredb.com (dense, f32 accumulation; f16 accumulation doubles bf16 and fp8)",
        sources={
            "host_bytes_per_s": _PCIE_4,
            "on_chip_bytes": "holynerdvana.blogspot.com, L2 cache",
            "usd_per_hour": "RunPod secure cloud (Canada)",
        },
    ),
    _gpu(
        "rtx_pro_6000",
        "nvidia rtx pro 6000 blackwell",
        peak_flops_per_s={"bf16": 503.8 * _T, "fp8": 1007.6 * _T, "int8": 1007.6 * _T, "fp4": 2015.2 * _T},
        memory_gib=96,
        memory_gb_per_s=1597,
        link_kind="pcie",
        link_bytes_per_s=64 * _GB_PER_S,
        source="NVIDIA RTX Blackwell PRO architecture paper (dense, f32 accumulation); not read again for this entry",
        sources={
            "hbm_bytes": f"{_NOMINAL}; LLMServingSim's configuration of the card says 96 GB",
            "hbm_bytes_per_s": "LLMServingSim's configuration of the card it measured: 1597 GB/s, the Server Edition's",
            "link_bytes_per_s": "PCIe 5.0 x16",
        },
    ),
    _gpu(
        "b200",
        "nvidia b200",
        peak_flops_per_s={"bf16": 2250 * _T, "fp8": 4500 * _T, "int8": 4500 * _T, "fp4": 9000 * _T},
        memory_gib=180,
        memory_gb_per_s=7700,
        link_kind="nvlink",
        link_count=18,
        link_bytes_per_s=900 * _GB_PER_S,
        **_HGX,
        on_chip_bytes=126 * _MIB,
        tdp_w=1000.0,
        usd_per_hour=4.99,
        source=_AICONFIGURATOR.format("b200_sxm") + "; HGX, 1000 W",
        sources={
            **_HGX_SOURCES,
            "usd_per_hour": "SkyPilot catalog v8 lambda/vms.csv @95eaf484, 8x node, per GPU; nebius asks 5.50",
        },
    ),
)

_TPUS = (
    _tpu(
        "tpu_v4",
        "tpu v4",
        peak_flops_per_s={"bf16": 275 * _T, "int8": 275 * _T},
        memory_gib=32,
        memory_gb_per_s=1200,
        torus_dims=3,
        link_bytes_per_s=270 * _GB_PER_S,
        on_chip_bytes=32 * _MIB,
        tdp_w=192.0,
        source="cloud.google.com/tpu/docs/v4",
        sources={
            "link_bytes_per_s": f"{_SCALING_BOOK}: 45 GB/s per link",
            "tdp_w": "cloud.google.com/tpu/docs/v4: the highest of 90/170/192 W min/mean/max measured",
        },
    ),
    _tpu(
        "tpu_v5e",
        "tpu v5 lite",
        "tpu v5e",
        peak_flops_per_s={"bf16": 197 * _T, "int8": 393 * _T},
        memory_gib=16,
        memory_gb_per_s=819,
        torus_dims=2,
        link_bytes_per_s=200 * _GB_PER_S,
        on_chip_bytes=128 * _MIB,
        usd_per_hour=1.20,
        source="docs.cloud.google.com/tpu/docs/v5e",
        sources={
            "link_bytes_per_s": "docs.cloud.google.com/tpu/docs/v5e: 400 GB/s both ways; 45 GB/s per link is reached",
            "usd_per_hour": "jax-ml/scaling-book@0819a7d applied-inference.md (Google Cloud, February 2025)",
        },
    ),
    _tpu(
        "tpu_v5p",
        "tpu v5",
        "tpu v5p",
        peak_flops_per_s={"bf16": 459 * _T, "fp8": 459 * _T, "int8": 918 * _T},
        memory_gib=95,
        memory_gb_per_s=2765,
        torus_dims=3,
        link_bytes_per_s=600 * _GB_PER_S,
        on_chip_bytes=128 * _MIB,
        usd_per_hour=4.20,
        source=f"{_TPU7X_TABLE}; cloud.google.com/tpu/docs/v5p",
        sources={
            "peak_flops_per_s": f"{_TPU7X_TABLE}; int8 from {_SCALING_BOOK}; fp8 has no speed-up",
            "hbm_bytes_per_s": f"{_TPU7X_TABLE}; JAX's own table says 2460",
            "usd_per_hour": "SkyPilot catalog v8 gcp/vms.csv @8427bbff (v5p-12288, per chip)",
        },
    ),
    _tpu(
        "tpu_v6e",
        "tpu v6 lite",
        "tpu v6e",
        peak_flops_per_s={"bf16": 918 * _T, "fp8": 918 * _T, "int8": 1836 * _T},
        memory_gib=32,
        memory_gb_per_s=1638,
        torus_dims=2,
        link_bytes_per_s=400 * _GB_PER_S,
        on_chip_bytes=128 * _MIB,
        usd_per_hour=2.70,
        source=f"{_TPU7X_TABLE} and /v6e; editions differ: memory 1600-1640 GB/s, links 3200 or 3584 Gbit/s",
        sources={"usd_per_hour": "SkyPilot catalog v8 gcp/vms.csv @8427bbff (US regions)"},
    ),
    _tpu(
        "tpu_v7x",
        "tpu7x",
        peak_flops_per_s={"bf16": 2307 * _T, "fp8": 4614 * _T},
        memory_gib=192,
        memory_gb_per_s=7380,
        torus_dims=3,
        link_bytes_per_s=600 * _GB_PER_S,
        jax_devices_per_chip=2,
        on_chip_bytes=128 * _MIB,
        source=_TPU7X_TABLE,
    ),
)

_HOST_JSON = "experiments/bench/results/host_cpu_2core.json (measured by experiments/bench/host.py)"
_CPU_F32_FLOPS_PER_S = 332.1e9
_CPU_COPY_BYTES_PER_S = 48.1e9

_CPUS = (
    ChipSpec(
        name="cpu_2core",
        platform="cpu",
        device_kinds=("cpu",),
        # This CPU has no bf16 unit (no AMX, no avx512_bf16), so XLA widens bf16 products to f32.
        peak_flops_per_s={"f32": _CPU_F32_FLOPS_PER_S, "bf16": _CPU_F32_FLOPS_PER_S},
        hbm_bytes=25_276_514_304,
        hbm_bytes_per_s=_CPU_COPY_BYTES_PER_S,
        link_kind="none",
        link_bytes_per_s=_CPU_COPY_BYTES_PER_S,
        sources={
            "peak_flops_per_s": _HOST_JSON,
            "hbm_bytes": _HOST_JSON,
            "hbm_bytes_per_s": _HOST_JSON,
            "link_bytes_per_s": "no link: JAX devices of one host exchange through its memory",
        },
    ),
)

_BY_NAME: Mapping[str, ChipSpec] = {spec.name: spec for spec in (*_GPUS, *_TPUS, *_CPUS)}


def chip(name: str) -> ChipSpec:
    """Returns the figures of a shipped chip.

    Args:
      name: one of `chip_names()`.

    Raises:
      ConfigError: no chip has this name.
    """
    if name not in _BY_NAME:
        raise ConfigError(
            f"chip {name!r} is not in the registry (nanoserve/specs/chip_registry.py).{nearest(name, _BY_NAME)} "
            "A chip of your own is a ChipSpec with these figures, each with its source."
        )
    return _BY_NAME[name]


def chip_names() -> tuple[str, ...]:
    """Returns the names of the shipped chips, in the registry's order."""
    return tuple(_BY_NAME)


def detect(device_kind: str, platform: str) -> ChipSpec | None:
    """Returns the shipped chip that a JAX device is, or None when it is none of them.

    The whole kind must agree: an H100 NVL, a laptop RTX 4090 or a MIG slice has a shipped chip's name in its own
    and other figures. Every CPU calls itself "cpu", so any host is taken for `cpu_2core`: measure yours with
    `experiments/bench/host.py` before you trust a fraction of its roofline.

    Args:
      device_kind: `jax.Device.device_kind`, e.g. `NVIDIA H100 80GB HBM3`.
      platform: `jax.Device.platform`: `gpu` (or `cuda`), `tpu`, `cpu`.
    """
    wanted = "gpu" if platform == "cuda" else platform
    for spec in _BY_NAME.values():
        if spec.platform == wanted and device_kind.strip().lower() in spec.device_kinds:
            return spec
    return None
