"""Measures how long the cost model takes to price step shapes in one vectorised call, on one core.

    python experiments/bench/price_shapes.py
    python experiments/bench/price_shapes.py --shapes=100000 --out=/tmp/price_shapes.json

Shapes are drawn evenly: up to 256 rows of up to 32,768 positions, with a chunk of up to 2,048 tokens after up to 8,192.
Seconds are CPU time of this process, the best and the median of the repetitions; beside each, the same model priced one
shape a call. Exit code 0: measured. 2: something the user can mend.
"""

import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # so that a bare checkout runs without installing

from experiments import command
from experiments.bench.host import machine
from nanoserve.report.units import count
from nanoserve.report.units import time as in_words
from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.shapes import StepShapes, shape_prices
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model

RESULTS = Path(__file__).parent / "results" / "price_shapes.json"
LIMITS = {"decode_seqs": 256, "context_tokens": 32_768, "chunk_tokens": 2048, "past_tokens": 8192}
SETTINGS = (
    ("llama-3.1-70b", "h100_sxm", {"tensor": 8}),
    ("mistral-7b-v0.1", "tpu_v5e", {"tensor": 4}),
    ("mixtral-8x7b", "h100_sxm", {"tensor": 2, "expert": 2}),
    ("deepseek-v3", "h200_sxm", {"expert": 16}),
)
ALONE = 200  # shapes priced one a call, to compare with


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_integer("shapes", 1_000_000, "shapes in one call", flag_values=own)
    flags.DEFINE_integer("repetitions", 3, "timed calls of each model", flag_values=own)
    flags.DEFINE_string("out", str(RESULTS), "file to write", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    if asked.shapes < 1 or asked.repetitions < 1:
        raise ConfigError("--shapes and --repetitions must be at least 1")
    drawn = shapes(asked.shapes, seed=0)
    results = []
    for setting in SETTINGS:
        results.append(measure(*setting, drawn, asked.repetitions))
        print(line(results[-1]), flush=True)
    report = {"command": shlex.join(["python", *sys.argv]), "machine": machine(), "results": results}
    command.write_json("--out", Path(asked.out), report)
    return 0


def shapes(number: int, seed: int) -> StepShapes:
    """Draws shapes evenly below `LIMITS`."""
    generator = np.random.default_rng(seed)
    return StepShapes(**{field: generator.integers(0, limit, number) for field, limit in LIMITS.items()})


def measure(name: str, chip_name: str, mesh: dict[str, int], drawn: StepShapes, repetitions: int) -> dict[str, Any]:
    """CPU seconds to price all shapes at once, and to price one alone."""
    cluster, precision = ClusterSpec(chip=chip(chip_name), mesh=mesh), Precision()
    prices = shape_prices(model(name), cluster, precision, constants_for(cluster.chip, precision, "calibrated"))
    together = [cpu_seconds(lambda: prices(drawn)) for _ in range(repetitions)]
    rows = [
        StepShapes(**{field: int(getattr(drawn, field)[row]) for field in LIMITS})
        for row in range(min(ALONE, len(drawn.decode_seqs)))
    ]
    alone = cpu_seconds(lambda: [prices(row) for row in rows]) / len(rows)
    return {
        "model": name,
        "chip": chip_name,
        "mesh": mesh,
        "shapes": len(drawn.decode_seqs),
        "best_cpu_s": min(together),
        "median_cpu_s": statistics.median(together),
        "alone_cpu_s": alone,
    }


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of one call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def line(result: dict[str, Any]) -> str:
    """What a person reads of a measurement."""
    each, all_of_them = result["best_cpu_s"] / result["shapes"], count(result["shapes"])
    return (
        f"{result['model']:<16} {result['chip']:<9} {all_of_them} shapes in {in_words(result['best_cpu_s'])}: "
        f"{in_words(each)} each, alone {in_words(result['alone_cpu_s'])}"
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
