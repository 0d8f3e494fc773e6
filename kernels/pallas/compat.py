"""The parts of JAX that move between versions, in one place. Written for jax 0.11.2."""

import jax
from jax.experimental.layout import Layout, with_layout_constraint


def row_major(x: jax.Array) -> jax.Array:
    """`x`, with the compiler told to keep its last axis contiguous and its first outermost."""
    return with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim))))


def tpu_cores() -> int:
    """Cores that share one TPU kernel: 2 on v4 and v5p, otherwise 1, also where there is no TPU to ask about.

    The TPU is the one that a program is being traced for: the default device, or the abstract mesh of an ahead-of-time
    compilation.
    """
    from jax.experimental.pallas import tpu as pltpu

    try:
        return pltpu.get_tpu_info().num_cores
    except ValueError:  # not a TPU
        return 1


def tpu_interpreter(detect_races: bool = False):
    """What makes `pallas_call` run a TPU kernel on a CPU, copies and semaphores included."""
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.InterpretParams(detect_races=detect_races)
