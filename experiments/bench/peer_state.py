"""What another framework is given of a decode step that is ready: keys and values in order, and logits to agree on.

Next: `parts.peer`, which hands them over.
"""

import functools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int32

from experiments.bench.parts.step_ready import LOOP_STEPS, Prepared
from kernels.pallas import compat
from nanoserve.engine.types import Plan
from nanoserve.model import decoder
from nanoserve.model.attention import PagedAttention, attention_for
from nanoserve.model.params import Params
from nanoserve.model.pool import slots_of
from nanoserve.model.step import DecodeRows, DeviceState
from nanoserve.specs.models import ModelSpec

KeysValues = tuple[Float[Array, "B S K h"], Float[Array, "B S K h"]]


def keys_and_values(ready: Prepared) -> Iterator[KeysValues]:
    """Of each layer, one after the other, with room for the steps of the longest loop and no more."""
    table_BN = jnp.asarray(ready.pages, jnp.int32)
    longest = ready.plan(LOOP_STEPS).rows()[0].start + LOOP_STEPS
    for layer in range(ready.spec.layers):
        yield _in_order(ready.executor.state.pool.pages, layer, table_BN, longest)


@functools.partial(jax.jit, static_argnums=3)
def _in_order(
    pages: Float[Array, "L P p K 2 h"], layer: Int32[Array, ""], table_BN: Int32[Array, "B N"], longest: int
) -> KeysValues:
    rows_BS = pages[layer, table_BN].reshape(table_BN.shape[0], -1, *pages.shape[3:])[:, :longest]
    return rows_BS[:, :, :, 0], rows_BS[:, :, :, 1]


def first_logits(ready: Prepared, plan: Plan) -> Float[Array, "B V"]:
    """Logits of the first step of a plan, by the model's own functions; writes what that step writes."""
    executor, rows = ready.executor, plan.rows()
    executor.arrays.sync(rows)
    attention = attention_for(ready.spec, ready.model.attention.name)
    step = jax.jit(
        functools.partial(_logits_step, ready.spec, attention),
        donate_argnums=1,
        compiler_options=compat.compiler_options(jax.devices()[0]),
    )
    (logits_BV,) = executor.run(step, executor.arrays.decode(rows, len(rows)))
    return logits_BV


def _logits_step(
    spec: ModelSpec, attention: PagedAttention, params: Params, state: DeviceState, rows: DecodeRows, key: jax.Array
) -> tuple[DeviceState, Float[Array, "B V"]]:
    """`step.decode_step` up to its logits; no token is sampled, and the key is not used."""
    index_B, tokens_B = jnp.arange(rows.slots_B.shape[0]), state.last_tokens[rows.slots_B]
    slots = slots_of(state.pool, rows.page_table_BN, index_B, rows.positions_B, rows.active_B)
    part = attention.decode(state.pool, rows.page_table_BN, rows.positions_B + 1)
    attend = attention.attend(slots, [part])
    x_BD, pool = decoder.forward(spec, params, state.pool, tokens_B, rows.positions_B, attend)
    return DeviceState(pool, state.last_tokens), decoder.logits(spec, params, x_BD)
