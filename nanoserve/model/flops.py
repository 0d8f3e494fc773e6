"""Counts the matrix-product FLOPs of a traced program, part by part, before any compiler has changed it.

The cost model states what a step should compute; this reads what the model code asks for, so that a test can hold the
two against each other. Parts are the `jax.named_scope`s of `decoder` and of the attention kernels.
"""

import math
from collections import Counter
from collections.abc import Iterator

from jax.extend import core

_PRODUCTS = ("dot_general", "ragged_dot_general")


def dot_general_flops(program: core.ClosedJaxpr, while_trips: int = 1) -> Counter[str]:
    """FLOPs of every `dot_general` and `ragged_dot`, summed by scope; `.total()` is the whole program's.

    Args:
      program: from `jax.make_jaxpr` or `jitted.trace(...).jaxpr`.
      while_trips: how often each loop runs whose length only the data knows (attention over KV chunks).

    Returns:
      2 x (multiply-adds) by path of scopes, such as `attention/qkv`. Of a `cond`, the most expensive branch.
    """
    flops: Counter[str] = Counter()
    for eqn in program.jaxpr.eqns:
        if eqn.primitive.name in _PRODUCTS:
            flops[_path(eqn)] += _product_flops(eqn)
            continue
        bodies = [dot_general_flops(body, while_trips) for body in _bodies(eqn)]
        if eqn.primitive.name == "cond":
            bodies = [max(bodies, key=Counter.total)]
        for inner, count in (item for body in bodies for item in body.items()):
            path = "/".join(filter(None, (_path(eqn), inner)))
            flops[path] += count * _trips(eqn, while_trips)
    return flops


def _path(eqn) -> str:
    """The named scopes around an operation; `jnp.einsum` adds its subscripts, which are no scope of ours."""
    return "/".join(name for name in str(eqn.source_info.name_stack).split("/") if "->" not in name)


def _bodies(eqn) -> Iterator[core.ClosedJaxpr]:
    """The programs inside an operation: called functions, loop bodies, branches."""
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                yield item
            elif isinstance(item, core.Jaxpr):
                yield core.ClosedJaxpr(item, ())


def _trips(eqn, while_trips: int) -> int:
    if eqn.primitive.name == "scan":
        return eqn.params["length"]
    return while_trips if eqn.primitive.name == "while" else 1


def _product_flops(eqn) -> int:
    """2 m n k; of a grouped product m is the rows of all groups, each of which meets one group's matrix."""
    grouped = eqn.params.get("ragged_dot_dimension_numbers")
    (contracted, _), _ = grouped.dot_dimension_numbers if grouped else eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
