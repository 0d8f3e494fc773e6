"""Arrays of one shape on the device, and our paged attention as a program of many calls over them.

A program is a step of a model whose layers only attend: a loop of `calls`, each over KV of its own, each taking the
result of the one before as its queries. So nothing is hoisted out of the loop or dropped, KV comes from memory and not
from a cache, and lengths are turned into work once, as in the engine. The layers' pages are one array, told apart by
`first_page`.

Next: `attention_peers`, which attend over the same numbers in their own layouts.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.layout import Format, Layout
from jaxtyping import Array, Float, Int32, Num

from experiments.bench.attention_shapes import BenchShape
from experiments.bench.attention_timing import Contender, Timeable
from kernels.pallas.paged_attention import api, gpu_interpret, gpu_tuning, reference

KV_DTYPES = {"bf16": jnp.bfloat16, "int8": jnp.int8, "fp8": jnp.float8_e4m3fn}
QUANTISED_SPREAD = 32.0  # of the numbers in 8-bit pages; far from the ends of both types
# Of |result - truth| / |truth|, with bf16 queries, KV, weights and results: 2^-9 each, and their sums.
TOLERANCE = 1e-2
INTERPRETED_THREAD_BLOCKS = 1  # 50 ms each, one after the other


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """One shape's arrays, with KV of `sets` layers.

    Attributes:
      shape: whose arrays these are.
      q: queries, one row a token.
      kv_pages, kv_scales: the layers' pages, one layer after the other; scales of 8-bit pages, else None.
      page_table, kv_lens, cu_q_lens: as in `api`; page numbers are a layer's own.
      sets: layers.
    """

    shape: BenchShape
    q: Float[Array, "T H h"]
    kv_pages: Num[Array, "P p K 2 h"]
    kv_scales: Float[Array, "P p K 2"] | None
    page_table: Int32[Array, "B N"]
    kv_lens: Int32[Array, " B"]
    cu_q_lens: Int32[Array, " B+1"]
    sets: int

    @property
    def layer_pages(self) -> int:
        """Pages of one layer."""
        return self.kv_pages.shape[0] // self.sets

    @property
    def scale(self) -> float:
        """The factor on scores."""
        return self.shape.head_size**-0.5

    @functools.cached_property
    def contiguous(self) -> list[tuple[jax.Array, jax.Array]]:
        """Keys and values of each layer as [B, S, K, h], in the order in which calls walk them.

        Rows shorter than the longest are followed by numbers of any page.
        """

        @jax.jit
        def layer(kv_pages, page_table, index):
            rows = kv_pages[page_table + index * self.layer_pages]
            rows = rows.reshape(rows.shape[0], -1, *rows.shape[3:])[:, : max(self.shape.kv_lens)]
            return rows[:, :, :, 0], rows[:, :, :, 1]

        return [layer(self.kv_pages, self.page_table, self.set_of(call)) for call in range(self.sets)]

    def set_of(self, call: Any) -> Any:
        """Which layer a call attends over. The first is the last layer: the one that is checked has a `first_page`."""
        return self.sets - 1 - call % self.sets


def make_inputs(shape: BenchShape, sets: int, implementation: str, seed: int = 0) -> Inputs:
    """Random arrays, made on the device.

    Args:
      shape: whose. sets: layers. implementation: which wants its pages to lie in an order of its own.
      seed: of numbers and of the order of pages.
    """
    pages = sum(shape.pages)
    table, free = (
        np.zeros((len(shape.pages), max(shape.pages)), np.int32),
        np.random.default_rng(seed).permutation(pages),
    )
    for row, count in enumerate(shape.pages):
        table[row, :count], free = free[:count], free[count:]
    q_key, kv_key, scale_key = jax.random.split(jax.random.key(seed), 3)
    one_layer = (pages, shape.page_tokens, shape.kv_heads, 2, shape.head_size)
    dtype = KV_DTYPES[shape.kv]
    orders = api.pool_order(implementation, dtype) or (None, None)
    return Inputs(
        shape=shape,
        q=jax.random.normal(q_key, (shape.tokens, shape.heads, shape.head_size), jnp.bfloat16),
        kv_pages=_layers(kv_key, sets, one_layer, dtype, orders[0]),
        kv_scales=None if shape.kv == "bf16" else _layers(scale_key, sets, one_layer[:4], jnp.float32, orders[1]),
        page_table=jnp.asarray(table),
        kv_lens=jnp.asarray(shape.kv_lens, jnp.int32),
        cu_q_lens=jnp.asarray(np.cumsum((0, *shape.q_lens)), jnp.int32),
        sets=sets,
    )


def _layers(key, sets: int, one_layer: tuple[int, ...], dtype, order: tuple[int, ...] | None) -> jax.Array:
    """Random layers end to end, made one at a time: their float32 forms would not fit beside one another."""

    def layer(key):
        if dtype == jnp.float32:  # scales, so that key and value are numbers of about 1
            return jax.random.uniform(key, one_layer, dtype, 0.5 / QUANTISED_SPREAD, 1.5 / QUANTISED_SPREAD)
        numbers = jax.random.normal(key, one_layer, jnp.bfloat16)
        return numbers if dtype == jnp.bfloat16 else (numbers * QUANTISED_SPREAD).astype(dtype)

    def make(key):
        return jax.lax.map(layer, jax.random.split(key, sets)).reshape(-1, *one_layer[1:])

    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.jit(make, out_shardings=where if order is None else Format(Layout(order), where))(key)


Attend = Callable[[jax.Array, Any], jax.Array]  # (queries, which layer) -> result


def looped(make_attend: Callable[..., Attend], arrays: tuple, q: jax.Array, inputs: Inputs, calls: int) -> Contender:
    """A program of `calls` calls, as one loop on the device.

    Args:
      make_attend: makes a call from `arrays`, once a program. arrays: what the call reads, an argument of the program.
      q: the first call's queries. inputs: whose layers the calls walk. calls: their number; known to the compiler, so
        that the loop does not ask the host whether to go on.
    """

    @jax.jit
    def program(q, arrays):
        attend = make_attend(*arrays)
        first = attend(q, inputs.set_of(0))
        if calls == 1:  # the loop's body would be compiled for nothing
            return first, first
        return first, jax.lax.fori_loop(1, calls, lambda call, q: attend(q, inputs.set_of(call)), first)

    latest: list = [None]

    def start() -> None:
        latest[0] = program(q, arrays)

    def first() -> np.ndarray:
        start()
        return np.asarray(latest[0][0], np.float32)

    return Contender(Timeable(start, lambda: jax.block_until_ready(latest[0]), calls), first, "one loop on the device")


def paged(inputs: Inputs, implementation: str, calls: int) -> Contender:
    """Our attention, by the name of an implementation."""
    arrays = (inputs.kv_pages, inputs.kv_scales, inputs.page_table, inputs.kv_lens, inputs.cu_q_lens)
    return looped(functools.partial(_paged_call, inputs, implementation), arrays, inputs.q, inputs, calls)


def _paged_call(inputs: Inputs, implementation: str, kv_pages, kv_scales, page_table, kv_lens, cu_q_lens) -> Attend:
    """A call over one layer, with the work that all layers share."""
    layer = jax.ShapeDtypeStruct((inputs.layer_pages, *kv_pages.shape[1:]), kv_pages.dtype)
    if inputs.shape.kind == "decode":
        rows, make_work = (page_table, kv_lens), api.decode_work
    else:
        rows, make_work = (page_table, kv_lens, cu_q_lens), api.prefill_work
    work = make_work(inputs.q, layer, *rows, implementation=implementation)
    options = {"scale": inputs.scale, "work": work} | ({} if kv_scales is None else {"kv_scales": kv_scales})
    attention = _entry_point(inputs, implementation, layer)

    def attend(q, index):
        return attention(q, kv_pages, *rows, first_page=jnp.asarray(index * inputs.layer_pages, jnp.int32), **options)

    return attend


def _entry_point(inputs: Inputs, implementation: str, layer: jax.ShapeDtypeStruct) -> Callable[..., jax.Array]:
    """The entry point for a shape; the GPU interpreter, which runs thread blocks in turn, is given one."""
    name = f"{inputs.shape.kind}_attention"
    if implementation != "pallas_gpu_interpret":
        return functools.partial(getattr(api, name), implementation=implementation)
    if inputs.shape.kind == "decode":
        blocks = gpu_tuning.decode_blocks(layer, *inputs.page_table.shape)
    else:
        blocks = gpu_tuning.prefill_blocks(layer)
    blocks = dataclasses.replace(blocks, thread_blocks=INTERPRETED_THREAD_BLOCKS)
    return functools.partial(getattr(gpu_interpret, name), blocks=blocks)


def truth(inputs: Inputs, oracle: bool) -> np.ndarray:
    """What a program's first call should return.

    Args:
      inputs: the call's. oracle: by plain loops in NumPy float64, for toys; else by the implementation `xla`.
    """
    if not oracle:
        return paged(inputs, "xla", 1).first()
    shape, first = inputs.shape, inputs.set_of(0) * inputs.layer_pages
    layer = slice(first, first + inputs.layer_pages)
    scales = None if inputs.kv_scales is None else np.asarray(inputs.kv_scales[layer])
    rows = [np.asarray(inputs.page_table), np.asarray(inputs.kv_lens)]
    rows += [np.asarray(inputs.cu_q_lens)] if shape.kind == "prefill" else []
    attention = reference.decode_attention if shape.kind == "decode" else reference.prefill_attention
    q, kv_pages = (np.asarray(array, np.float32) for array in (inputs.q, inputs.kv_pages[layer]))
    return attention(q, kv_pages, *rows, scale=inputs.scale, kv_scales=scales)


def error_of(result: np.ndarray, expected: np.ndarray) -> float:
    """|result - truth| / |truth|, infinite where a number is missing."""
    error = np.linalg.norm(result.astype(np.float64) - expected) / np.linalg.norm(expected)
    return float(error) if np.isfinite(error) else float("inf")
