"""Compiles paged attention for TPUs that are not there, and prints what the compiler answers, a line of JSON a case.

Run in a process of its own: libtpu reads its environment when it is first loaded. `python -m tests.kernels.tpu_compile`
"""

import functools
import json
import math
import os
import re
from typing import Any

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}  # the smallest topologies; one chip of each is used
KINDS = ("decode", "prefill")

VARIANTS: dict[str, dict[str, Any]] = {  # two heads are what a chip of a tensor-parallel model holds, quick to compile
    "eight_heads": {"kv_heads": 8},
    "page_16_of_200k_one_head_group_16": {"page_tokens": 16, "pages": 200_000, "kv_heads": 1, "groups": 16},
    "page_32_head_64_group_1": {"page_tokens": 32, "head_size": 64, "groups": 1},
    "page_128_head_96_group_7": {"page_tokens": 128, "head_size": 96, "groups": 7},
    "head_256_group_3_window_cap": {"head_size": 256, "groups": 3, "window": 100, "soft_cap": 30.0},
    "int8_with_scales": {"kv_dtype": "int8", "scaled": True},
}
ONE_CHIP: dict[str, dict[str, Any]] = {  # compiled for v5e only
    "float32": {"dtype": "float32", "kv_dtype": "float32"},
    "float32_of_bf16_pages": {"dtype": "float32"},
    "float8": {"kv_dtype": "float8_e4m3fn"},
    "int8_page_16_one_head": {"kv_dtype": "int8", "page_tokens": 16, "kv_heads": 1, "scaled": True},
}
LAYOUT_UNSET = "page_32_head_64_layout_unset"
WRITES: dict[str, dict[str, Any]] = {
    "bf16": {},
    "int8_page_128": {"kv_dtype": "int8", "page_tokens": 128, "kv_heads": 8},
    "int8_page_16_one_head": {"kv_dtype": "int8", "page_tokens": 16, "kv_heads": 1},
    "float8_page_48_head_96_prefill": {"kv_dtype": "float8_e4m3fn", "page_tokens": 48, "head_size": 96, "tokens": 300},
}


def cases() -> list[tuple[str, str, str]]:
    """(chip, kind, variant) of everything that is compiled."""
    everywhere = [(chip, kind, name) for chip in CHIPS for kind in KINDS for name in VARIANTS]
    writes = [(chip, "write", name) for chip in CHIPS for name in WRITES]
    return [*everywhere, *(("v5e", kind, name) for kind in KINDS for name in ONE_CHIP), *writes]


def main() -> None:
    """Every variant on every chip, and one that leaves the pool's layout to the compiler."""
    os.environ |= {"JAX_PLATFORMS": "cpu", "TPU_SKIP_MDS_QUERY": "1"}
    for chip, kind, name in cases():
        report(chip, kind, name, (VARIANTS | ONE_CHIP | WRITES)[name])
    report("v5e", "decode", LAYOUT_UNSET, VARIANTS["page_32_head_64_group_1"], row_major=False)


def report(chip: str, kind: str, name: str, variant: dict[str, Any], **options) -> None:
    """Prints one case's outcome."""
    outcome: dict[str, Any] = {"case": f"{chip}-{kind}-{name}"}
    try:
        if kind == "write":
            outcome |= compile_write(chip, **variant)
        else:
            outcome |= compile_case(chip, kind, **variant, **options)
    except Exception as error:  # whatever the compiler says is the result
        outcome["error"] = f"{type(error).__name__}: {error}"
    print(json.dumps(outcome), flush=True)


def compile_case(
    chip: str,
    kind: str,
    *,
    row_major: bool = True,
    kv_heads: int = 2,
    groups: int = 8,
    head_size: int = 128,
    page_tokens: int = 64,
    pages: int = 1024,
    dtype: str = "bfloat16",
    kv_dtype: str = "bfloat16",
    scaled: bool = False,
    **options,
) -> dict[str, Any]:
    """Compiles 16 rows of 2,048 positions, decode or a prefill of 256 tokens, and returns what the compiler counted."""
    import jax
    import jax.numpy as jnp

    from kernels.pallas.paged_attention import tpu

    rows, tokens = 16, 256
    sharding = sharding_of(chip)
    spec = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    pool = (pages, page_tokens, kv_heads, 2, head_size)
    places = [in_order(sharding, order) for order in tpu.pool_order(jnp.dtype(kv_dtype))]
    args = [
        spec((rows if kind == "decode" else tokens, kv_heads * groups, head_size), jnp.dtype(dtype)),
        jax.ShapeDtypeStruct(pool, jnp.dtype(kv_dtype), sharding=places[0] if row_major else sharding),
        spec((rows, 2048 // page_tokens), jnp.int32),
        spec((rows,), jnp.int32),
        *([spec((rows + 1,), jnp.int32)] if kind == "prefill" else []),
    ]
    scales = jax.ShapeDtypeStruct(pool[:4], jnp.float32, sharding=places[1])
    call = functools.partial(getattr(tpu, f"{kind}_attention"), scale=head_size**-0.5, **options)
    with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
        compiled = jax.jit(call).trace(*args, **({"kv_scales": scales} if scaled else {})).lower().compile()
    return found(compiled, pool)


def compile_write(
    chip: str,
    *,
    kv_heads: int = 2,
    head_size: int = 128,
    page_tokens: int = 64,
    tokens: int = 32,
    kv_dtype: str = "bfloat16",
) -> dict[str, Any]:
    """Compiles the write of some tokens to a donated pool, with scales if its elements are of 8 bits."""
    import jax
    import jax.numpy as jnp

    from kernels.pallas.paged_attention import tpu

    sharding, dtype = sharding_of(chip), jnp.dtype(kv_dtype)
    pool, new = (1024, page_tokens, kv_heads, 2, head_size), (tokens, kv_heads, 2, head_size)
    pages, scales = (in_order(sharding, order) for order in tpu.pool_order(dtype))
    spec = functools.partial(jax.ShapeDtypeStruct, sharding=sharding)
    integers = spec((tokens,), jnp.int32), spec((tokens,), jnp.int32), spec((), jnp.int32)
    args = [jax.ShapeDtypeStruct(pool, dtype, sharding=pages), spec(new, dtype), *integers]
    scaled = dtype.itemsize == 1
    if scaled:
        args += [jax.ShapeDtypeStruct(pool[:4], jnp.float32, sharding=scales), spec(new[:3], jnp.float32)]
    step = jax.jit(
        tpu.write_kv, donate_argnums=(0, 5) if scaled else 0, out_shardings=(pages, scales if scaled else None)
    )
    with jax.sharding.use_abstract_mesh(sharding.mesh.abstract_mesh):
        return found(step.trace(*args).lower().compile(), pool)


def found(compiled, pool: tuple[int, ...]) -> dict[str, Any]:
    """What a compiled call on a pool of this shape costs and copies."""
    counted, memory, hlo = compiled.cost_analysis(), compiled.memory_analysis(), compiled.as_text()
    assert counted is not None and memory is not None and hlo is not None
    return {
        "flops": counted["flops"],
        "bytes": counted["bytes accessed"],
        "argument_bytes": memory.argument_size_in_bytes,
        "donated_bytes": memory.alias_size_in_bytes,
        "pool_copies": copies_of(pool, hlo),
    }


def copies_of(pool: tuple[int, ...], hlo: str) -> int:
    """Copies, in a compiled program, of arrays as large as the pool or as its scales, whatever their shape."""
    sizes = [math.prod(pool), math.prod(pool[:4])]
    shapes = re.findall(r"= \w+\[([\d,]*)\]\S* copy\(", hlo)
    return sum(math.prod(map(int, filter(None, shape.split(",")))) in sizes for shape in shapes)


@functools.cache
def sharding_of(chip: str):
    """Everything on the first chip of the topology."""
    import numpy as np
    from jax.experimental import topologies
    from jax.sharding import Mesh, NamedSharding, PartitionSpec

    devices = topologies.get_topology_desc(topology_name=CHIPS[chip], platform="tpu").devices
    return NamedSharding(Mesh(np.array(devices[:1]), ("x",)), PartitionSpec())


def in_order(sharding, major_to_minor: tuple[int, ...]):
    """The place in memory of an array whose axes lie in this order."""
    from jax.experimental.layout import Format, Layout

    return Format(Layout(major_to_minor=major_to_minor), sharding)


if __name__ == "__main__":
    main()
