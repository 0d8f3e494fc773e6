"""Records what the compiler for GPUs makes of a small program: its text, and what XLA's runtime walks through.

Three layers of a product, a loop whose length is an argument, and a condition, for an H100 that is not there. Run in
the environment of `make aot-gpu`, with JAX_PLATFORMS=cpu: `python -m tests.roofline.record_gpu_program`
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp

from kernels.pallas.aot_gpu import one_h100

FOLDER = Path(__file__).parent / "programs"
LAYERS, ROWS, WIDTH = 3, 128, 256
NAMES = {"thunk_sequence_after_thunk_passes": "gpu.thunks.txt", "thunk_metadata": "gpu.names.txt"}


def program(x, w, times, wanted):
    """Some of everything that a step of a model has."""

    def layer(index, x):
        return x + jnp.tanh(jnp.sort(x, axis=0) @ w[index]) @ w[index]

    x = jax.lax.fori_loop(0, LAYERS, layer, x)
    x = jax.lax.fori_loop(0, times, lambda _, x: jnp.sort(x, axis=0), x)
    return jax.lax.cond(wanted, lambda x: jnp.sort(x, axis=1), lambda x: x, x)


def main() -> None:
    """Compiles the program and writes the three files."""
    shapes = ((ROWS, WIDTH), "bfloat16"), ((LAYERS, WIDTH, WIDTH), "bfloat16"), ((), "int32"), ((), "bool")
    args = [jax.ShapeDtypeStruct(*shape, sharding=one_h100()) for shape in shapes]
    with tempfile.TemporaryDirectory() as folder:
        options = {"xla_gpu_enable_triton_gemm": False, "xla_dump_to": folder, "xla_dump_hlo_as_text": True}
        compiled = jax.jit(program).trace(*args).lower().compile(options)
        for kind, name in NAMES.items():
            (FOLDER / name).write_text(next(Path(folder).glob(f"*.{kind}.txt")).read_text())
    here = f"{Path(__file__).parents[2]}/"
    (FOLDER / "gpu.hlo.txt").write_text((compiled.as_text() or "").replace(here, ""))


if __name__ == "__main__":
    main()
