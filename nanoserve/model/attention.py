"""How a model attends: new keys and values are written to their pages, then queries attend to all of a row's pages.

A step has a part of decode rows, a part of prompt chunks, or both. All of its tokens are written first, at once: where
the parts took turns, each write came after a read, and XLA for a CPU copied the whole pool for it, twice a layer.

Heads are cut over the chips and share nothing, so each chip does both with its own heads (`shard_map`): a kernel never
sees a mesh. What depends on lengths alone is made once a step, outside the loop over layers.

Next: `kernels.pallas.paged_attention.api`, the contract.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, DTypeLike, Float, Int32

from kernels.pallas import compat
from kernels.pallas.choosing import Choice
from kernels.pallas.paged_attention import api as paged_attention
from nanoserve.model.pool import KvPool, Slots, layer_shapes, needs_scales, write
from nanoserve.model.sharding import SHARED, ways_of
from nanoserve.specs.models import ModelSpec, layer_windows

Attend = Callable[..., tuple[Float[Array, "T H h"], KvPool]]
"""(queries [T, H, h], keys and values [T, K, h], pages of all layers in one run, the layer's first page, its window) ->
attended values, and the pages with the new keys and values in them"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PagedAttention:
    """Attention of one model by one implementation.

    Attributes:
      heads: H. scale, soft_cap: as in the contract. windows: those that its layers have, each once.
      implementation: a name that `paged_attention.choose` returned.
      mesh: whose chips share the heads; None for one chip.
    """

    heads: int
    scale: float
    windows: tuple[int | None, ...]
    soft_cap: float | None = None
    implementation: str = "xla"
    mesh: Mesh | None = None

    def decode(self, pool: KvPool, page_table_BN: Int32[Array, "B N"], kv_lens_B: Int32[Array, " B"]) -> "Part":
        """Decode rows: one query each, at the last of `kv_lens_B` positions.

        Args:
          pool: pages of every layer; only shapes are looked at.
          page_table_BN, kv_lens_B: as in the contract, for the pages of one layer.
        """
        return self.part("decode", pool, len(kv_lens_B), page_table_BN, kv_lens_B)

    def prefill(
        self,
        pool: KvPool,
        tokens: int,
        page_table_RN: Int32[Array, "R N"],
        kv_lens_R: Int32[Array, " R"],
        cu_q_lens: Int32[Array, " R+1"],
    ) -> "Part":
        """Prompt chunks of T = `tokens` with padding; other arguments as for `decode` and in the contract."""
        return self.part("prefill", pool, tokens, page_table_RN, kv_lens_R, cu_q_lens)

    def attend(self, slots: Slots, parts: Sequence["Part"]) -> "Attending":
        """How a step's tokens attend: those of one part after those of the other.

        Args:
          slots: where the new keys and values go, of all tokens.
          parts: of the step, in the order of its tokens.
        """
        return Attending(attention=self, slots=slots, parts=tuple(parts))

    def part(self, kind: str, pool: KvPool, tokens: int, *rows: Array) -> "Part":
        """A part of a step, of a kind that is known by its name; arguments as for that kind."""
        q, layer = shapes_on_one_chip(self.heads, tokens, layer_shapes(pool), self.mesh)
        make_work = functools.partial(getattr(paged_attention, f"{kind}_work"), implementation=self.implementation)
        work = {window: make_work(q, layer.pages, *rows, window=window) for window in self.windows}
        return Part(kind=kind, tokens=tokens, rows=rows, work=work)

    def with_window(self, window: int | None, slots: Slots, parts: Sequence["Part"]) -> Callable:
        """What writes and attends in layers that have this window; see `Attending`."""
        how = {"window": window, "implementation": self.implementation, "scale": self.scale, "soft_cap": self.soft_cap}

        def on_one_chip(q_THh, k_TKh, v_TKh, pool, first_page, slots, of_parts):
            pool = write(pool, k_TKh, v_TKh, slots, first_page, self.implementation)
            attended, end = [], 0
            for part, (rows, work) in zip(parts, of_parts, strict=True):
                begin, end = end, end + part.tokens
                attention = getattr(paged_attention, f"{part.kind}_attention")
                options = {"kv_scales": pool.scales, "first_page": first_page, "work": work, **how}
                attended.append(attention(q_THh[begin:end], pool.pages, *rows, **options))
            return jnp.concatenate(attended), pool

        everywhere = _over_chips(on_one_chip, self.mesh)
        of_parts = [(part.rows, part.work[window]) for part in parts]
        return lambda q, k, v, pool, first_page: everywhere(q, k, v, pool, first_page, slots, of_parts)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Part:
    """Rows of a step that attend by one kernel.

    Attributes:
      kind: `decode` or `prefill`. tokens: how many of the step's they are, padding included.
      rows: what the contract asks of them. work: made of that once a step, by window.
    """

    kind: str
    tokens: int
    rows: tuple[Array, ...]
    work: Mapping[int | None, Any]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Attending:
    """How the tokens of one step attend, in any layer.

    Attributes:
      attention: of the model. slots: where the new keys and values go, of all tokens.
      parts: of the step, in the order of its tokens.
    """

    attention: PagedAttention
    slots: Slots
    parts: tuple[Part, ...]

    def __call__(
        self,
        q_THh: Float[Array, "T H h"],
        k_TKh: Float[Array, "T K h"],
        v_TKh: Float[Array, "T K h"],
        pool: KvPool,
        first_page: Int32[Array, ""],
        window: int | None,
    ) -> tuple[Float[Array, "T H h"], KvPool]:
        """Attended values, and the pages with the new keys and values in them.

        Args:
          q_THh, k_TKh, v_TKh: of the step's tokens.
          pool: pages of all layers in one run. first_page, window: the layer's.
        """
        attend = self.attention.with_window(window, self.slots, self.parts)
        return attend(q_THh, k_TKh, v_TKh, pool, first_page)


def attention_for(spec: ModelSpec, implementation: str = "xla", mesh: Mesh | None = None) -> PagedAttention:
    """Paged attention with the model's heads, scale, windows and soft cap."""
    return PagedAttention(
        heads=spec.heads,
        scale=(spec.query_scalar or spec.head_size) ** -0.5,
        windows=layer_windows(spec),
        soft_cap=spec.attention_soft_cap,
        implementation=implementation,
        mesh=mesh,
    )


def choose_attention(
    asked: str,
    spec: ModelSpec,
    target: str,
    *,
    dtype: DTypeLike,
    kv_dtype: DTypeLike,
    rows: int,
    page_tokens: int,
    table_pages: int,
    ways: int,
) -> Choice:
    """Which implementation serves a model, and why.

    Args:
      asked: `auto`, or the name of an implementation.
      spec: the model. target: what will run it, as `compat.kernel_target` says.
      dtype, kv_dtype: of activations and of pages.
      rows, page_tokens, table_pages: most sequences of a step, p, and N.
      ways: chips that share the heads.

    Raises:
      ConfigError: a name that does not exist, or that cannot serve this.
    """
    heads, kv_heads, shaped = spec.heads // ways, max(1, spec.kv_heads // ways), jax.ShapeDtypeStruct
    page = (page_tokens, kv_heads, 2)
    return paged_attention.choose(
        asked,
        target,
        shaped((rows, heads, spec.head_size), dtype),
        shaped((1, *page, spec.head_size), kv_dtype),
        shaped((rows, table_pages), "int32"),
        shaped((1, *page), "float32") if needs_scales(kv_dtype) else None,
    )


def shapes_on_one_chip(heads: int, tokens: int, pool: KvPool, mesh: Mesh | None):
    """Shapes of the queries and of a layer's pool `[P, p, K, ...]` that one chip sees."""
    ways = ways_of(mesh).heads

    def cut(array):
        P, p, K, *rest = array.shape
        return jax.ShapeDtypeStruct((P, p, K // ways, *rest), array.dtype)

    return jax.ShapeDtypeStruct((tokens, heads // ways, pool.pages.shape[-1]), "float32"), jax.tree.map(cut, pool)


def _over_chips(on_one_chip: Callable, mesh: Mesh | None) -> Callable:
    """The function over a mesh: queries, keys, values and pages are cut along heads, the rest is whole."""
    if mesh is None:
        return on_one_chip
    heads, pages, whole = PartitionSpec(None, SHARED), PartitionSpec(None, None, SHARED), PartitionSpec()

    def call(q_THh, k_TKh, v_TKh, pool, *rest):
        specs = (heads, heads, heads, pages, *[whole] * len(rest))
        mapped = compat.shard_map(on_one_chip, mesh=mesh, in_specs=specs, out_specs=(heads, pages))
        return mapped(q_THh, k_TKh, v_TKh, pool, *rest)

    return call
