"""Compiles products with quantised weights for TPUs that are not there; a line of JSON a case.

Run in a process of its own: libtpu reads its environment when it is first loaded.
`python -m tests.kernels.tpu_compile_quant_matmul`
"""

import functools
import json
import os
from typing import Any

from kernels.pallas.quant_matmul import arg_specs, tpu
from tests.kernels.tpu_compile import CHIPS, copies_of, sharding_of


def cases() -> list[tuple[str, str]]:
    """(chip, name in `arg_specs.COMPILED`) of everything that is compiled."""
    served = [name for name, shape in arg_specs.COMPILED.items() if not tpu.why_not(*arg_specs.multiplied(shape)[:2])]
    return [(chip, name) for chip in CHIPS for name in served]


def main() -> None:
    """Every case; whatever the compiler says is the result."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    for chip, name in cases():
        outcome: dict[str, Any] = {"case": f"{chip}-{name}"}
        try:
            outcome |= compile_case(chip, arg_specs.COMPILED[name])
        except Exception as error:
            outcome["error"] = f"{type(error).__name__}: {error}"
        print(json.dumps(outcome), flush=True)


def compile_case(chip: str, shape: arg_specs.Shape) -> dict[str, Any]:
    """What the compiler counted."""
    import jax

    sharding = sharding_of(chip)
    placed = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    args = jax.tree.map(lambda leaf: placed(leaf.shape, leaf.dtype), arg_specs.multiplied(shape))
    with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
        compiled = tpu.matmul.trace(*args, out_dtype=shape.dtype).lower().compile()
    counted, memory, hlo = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    assert counted is not None and memory is not None and hlo is not None
    return {
        "flops": counted["flops"],
        "bytes": counted["bytes accessed"],
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "weight_copies": copies_of(args[1].values.shape, hlo) + copies_of(args[1].scales.shape, hlo),
    }


if __name__ == "__main__":
    main()
