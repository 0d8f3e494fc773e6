"""Measures what this machine's CPU can do: the memory bandwidth and f32 FLOP/s that its roofline is drawn with.

Each figure is the best of many repetitions over several ways of doing the same work (NumPy on one thread, NumPy on every
core, XLA), because a roofline wants what the machine can do, not what it does on average. Run it on a quiet machine; the
result is a JSON file that says what was measured, where, and with which command. `chip_registry.cpu_2core` quotes it.

    python experiments/bench/host.py --name=cpu_2core
"""

import argparse
import concurrent.futures
import importlib.metadata
import json
import os
import pathlib
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable

import numpy as np

# Larger than the last-level cache of any current host, so that the copy is of memory and not of cache.
COPY_BYTES = 2**30
MATMUL_SIZE = 4096
WARM_UPS = 2


def seconds_of(work: Callable[[], object], repetitions: int) -> list[float]:
    """Wall seconds of each repetition of `work`, after `WARM_UPS` untimed ones."""
    for _ in range(WARM_UPS):
        work()
    seconds = []
    for _ in range(repetitions):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return seconds


def copy_ways(cores: int) -> dict[str, Callable[[], object]]:
    """Ways to copy `COPY_BYTES` from one array to another, by name."""
    import jax

    source = np.ones(COPY_BYTES // 4, np.float32)
    target = np.zeros_like(source)
    parts = list(zip(np.array_split(source, cores), np.array_split(target, cores), strict=True))
    pool = concurrent.futures.ThreadPoolExecutor(cores)
    # XLA aliases a plain copy, so it negates; in place, or it would time the page faults of fresh memory.
    negate = jax.jit(jax.numpy.negative, donate_argnums=0)
    on_device = [jax.device_put(source)]

    def copy_parts() -> None:
        list(pool.map(lambda part: np.copyto(part[1], part[0]), parts))

    def negate_in_place() -> None:
        on_device[0] = negate(on_device[0]).block_until_ready()

    return {
        "numpy_1_thread": lambda: np.copyto(target, source),
        f"numpy_{cores}_threads": copy_parts,
        "xla_negate_in_place": negate_in_place,
    }


def matmul_ways() -> dict[str, Callable[[], object]]:
    """Ways to multiply two square f32 matrices of `MATMUL_SIZE`, by name."""
    import jax

    a, b = np.random.default_rng(0).standard_normal((2, MATMUL_SIZE, MATMUL_SIZE), np.float32)
    out = np.empty_like(a)
    device_a, device_b = jax.numpy.asarray(a), jax.numpy.asarray(b)
    multiply = jax.jit(jax.numpy.matmul)
    return {
        "numpy": lambda: np.matmul(a, b, out=out),
        "xla": lambda: multiply(device_a, device_b).block_until_ready(),
    }


def rates(ways: dict[str, Callable[[], object]], amount: float, repetitions: int) -> dict[str, dict[str, float]]:
    """Best and median rate of each way, in `amount` per second."""
    result = {}
    for name, work in ways.items():
        seconds = seconds_of(work, repetitions)
        result[name] = {"best_per_s": amount / min(seconds), "median_per_s": amount / statistics.median(seconds)}
    return result


def best(ways: dict[str, dict[str, float]]) -> float:
    """The best rate of the best way, to four digits (a fifth would not repeat)."""
    return float(f"{max(way['best_per_s'] for way in ways.values()):.4g}")


def machine() -> dict[str, object]:
    """What the figures were measured on."""
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": models[0] if models else platform.processor(),
        "cores": os.cpu_count(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        **{package: importlib.metadata.version(package) for package in ("numpy", "jax", "jaxlib")},
    }


def main() -> None:
    """Measures, prints, and writes the JSON file."""
    parser = argparse.ArgumentParser(description="Measure this machine's memory bandwidth and f32 FLOP/s.")
    parser.add_argument("--name", default=f"cpu_{os.cpu_count()}core", help="chip name; the file is host_<name>.json")
    parser.add_argument("--repetitions", type=int, default=20)
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    copies = rates(copy_ways(os.cpu_count() or 1), 2 * COPY_BYTES, arguments.repetitions)
    matmuls = rates(matmul_ways(), 2 * MATMUL_SIZE**3, arguments.repetitions)
    report = {
        "name": arguments.name,
        "command": shlex.join(["python", *sys.argv]),
        "machine": machine(),
        "load_average_1_min": os.getloadavg()[0],
        "repetitions": arguments.repetitions,
        "copy_bytes_per_s": best(copies),
        "copy_counts": f"bytes read plus bytes written of a copy of {COPY_BYTES} bytes; write-allocate reads not counted",
        "copy_ways": copies,
        "matmul_f32_flops_per_s": best(matmuls),
        "matmul_counts": f"2 n^3 of an f32 product with n = {MATMUL_SIZE}",
        "matmul_ways": matmuls,
    }
    path = pathlib.Path(__file__).parent / "results" / f"host_{arguments.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['copy_bytes_per_s']:.4g} bytes/s, {report['matmul_f32_flops_per_s']:.4g} f32 FLOP/s -> {path}")


if __name__ == "__main__":
    main()
