"""Arrays of one product on the device, the programs that multiply them, and their times.

Next: `quant_matmul.api` (the contract); `matmul`, which says what is compared with what.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.attention_measure import checked
from experiments.bench.attention_peers import described
from experiments.bench.attention_results import OURS, achieved
from experiments.bench.attention_shapes import Useful
from experiments.bench.attention_timing import Contender, Timeable, Timed, take_turns
from experiments.bench.parts import Context
from experiments.bench.parts.ceilings import BF16, COPY
from experiments.bench.parts.matmul_cases import MatmulCase
from experiments.bench.results_file import FAILED, MEASURED, SKIPPED, Record
from kernels.pallas import compat
from kernels.pallas.quant_matmul import api
from kernels.pallas.quant_matmul.quantise import dequantise, quantise
from kernels.pallas.quant_matmul.weight import QuantWeight

Multiply = Callable[[jax.Array, Any, Any], jax.Array]  # (activations, what the program reads, which layer) -> product
BF16_BYTES = 2


@dataclasses.dataclass(frozen=True)
class Matrices:
    """The layers that a program walks.

    Attributes:
      quantised: values [L, F, D] and scales [L, G, F]. plain: [L, D, F], the same numbers rounded to bf16.
    """

    quantised: QuantWeight
    plain: jax.Array

    @property
    def layers(self) -> int:
        """L."""
        return self.plain.shape[0]


def measure_product(case: MatmulCase, context: Context) -> Record:
    """What there is to record of a product."""
    effort, useful = context.effort, Useful(case.useful_bytes(case.bytes_per_weight), case.flops)
    layers = effort.sets(case.weight_bytes)
    make = functools.partial(make_matrices, case, layers)
    matrices: Matrices = context.shared.get((case.model, case.matrix, case.scheme, layers), make)
    x_TD = jax.random.normal(jax.random.key(1), (case.rows, case.inputs), jnp.bfloat16)
    choice = chosen(case, context.device)
    calls = effort.calls(useful.bytes, useful.flops)
    contenders = {name: looped(*what, x_TD, layers, calls) for name, what in _contenders(matrices, choice.name).items()}
    errors, records = checked(contenders, _truth(matrices, x_TD))
    timed = take_turns({name: contenders[name].timeable for name in errors}, effort, context.clock)
    records |= {name: _record(case, name, errors[name], timed[name], context) for name in errors}
    if choice.name == "xla":
        records["xla"] = {"status": SKIPPED, "reason": "it is what is measured"}
    ours = records.pop(OURS)
    made = {"implementation": choice.name, "why": choice.why, "layers": layers}
    return made | {"calls": contenders[OURS].timeable.calls} | ours | {"peers": records}


def chosen(case: MatmulCase, device: Any) -> api.Choice:
    """What the engine would take for a product on a device."""
    x_TD = jax.ShapeDtypeStruct((case.rows, case.inputs), jnp.bfloat16)
    weight = jax.eval_shape(lambda: _quantised(case, jax.random.key(0)))
    return api.choose("auto", compat.kernel_target(device), [(x_TD, weight)])


def make_matrices(case: MatmulCase, layers: int) -> Matrices:
    """Random weights, drawn on the device a layer at a time: their float32 forms would not fit beside one another."""
    keys = jax.random.split(jax.random.key(0), layers)
    quantised = jax.jit(lambda keys: jax.lax.map(functools.partial(_quantised, case), keys))(keys)
    plain = jax.jit(lambda stack: jax.lax.map(lambda one: dequantise(one).astype(jnp.bfloat16), stack))(quantised)
    return Matrices(quantised, plain)


def _quantised(case: MatmulCase, key: jax.Array) -> QuantWeight:
    """One layer, whose products with activations of order 1 are of order 1."""
    w_DF = jax.random.normal(key, (case.inputs, case.outputs), jnp.float32) * case.inputs**-0.5
    return quantise(w_DF, case.scheme)


def _contenders(matrices: Matrices, ours: str) -> Mapping[str, tuple[Multiply, Any]]:
    """How each contender multiplies, and what it reads."""
    found: dict[str, tuple[Multiply, Any]] = {OURS: (functools.partial(_ours, ours), matrices.quantised)}
    if ours != "xla":
        found["xla"] = functools.partial(_ours, "xla"), matrices.quantised
    return found | {"dequantised": (_dequantised, matrices.quantised), "bf16": (_plain, matrices.plain)}


def _ours(implementation: str, x_TD: jax.Array, stack: QuantWeight, layer: Any) -> jax.Array:
    return api.quant_matmul(x_TD, stack, layer=jnp.asarray(layer, jnp.int32), implementation=implementation)


def _dequantised(x_TD: jax.Array, stack: QuantWeight, layer: Any) -> jax.Array:
    one = jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, layer, keepdims=False), stack)
    return _bf16_product(x_TD, dequantise(one).astype(x_TD.dtype))


def _plain(x_TD: jax.Array, stack: jax.Array, layer: Any) -> jax.Array:
    return _bf16_product(x_TD, jax.lax.dynamic_index_in_dim(stack, layer, keepdims=False))


def _bf16_product(x_TD: jax.Array, w_DF: jax.Array) -> jax.Array:
    return jnp.matmul(x_TD, w_DF, preferred_element_type=x_TD.dtype)


def looped(multiply: Multiply, stack: Any, x_TD: jax.Array, layers: int, calls: int) -> Contender:
    """A program of about `calls` products: one by the last layer, then all layers in turn, once or more.

    The layer is the loop's own counter, as in a model: of an index that is computed, XLA copies the layer for cuBLAS.
    """
    rounds = max(1, round((calls - 1) / layers))

    @functools.partial(jax.jit, compiler_options=compat.compiler_options(jax.devices()[0]))
    def program(x_TD, stack):
        return one_program(multiply, x_TD, stack, layers, rounds)

    latest: list = [None]

    def start() -> None:
        latest[0] = program(x_TD, stack)

    def first() -> np.ndarray:
        start()
        return np.asarray(latest[0][0], np.float32)

    wait = functools.partial(jax.block_until_ready, latest)
    return Contender(Timeable(start, wait, 1 + rounds * layers), first, "one loop on the device")


def one_program(multiply: Multiply, x_TD: jax.Array, stack: Any, layers: int, rounds: int) -> tuple:
    """The first product, and the last."""
    first = multiply(x_TD, stack, layers - 1)

    def one_round(_, latest: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, layers, lambda layer, _: multiply(x_TD, stack, layer), latest)

    return first, jax.lax.fori_loop(0, rounds, one_round, first)


def _truth(matrices: Matrices, x_TD: jax.Array) -> np.ndarray:
    """The product by the last layer, in float32 of exactly dequantised weights."""

    @jax.jit
    def product(x_TD, stack):
        w_DF = dequantise(jax.tree.map(lambda array: array[-1], stack))
        return jnp.matmul(x_TD.astype(jnp.float32), w_DF, precision=jax.lax.Precision.HIGHEST)

    return np.asarray(product(x_TD, matrices.quantised))


def _record(case: MatmulCase, name: str, error: float, timed: Timed | Exception, context: Context) -> Record:
    if isinstance(timed, Exception):
        return {"status": FAILED, "reason": described(timed)}
    needs = Useful(case.useful_bytes(BF16_BYTES if name == "bf16" else case.bytes_per_weight), case.flops)
    ceilings = {"copy_bytes_per_s": context.ceiling(COPY), "matmul_flops_per_s": context.ceiling(BF16)}
    return {
        "status": MEASURED,
        "error": error,
        "time": timed.record(),
        "useful_bytes": needs.bytes,
        "flops": needs.flops,
        **achieved(needs, timed.median_s, ceilings),
    }
