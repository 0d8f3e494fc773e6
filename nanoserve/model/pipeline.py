"""Layers in stages: each stage of chips holds its layers and their pages, and tokens go from one to the next.

A step is cut into microbatches, as many as stages, so that all stages work at once: in turn t, stage s has microbatch
`t - s`. Rows that decode are dealt out; chunks are cut by tokens, in order, so that a token finds what those before it
have written. Where one of the step's parts does not divide, the whole step is one microbatch.

A step ends before the next begins, so of its `M + S - 1` turns a stage works in M and idles in the others: it goes
through its layers with tokens that write nowhere and attend to nothing. `roofline.split` prices those turns, too. It
does not price that the stream of the last stage is summed over all, once a step: embedding, head and sampling are
shared by all chips, and each needs it.

Along the other axes of the mesh the stage is compiled as it is without a pipeline. Next: `decoder.through_stage`, what
a stage does; `attention`.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Bool, Shaped

from kernels.pallas import compat
from nanoserve.model.attention import Attending
from nanoserve.model.pool import NOWHERE, KvPool, Slots
from nanoserve.model.sharding import PIPELINE, stages_of

Rows = tuple[Array, ...]
Stage = Callable[..., tuple[Array, KvPool]]
"""(layers, pool, residual stream, positions, `Attending`) -> residual stream, pool"""


def through_stages(stage: Stage, mesh: Mesh) -> Stage:
    """A stage's function, made into one for all layers of a mesh that cuts them.

    Args:
      stage: `decoder.through_stage` of a model. mesh: with an axis `pipeline` above 1.
    """
    stages = stages_of(mesh)

    def through(layers, pool, x_TD, positions_T, attend: Attending):
        sizes = [part.tokens for part in attend.parts]
        count = microbatches(sizes, stages)
        tokens = x_TD, positions_T, attend.slots
        tokens_M = jax.tree.map(lambda array: _dealt(array, sizes, count), tokens)
        rows_M = tuple(_CUTS[part.kind](part.rows, part.tokens, count) for part in attend.parts)

        def on_each_stage(layers, pool, tokens_M, rows_M):
            return _turns(stage, attend, stages, layers, pool, tokens_M, rows_M)

        cut, whole = PartitionSpec(PIPELINE), PartitionSpec()
        mapped = compat.shard_map(
            on_each_stage, mesh=mesh, in_specs=(cut, cut, whole, whole), out_specs=(whole, cut), axes={PIPELINE}
        )
        x_MTD, pool = mapped(layers, pool, tokens_M, rows_M)
        return _gathered(x_MTD, sizes), pool

    return through


def microbatches(sizes: Sequence[int], stages: int) -> int:
    """How many microbatches a step is cut into: as many as stages, if its parts of `sizes` tokens all divide."""
    return 1 if any(size % stages for size in sizes) else stages


def _turns(stage: Stage, attend: Attending, stages: int, layers, pool, tokens_M, rows_M) -> tuple[Array, KvPool]:
    """One stage's turns, and the residual stream [M, T/M, D] after the last stage."""
    entering_MTD, positions_MT, slots_M = tokens_M
    here, count = jax.lax.axis_index(PIPELINE), len(positions_MT)
    following = [(before, before + 1) for before in range(stages - 1)]

    def turn(index, carry):
        received_TD, left_MTD, pool = carry
        mine, works = jnp.clip(index - here, 0, count - 1), (index >= here) & (index - here < count)

        def taken(tree):
            return jax.tree.map(lambda array: jax.lax.dynamic_index_in_dim(array, mine, keepdims=False), tree)

        now = _attending(attend, pool, count, taken(slots_M), taken(rows_M), works)
        x_TD = jnp.where(here == 0, taken(entering_MTD), received_TD)
        x_TD, pool = stage(layers, pool, x_TD, taken(positions_MT), now)
        # While the last stage idles, this puts what it has in the place of its first microbatch, which then comes.
        left_MTD = jax.lax.dynamic_update_index_in_dim(left_MTD, x_TD, mine, 0)
        return jax.lax.ppermute(x_TD, PIPELINE, following), left_MTD, pool

    empty = jnp.zeros_like(entering_MTD[0]), jnp.zeros_like(entering_MTD), pool
    _, left_MTD, pool = jax.lax.fori_loop(0, count + stages - 1, turn, empty)
    return jax.lax.psum(jnp.where(here == stages - 1, left_MTD, 0), PIPELINE), pool


def _attending(
    attend: Attending, pool: KvPool, count: int, slots: Slots, rows: Sequence[Rows], works: Bool[Array, ""]
) -> Attending:
    """How one of `count` microbatches attends; to nothing, and writing nowhere, where its stage does not work."""
    parts = []
    for part, (page_table, *lengths) in zip(attend.parts, rows, strict=True):
        lengths = [jnp.where(works, array, 0) for array in lengths]
        parts.append(attend.attention.part(part.kind, pool, part.tokens // count, page_table, *lengths))
    slots = slots._replace(pages_T=jnp.where(works, slots.pages_T, NOWHERE))
    return dataclasses.replace(attend, slots=slots, parts=tuple(parts))


def _dealt(array: Shaped[Array, "T ..."], sizes: Sequence[int], count: int) -> Shaped[Array, "M T/M ..."]:
    """Tokens by microbatch: of each part its share, in order."""
    parts = jnp.split(array, _ends(sizes))
    return jnp.concatenate([part.reshape(count, -1, *array.shape[1:]) for part in parts], axis=1)


def _gathered(array: Shaped[Array, "M T/M ..."], sizes: Sequence[int]) -> Shaped[Array, "T ..."]:
    """The inverse of `_dealt`."""
    count = array.shape[0]
    parts = jnp.split(array, _ends([size // count for size in sizes]), axis=1)
    return jnp.concatenate([part.reshape(-1, *array.shape[2:]) for part in parts])


def _ends(sizes: Sequence[int]) -> list[int]:
    """Where parts end that come one after the other, but for the last."""
    return np.cumsum(sizes)[:-1].tolist()


def _cut_decode(rows: Rows, tokens: int, count: int) -> Rows:
    """Page tables [M, B/M, N] and lengths [M, B/M]."""
    del tokens  # as many as rows
    return tuple(array.reshape(count, -1, *array.shape[1:]) for array in rows)


def _cut_prefill(rows: Rows, tokens: int, count: int) -> Rows:
    """Every row in each microbatch, with those of its tokens that are in it, and the KV that is written by then."""
    page_table_RN, kv_lens_R, cu_q_lens = rows
    size = tokens // count
    begin_M1 = size * jnp.arange(count, dtype=cu_q_lens.dtype)[:, None]
    bounds = jnp.clip(cu_q_lens - begin_M1, 0, size)
    after_MR = jnp.maximum(cu_q_lens[1:] - jnp.maximum(cu_q_lens[:-1], begin_M1 + size), 0)
    kv_lens_MR = jnp.where(jnp.diff(bounds) > 0, kv_lens_R - after_MR, 0)
    return jnp.broadcast_to(page_table_RN, (count, *page_table_RN.shape)), kv_lens_MR, bounds


_CUTS: Mapping[str, Callable[[Rows, int, int], Rows]] = {"decode": _cut_decode, "prefill": _cut_prefill}
