"""The kernel on Hopper: tiles of the transposed product, `w.T @ x.T`, so that the weight is the operand in registers.

wgmma has 64 rows for its left operand and any multiple of 8 columns for its right one. With output channels as rows
and tokens as columns, a batch of 8 pays for 8, and the left operand may come from registers, which is where a weight
is after its conversion.

A thread block makes 64 or 128 output channels for up to 128 tokens: one or two warpgroups take 64 channels each, and
another fetches blocks of 128 inputs through a ring of slots in shared memory. A slot holds a block of x, of the weight,
and the scales of its groups. The protocol: a consumer arrives on `free` when it is done with a slot, and once at the
start; the fetcher waits for `free`, then each copy arrives on `full`.

The products of a block, or of each group in it, are summed by the matrix unit and added to float32 sums in registers:
that is where a group's scale comes in, and where fp8 gets its precision back, of whose sums Hopper's matrix unit keeps
14 bits or so. Integers are added as integers while one scale serves them all.

The kernel that runs and the one that a CPU interprets differ in `Static.interpreted` alone: the interpreter of jax
0.11.2 multiplies from shared memory only, and insists that every phase of every barrier is waited for.

Source: DeepSeek-V3 technical report (arXiv 2412.19437), section 3.3.2, on fp8 sums.
Next: `gpu_tuning`.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from kernels.pallas.quant_matmul.weight import BITS, QuantWeight

ROWS = 64  # output channels of a warpgroup: the M of a wgmma
BLOCK_INPUTS = 128
CONSUMER_REGISTERS, FETCHER_REGISTERS = 240, 24

# How a block of the weight is loaded, whole 32-bit words at a time; moved to where wgmma wants it, still packed; and
# the dtypes on its way to a float that it has no instruction for.
LOADED_AS = {"int4": plgpu.Layout.WGMMA_UPCAST_4X}
BY_WAY_OF = {
    ("float8_e4m3fn", "bfloat16"): (jnp.float16, jnp.float32),
    ("int4", "float16"): (jnp.bfloat16, jnp.float32),
}

Ref = Any  # a Pallas reference; its shape is said where it is made


@dataclasses.dataclass(frozen=True, kw_only=True)
class Static:
    """What the kernel is compiled for.

    Attributes:
      consumers, tile_tokens, stages, splits: as in `gpu_tuning.Blocks`.
      tiles_tokens, tiles_outputs: tiles of the result along each of its axes.
      blocks: blocks of inputs.
      group: inputs that share a scale, if it is not all of them.
      converted: whether the weight's dtype is not that of x.
      scaled_rows: whether rows of x have scales.
      interpreted: for the interpreter rather than for a GPU.
    """

    consumers: int
    tile_tokens: int
    stages: int
    splits: int
    tiles_tokens: int
    tiles_outputs: int
    blocks: int
    group: int | None
    converted: bool
    scaled_rows: bool
    interpreted: bool

    @property
    def tile_outputs(self) -> int:
        """Output channels of a thread block."""
        return self.consumers * ROWS

    @property
    def copies(self) -> int:
        """Copies that fill a slot."""
        return 2 if self.group is None else 3

    @property
    def parts(self) -> int:
        """Products of a block that are added apart."""
        return 1 if self.group is None else BLOCK_INPUTS // self.group


class Ring(NamedTuple):
    """Slots of x [stages, tokens, 128], weight [stages, outputs, 128], scales [stages, groups, outputs]; barriers."""

    x: Ref
    values: Ref
    scales: Ref | None
    full: Ref
    free: Ref


class Tile(NamedTuple):
    """Where a thread block works: its first token and output channel, its split, and blocks of inputs [begin, end)."""

    token: Any
    output: Any
    split: Any
    begin: Any
    end: Any


def groups_per_block(weight: QuantWeight) -> int:
    """Scales of an output channel that come with a block of inputs; none if one serves all blocks."""
    return 0 if weight.groups == 1 else BLOCK_INPUTS // weight.group


def staged_tokens(tile_tokens: int) -> int:
    """Tokens whose results are on their way out at a time."""
    return min(tile_tokens, 64)


def call(x_TD, weight: QuantWeight, layer_1, row_scales_T, out_dtype, blocks, interpret):
    """Runs the kernel.

    Args:
      x_TD: as in `gpu.matmul`.
      weight, layer_1: a stack of weights, and which of them.
      row_scales_T: float32, padded to whole tiles; or None.
      out_dtype: of the result.
      blocks: a `gpu_tuning.Blocks`.
      interpret: what `plgpu.kernel` takes.

    Returns:
      Sums [splits, T, F].
    """
    (T, D), F = x_TD.shape, weight.outputs
    static = Static(
        consumers=blocks.consumers,
        tile_tokens=blocks.tile_tokens,
        stages=blocks.stages,
        splits=blocks.splits,
        tiles_tokens=-(-T // blocks.tile_tokens),
        tiles_outputs=F // (blocks.consumers * ROWS),
        blocks=D // BLOCK_INPUTS,
        group=weight.group if weight.groups > 1 else None,
        converted=x_TD.dtype != weight.values.dtype,
        scaled_rows=row_scales_T is not None,
        interpreted=bool(interpret),
    )
    return plgpu.kernel(
        functools.partial(_kernel, static=static),
        out_type=jax.ShapeDtypeStruct((blocks.splits, T, F), out_dtype),
        scratch_types=[
            _tiled((static.consumers, ROWS, BLOCK_INPUTS), x_TD.dtype, static) if static.interpreted else None,
            _tiled((static.consumers, staged_tokens(static.tile_tokens), ROWS), out_dtype),
            _ring_scratch(x_TD.dtype, weight, static),
        ],
        grid=(static.tiles_tokens * static.tiles_outputs * static.splits,),
        grid_names=("tile",),
        num_threads=static.consumers + 1,
        thread_name="warpgroup",
        kernel_name="quant_matmul",
        interpret=interpret,
    )(x_TD, weight.values, weight.scales, layer_1, *([row_scales_T] if static.scaled_rows else []))


def _tiled(shape: tuple[int, ...], dtype, static: Static | None = None) -> Any:
    """Shared memory of `shape` in tiles of 8 rows, swizzled; for operands no wider than a group, so it can be cut."""
    bits = BITS.get(jnp.dtype(dtype).name, 8 * jnp.dtype(dtype).itemsize)
    columns = shape[-1] if static is None or static.group is None else min(shape[-1], static.group)
    swizzle = plgpu.find_swizzle(columns * bits)
    tiling = plgpu.TilingTransform((8, 8 * swizzle // bits))  # pyright: ignore[reportAbstractUsage]
    return plgpu.SMEM(shape, dtype, transforms=(tiling, plgpu.SwizzleTransform(swizzle)))  # pyright: ignore[reportAbstractUsage]


def _ring_scratch(x_dtype, weight: QuantWeight, static: Static) -> Ring:
    """What to allocate for a `Ring`."""
    scales = None
    if static.group is not None:
        scales = plgpu.SMEM((static.stages, static.parts, static.tile_outputs), weight.scales.dtype)
    return Ring(
        _tiled((static.stages, static.tile_tokens, BLOCK_INPUTS), x_dtype, static),
        _tiled((static.stages, static.tile_outputs, BLOCK_INPUTS), weight.values.dtype),
        scales,
        plgpu.Barrier(num_arrivals=static.copies, num_barriers=static.stages),
        plgpu.Barrier(num_arrivals=static.consumers, num_barriers=static.stages),
    )


def _kernel(x_ref, values_ref, scales_ref, layer_ref, *refs, static: Static):
    """One thread block: its warpgroups walk the same blocks of inputs."""
    *rows, out_ref, converted_s, out_s, ring = refs
    layer = layer_ref[0]
    values_ref, scales_ref = values_ref.at[layer], scales_ref.at[layer]
    tile, warpgroup = _tile(static), lax.axis_index("warpgroup")

    @pl.when(warpgroup < static.consumers)
    def _consume():
        for slot in range(static.stages):
            plgpu.barrier_arrive(ring.free.at[slot])
        plgpu.set_max_registers(CONSUMER_REGISTERS, action="increase")
        own = pl.ds(pl.multiple_of(warpgroup * ROWS, ROWS), ROWS)
        outputs = pl.ds(pl.multiple_of(tile.output + warpgroup * ROWS, ROWS), ROWS)
        sums = _sums(ring, own, converted_s and converted_s.at[warpgroup], tile, static).astype(jnp.float32)
        if static.group is None:
            sums = sums * _along(_row_values(scales_ref.at[0, outputs]), sums.shape, axis=0)
        if static.scaled_rows:
            of_tile = rows[0].at[pl.ds(tile.token, static.tile_tokens)]
            of_rows = plgpu.load(of_tile, layout=plgpu.Layout.WGMMA.reduce(0), optimized=False)
            sums = sums * _along(of_rows, sums.shape, axis=1)
        _store(sums, out_s.at[warpgroup], out_ref.at[tile.split, :, outputs], tile.token)

    @pl.when(warpgroup == static.consumers)
    def _fetch():
        plgpu.set_max_registers(FETCHER_REGISTERS, action="decrease")
        _fetch_blocks(x_ref, values_ref, scales_ref, ring, tile, static)


def _tile(static: Static) -> Tile:
    """Where this thread block works; blocks that share a part of the weight are neighbours, to share it through L2."""
    index = lax.axis_index("tile")
    token, rest = lax.rem(index, static.tiles_tokens), lax.div(index, static.tiles_tokens)
    output, split = lax.rem(rest, static.tiles_outputs), lax.div(rest, static.tiles_outputs)
    return Tile(
        token * static.tile_tokens,
        output * static.tile_outputs,
        split,
        lax.div(split * static.blocks, static.splits),
        lax.div((split + 1) * static.blocks, static.splits),
    )


def _fetch_blocks(x_ref: Ref, values_ref: Ref, scales_ref: Ref, ring: Ring, tile: Tile, static: Static) -> None:
    """Fetches the tile's blocks, in order. Tokens past the last are zeros: the TMA knows where an array ends."""
    tokens = pl.ds(pl.multiple_of(tile.token, 8), static.tile_tokens)
    outputs = pl.ds(pl.multiple_of(tile.output, static.tile_outputs), static.tile_outputs)

    def block(index, _):
        slot = lax.rem(index - tile.begin, static.stages)
        inputs, full = pl.ds(pl.multiple_of(index * BLOCK_INPUTS, BLOCK_INPUTS), BLOCK_INPUTS), ring.full.at[slot]
        plgpu.barrier_wait(ring.free.at[slot])
        plgpu.copy_gmem_to_smem(values_ref.at[outputs, inputs], ring.values.at[slot], full)
        plgpu.copy_gmem_to_smem(x_ref.at[tokens, inputs], ring.x.at[slot], full)
        if ring.scales is not None:
            groups = pl.ds(index * static.parts, static.parts)
            plgpu.copy_gmem_to_smem(scales_ref.at[groups, outputs], ring.scales.at[slot], full)

    lax.fori_loop(tile.begin, tile.end, block, None)
    if static.interpreted:  # a GPU does not mind phases that nobody waited for
        for slot in range(static.stages):
            plgpu.barrier_wait(ring.free.at[slot])


def _sums(ring: Ring, own, converted_s: Ref | None, tile: Tile, static: Static) -> jax.Array:
    """Sums [64, tokens] of a warpgroup's channels over the tile's blocks, scaled where groups have scales.

    Args:
      ring: where blocks arrive.
      own: the warpgroup's channels of a tile's.
      converted_s: where a converted weight goes under the interpreter, [64, 128]; None on a GPU.
      tile, static: see there.
    """
    integers = ring.x.dtype == jnp.int8
    exact = jnp.int32 if integers else jnp.float32

    def block(index, sums):
        slot = lax.rem(index - tile.begin, static.stages)
        plgpu.barrier_wait(ring.full.at[slot])
        weight = _left_operand(ring.values.at[slot, own], ring.x.dtype, converted_s, static)
        for part in range(static.parts):
            product = _product(_columns(weight, part, static), _columns(ring.x.at[slot], part, static), exact)
            if ring.scales is not None:
                scales = _row_values(ring.scales.at[slot, part, own])
                product = product.astype(jnp.float32) * _along(scales, product.shape, axis=0)
            sums = sums + product
        if static.converted or ring.scales is not None:
            plgpu.commit_smem()  # registers were loaded from the slot: that is over before the TMA writes there
        plgpu.barrier_arrive(ring.free.at[slot])
        return sums

    start = jnp.zeros((ROWS, static.tile_tokens), exact if static.group is None else jnp.float32)
    return lax.fori_loop(tile.begin, tile.end, block, plgpu.layout_cast(start, plgpu.Layout.WGMMA))


def _left_operand(values_s: Ref, dtype, converted_s: Ref | None, static: Static) -> Any:
    """A block of the weight [64, 128] as wgmma takes it: as it lies in shared memory, or converted in registers."""
    if not static.converted:
        return values_s
    kind = jnp.dtype(values_s.dtype).name
    values = plgpu.load(values_s, layout=LOADED_AS.get(kind, plgpu.Layout.WGMMA_UPCAST_2X))
    values = plgpu.layout_cast(values, plgpu.Layout.WGMMA)
    for step in BY_WAY_OF.get((kind, jnp.dtype(dtype).name), ()):
        values = values.astype(step)
    values = values.astype(dtype)
    if converted_s is None:
        return values
    converted_s[...] = values
    plgpu.commit_smem()
    return converted_s


def _columns(operand: Any, part: int, static: Static) -> Any:
    """The inputs of one group of a block."""
    if static.parts == 1:
        return operand
    group = BLOCK_INPUTS // static.parts
    if isinstance(operand, jax.Array):
        return operand[:, part * group : (part + 1) * group]
    return operand.at[:, pl.ds(part * group, group)]


def _product(left: Any, x_s: Ref, dtype) -> jax.Array:
    """`left @ x.T`, [64, tokens]."""

    def multiply(accumulator):
        plgpu.wgmma(accumulator, left, x_s.transpose((1, 0)))
        return accumulator[...]

    return pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((ROWS, x_s.shape[0]), dtype))


def _row_values(ref: Ref) -> jax.Array:
    """A float32 for each of 64 rows."""
    return plgpu.load(ref, layout=plgpu.Layout.WGMMA.reduce(1), optimized=False).astype(jnp.float32)


def _along(x: jax.Array, shape: tuple[int, ...], axis: int) -> jax.Array:
    """A value per index of `axis` as an array of `shape`."""
    return lax.broadcast_in_dim(x, shape, [axis])


def _store(sums: jax.Array, out_s: Ref, out_ref: Ref, token) -> None:
    """Sums [64, tokens] to `out_ref[token:]`, [T, 64]; the TMA leaves out tokens past the last."""
    staged = out_s.shape[0]
    for first in range(0, sums.shape[1], staged):
        part = sums[:, first : first + staged].astype(out_s.dtype)
        out_s.T[...] = plgpu.layout_cast(part, plgpu.Layout.WGMMA_TRANSPOSED)
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(out_s, out_ref.at[pl.ds(pl.multiple_of(token + first, 8), staged)])
        plgpu.wait_smem_to_gmem(0)
