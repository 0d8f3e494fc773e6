"""What XLA's own cost model makes of matrix products by themselves: the floor under its estimate of a step.

    python experiments/bench/tpu_products.py --out=experiments/bench/results/tpu_products.json

A product of a few tokens with a matrix reads the matrix once, so HBM bounds it. XLA estimates it at more than that, and
no arrangement of a step can be estimated below its own products. Each is compiled in a scan over a stack of matrices,
so that they are read from HBM, with nothing around it. Needs the extra `tpu-aot`; nothing is run or timed.
"""

import json
import os
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from nanoserve.roofline.matrices import layer_matrices
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ChipSpec, ClusterSpec
from nanoserve.specs.errors import ConfigError, NanoserveError
from nanoserve.specs.model_registry import model

CHIPS = ("tpu_v5e", "tpu_v5p", "tpu_v6e")
MODEL, WAYS = "llama-3.1-70b", 8
TOKENS, STACK = 32, 4
ENVIRONMENT = {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost"}


def main(arguments: Sequence[str]) -> int:
    """Runs the command and returns its exit code."""
    own = flags.FlagValues()
    flags.DEFINE_string("out", None, "write the figures to this JSON file", flag_values=own)
    try:
        own(arguments)
        found = list(_measured())
    except (flags.Error, NanoserveError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    if own.out:
        figures = {
            "model": MODEL,
            "ways": WAYS,
            "tokens": TOKENS,
            "python": platform.python_version(),
            "products": found,
        }
        Path(own.out).write_text(json.dumps(figures, indent=1) + "\n")
    return 0


def _measured() -> Iterator[dict[str, Any]]:
    os.environ.update(ENVIRONMENT)
    from nanoserve.executors.aot_targets import devices

    print(f"{'chip':<10}{'matrix':<10}{'shape':>14}{'estimate, cycles':>18}{'roofline':>10}{'over':>7}")
    for name in CHIPS:
        device = devices(ClusterSpec(chip=chip(name), mesh={"tensor": 1}))[0]
        for matrix in layer_matrices(model(MODEL), WAYS):
            shape = (matrix.rows, matrix.columns)
            cycles, roofline = _cycles(device, shape), _roofline_cycles(chip(name), shape)
            row = f"{name:<10}{matrix.name:<10}{f'{shape[0]}x{shape[1]}':>14}"
            print(f"{row}{cycles:>18,.0f}{roofline:>10,.0f}{cycles / roofline:>7.2f}")
            yield {"chip": name, "matrix": matrix.name, "shape": shape, "cycles": cycles, "roofline_cycles": roofline}


def _cycles(device: Any, shape: tuple[int, int]) -> float:
    """XLA's estimate of one product [TOKENS, rows] x [rows, columns] of bf16."""
    import jax
    import jax.numpy as jnp
    from jax.sharding import SingleDeviceSharding

    from nanoserve.roofline import compiled as hlo

    def products(x, matrices):
        return jax.lax.scan(lambda x, matrix: (x, jnp.dot(x, matrix, preferred_element_type=x.dtype)), x, matrices)[1]

    here = SingleDeviceSharding(device)
    x, matrices = (jax.ShapeDtypeStruct(s, "bfloat16", sharding=here) for s in ((TOKENS, shape[0]), (STACK, *shape)))
    program = hlo.parse(jax.jit(products).trace(x, matrices).lower().compile().as_text() or "")
    ran = hlo.executed(program)
    inside = [each for each in ran if hlo.product_flops(program, [each])]
    if not inside:
        raise ConfigError(f"the compiled product of {shape} has no product in it: its text is of an unknown form")
    return sum(each.cycles for each in inside) / STACK


def _roofline_cycles(what: ChipSpec, shape: tuple[int, int]) -> float:
    """Cycles in which the matrix could be read."""
    from nanoserve.executors.aot_report import clock_hz

    return 2 * shape[0] * shape[1] / what.hbm_bytes_per_s * clock_hz(what)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
