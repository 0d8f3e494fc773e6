"""Measures what this machine's CPU can do: the memory bandwidth and f32 FLOP/s that its roofline is drawn with.

Each figure is the best of many repetitions over several ways of doing the same work (NumPy on one thread, NumPy on
every core, XLA), because a roofline wants what the machine can do, not what it does on average. Run it on a quiet
machine; the result is a JSON file that says what was measured, where, and with which command.
`chip_registry.cpu_2core` quotes it.

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
from typing import Any

import numpy as np

# Larger than the last-level cache of any current host, so that the copy is of memory and not of cache.
COPY_BYTES = 2**30
# Large enough for full speed, short enough (50 ms on two cores) that some repetitions go undisturbed.
MATMUL_SIZE = 2048
WARM_UPS = 2
RESULTS = pathlib.Path(__file__).parent / "results"


Ways = dict[str, Callable[[], object]]
Rates = dict[str, dict[str, float]]


def seconds_of(work: Callable[[], object], repetitions: int, clock: Callable[[], float]) -> list[float]:
    """Seconds of each repetition of `work`, after `WARM_UPS` untimed ones."""
    for _ in range(WARM_UPS):
        work()
    seconds = []
    for _ in range(repetitions):
        start = clock()
        work()
        seconds.append(clock() - start)
    return seconds


def rates(ways: Ways, amount: float, repetitions: int, clock: Callable[[], float] = time.perf_counter) -> Rates:
    """Best and median rate of each way, in `amount` per second."""
    result = {}
    for name, work in ways.items():
        seconds = seconds_of(work, repetitions, clock)
        result[name] = {"best_per_s": amount / min(seconds), "median_per_s": amount / statistics.median(seconds)}
    return result


def best(ways: Rates) -> float:
    """The best rate of the best way, to four digits (a fifth would not repeat)."""
    return float(f"{max(way['best_per_s'] for way in ways.values()):.4g}")


def copy_ways(size_bytes: int, cores: int) -> Ways:
    """Ways to read `size_bytes` and write as many, by name."""
    import jax

    source = np.ones(size_bytes // 4, np.float32)
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


def matmul_ways(size: int) -> Ways:
    """Ways to multiply two square f32 matrices of `size`, by name."""
    import jax

    a, b = np.random.default_rng(0).standard_normal((2, size, size), np.float32)
    out = np.empty_like(a)
    device_a, device_b = jax.numpy.asarray(a), jax.numpy.asarray(b)
    multiply = jax.jit(jax.numpy.matmul)
    return {
        "numpy": lambda: np.matmul(a, b, out=out),
        "xla": lambda: multiply(device_a, device_b).block_until_ready(),
    }


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


def measure(name: str, *, copy_bytes: int, matmul_size: int, repetitions: int) -> dict[str, Any]:
    """Measures this machine.

    Args:
      name: what to call it.
      copy_bytes: size of the array that is copied.
      matmul_size: rows and columns of the matrices that are multiplied.
      repetitions: timed repetitions of each way.

    Returns:
      The report, as JSON holds it: rates in bytes per second (read plus written) and FLOP/s, and the machine.
    """
    load = os.getloadavg()[0]  # before our own work raises it
    copies = rates(copy_ways(copy_bytes, os.cpu_count() or 1), 2 * copy_bytes, repetitions)
    matmuls = rates(matmul_ways(matmul_size), 2 * matmul_size**3, repetitions)
    return {
        "name": name,
        "machine": machine(),
        "load_average_1_min": load,
        "repetitions": repetitions,
        "copy_bytes_per_s": best(copies),
        "copy_counts": f"bytes read plus bytes written, arrays of {copy_bytes} bytes; write-allocate reads not counted",
        "copy_ways": copies,
        "matmul_f32_flops_per_s": best(matmuls),
        "matmul_counts": f"2 n^3 of an f32 product with n = {matmul_size}",
        "matmul_ways": matmuls,
    }


def main() -> None:
    """Measures, prints, and writes the JSON file."""
    parser = argparse.ArgumentParser(description="Measure this machine's memory bandwidth and f32 FLOP/s.")
    parser.add_argument("--name", default=f"cpu_{os.cpu_count()}core", help="chip name; the file is host_<name>.json")
    parser.add_argument("--repetitions", type=int, default=60)
    arguments = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    report = {"command": shlex.join(["python", *sys.argv])} | measure(
        arguments.name, copy_bytes=COPY_BYTES, matmul_size=MATMUL_SIZE, repetitions=arguments.repetitions
    )
    path = RESULTS / f"host_{arguments.name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(f"{report['copy_bytes_per_s']:.4g} bytes/s, {report['matmul_f32_flops_per_s']:.4g} f32 FLOP/s -> {path}")


if __name__ == "__main__":
    main()
