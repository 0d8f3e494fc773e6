"""What a run's figures depend on: the device, the machine around it, the software, and the commit.

Next: `host`, which describes the machine's processor.
"""

import os
import shlex
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.host import machine
from experiments.bench.results_file import Record

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = (
    "jax", "jaxlib", "jax-cuda13-plugin", "jax-cuda12-plugin", "flax", "numpy", "torch", "triton", "transformers",
    "nvidia-cudnn-cu13", "nvidia-cudnn-cu12", "nvidia-cublas", "nvidia-cublas-cu12",
)  # fmt: skip
GPU_FIELDS = (
    "name",
    "driver_version",
    "memory.total",
    "power.limit",
    "clocks.max.sm",
    "clocks.max.memory",
    "vbios_version",
)


def run_record(device: Any, words: Sequence[str], commit: str | None, toy: bool) -> Record:
    """What a run writes down about itself before it measures anything.

    Args:
      device: the JAX device. words: the command. commit: of the files. toy: whether sizes are tiny.
    """
    from experiments.bench.attention_peers import versions

    return {
        "command": shlex.join(words),
        "device": device.device_kind,
        "platform": device.platform,
        "platform_version": device.client.platform_version,
        "machine": machine() | {"gpu": gpu()},
        "versions": versions(PACKAGES),
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
        "commit": commit,
        "absolute_times_count": device.platform != "cpu" and not toy,
        "toy": toy,
    }


def gpu() -> dict[str, str] | None:
    """The first GPU as its driver describes it; None without one."""
    text = _said("nvidia-smi", f"--query-gpu={','.join(GPU_FIELDS)}", "--format=csv,noheader")
    if not text:
        return None
    return dict(zip(GPU_FIELDS, (cell.strip() for cell in text.splitlines()[0].split(",")), strict=False))


def checked_out() -> str | None:
    """The commit that is checked out, marked where files differ from it; None where there is no checkout."""
    return _said("git", "-C", str(REPOSITORY), "describe", "--always", "--abbrev=40", "--dirty") or None


def _said(*command: str) -> str:
    """What a program prints; nothing where it is not there, or cannot say."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
