"""The parts of JAX that move between versions, in one place. Written for jax 0.11.2."""

from collections.abc import Iterator

import jax
from jax.experimental.layout import Layout, with_layout_constraint


def row_major(x: jax.Array) -> jax.Array:
    """`x`, with the compiler told to keep its last axis contiguous and its first outermost."""
    return in_order(x, tuple(range(x.ndim)))


def in_order(x: jax.Array, major_to_minor: tuple[int, ...]) -> jax.Array:
    """`x`, with the compiler told in which order its axes lie in memory, the outermost first."""
    return with_layout_constraint(x, Layout(major_to_minor=major_to_minor))


def shard_map(fn, *, mesh, in_specs, out_specs, axes=None):
    """`fn` on every chip of a mesh by itself; what kernels return is not checked for being the same everywhere.

    Args:
      fn, in_specs, out_specs: as for `jax.shard_map`.
      mesh: the chips. Inside another `shard_map`, its axes that are not cut yet.
      axes: names of those to cut over; what `fn` does is left to the compiler along the others. None cuts over all.
    """
    around = jax.sharding.get_abstract_mesh()
    if around.manual_axes:
        mesh, axes = around, set(around.axis_names) - set(around.manual_axes)
    options = {} if axes is None else {"axis_names": set(axes)}
    return jax.shard_map(fn, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False, **options)


def kernel_target(device) -> str:
    """What kernels can be compiled for a device: `tpu`, `hopper`, or nothing, which is an empty string."""
    if device.platform == "tpu":
        return "tpu"
    return "hopper" if str(getattr(device, "compute_capability", "")).startswith("9.") else ""


def compiler_options(device) -> dict[str, bool]:
    """What XLA is told when it compiles a step for a device.

    On GPUs a matrix product in Triton wants its matrix by itself, so that each layer's weights are copied out of the
    stack at every step: three times the traffic. cuBLAS takes the address inside the stack.
    """
    return {"xla_gpu_enable_triton_gemm": False} if device.platform == "gpu" else {}


def loaded_programs(device, names) -> Iterator[tuple[str, int, str]]:
    """Every program of these names that is loaded on a device's platform: its name, its number, and its HLO text.

    The number is what a profile calls `program_id`. Programs that came out of a compilation cache may share one.
    """
    for program in device.client.live_executables():
        for module in program.hlo_modules():
            if module.name in names:
                yield module.name, _module_number(module.as_serialized_hlo_module_proto()), module.to_string()


def _module_number(proto: bytes) -> int:
    """The field `id` of a serialised HloModuleProto, which nothing else tells; 0 where it is not set."""
    place = 0
    while place < len(proto):
        key, place = _varint(proto, place)
        field, kind = key >> 3, key & 7
        if kind == 0:  # a number
            value, place = _varint(proto, place)
            if field == 5:
                return value
        elif kind == 2:  # bytes, after their length
            length, place = _varint(proto, place)
            place += length
        else:
            place += 8 if kind == 1 else 4
    return 0


def _varint(proto: bytes, place: int) -> tuple[int, int]:
    """A number of protobuf's, seven bits a byte from the lowest, and the place after it."""
    value = shift = 0
    while proto[place] >= 0x80:
        value |= (proto[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    return value | proto[place] << shift, place + 1


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


def tpu_interpreter(detect_races: bool = False, cores: int = 1):
    """What makes `pallas_call` run a TPU kernel on a CPU, copies and semaphores included.

    Args:
      detect_races: also watch for accesses that nothing orders, for `tpu_races_found` to tell of.
      cores: cores of the pretended chip; a kernel written for two runs on one as well, one half after the other.
    """
    from jax.experimental.pallas import tpu as pltpu

    return pltpu.InterpretParams(detect_races=detect_races, num_cores_or_threads=cores)


def tpu_races_found() -> bool:
    """Whether the last kernel that ran in an interpreter with `detect_races` had a race; it printed where."""
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call

    races = interpret_pallas_call.races
    return races is not None and races.races_found


def gpu_interpreter(detect_races: bool = False):
    """What makes `plgpu.kernel` run a Mosaic GPU kernel on a CPU, thread blocks in turn and warpgroups together.

    Args:
      detect_races: also watch for accesses that nothing orders, for `gpu_races_found` to tell of.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(detect_races=detect_races)


def gpu_races_found() -> bool:
    """Whether the last kernel that ran in an interpreter with `detect_races` had a race; it printed where."""
    from jax._src.pallas.mosaic_gpu.interpret import gpu_callbacks

    return gpu_callbacks.get_races().races_found
