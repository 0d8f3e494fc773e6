"""Tiny models, states and rows for the tests of this room. Every random value has an explicit seed."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from nanoserve.model import params as model_params
from nanoserve.model.params import Params
from nanoserve.model.sampling import SamplingParams
from nanoserve.model.step import DecodeRows, DeviceState, PrefillRows, init_state
from nanoserve.specs.models import ModelSpec, MoeSpec

TINY = ModelSpec(
    name="tiny",
    family="llama",
    layers=2,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_size=8,
    ffn=48,
    vocab=96,
    max_context_tokens=512,
    source="made up for tests",
)
EXPERTS = dataclasses.replace(TINY, name="experts", family="mixtral", moe=MoeSpec(experts=4, top_k=2, ffn=24))
PAGE_TOKENS, PAGES, TABLE_PAGES, SLOTS = 4, 40, 8, 6
KEY = jax.random.key(0)


def random_params(spec: ModelSpec = TINY, seed: int = 0, dtype=jnp.float32) -> Params:
    """Weights wide enough that attention and position decide which token comes next."""
    rng = np.random.default_rng(seed)

    def make(field: str) -> jax.Array:
        shape = model_params.shape_of(spec, field)
        wide = rng.standard_normal(shape) * (1.5 / np.sqrt(spec.hidden))
        return jnp.asarray(wide + 1 if "norm" in field else wide, dtype)

    return model_params.build(spec, make)


def empty_state(spec: ModelSpec = TINY, dtype=jnp.float32) -> DeviceState:
    return init_state(spec, pages=PAGES, page_tokens=PAGE_TOKENS, slots=SLOTS, dtype=dtype)


def sampling(rows: int, **columns) -> SamplingParams:
    """Greedy rows, except for the columns given by their names without `_B`."""
    greedy = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 0} | columns
    dtypes = {"top_k": np.int32, "seed": np.uint32}
    return SamplingParams(
        **{
            f"{name}_B": np.broadcast_to(np.asarray(value, dtypes.get(name, np.float32)), rows).copy()
            for name, value in greedy.items()
        }
    )


@dataclasses.dataclass(frozen=True)
class Sequence:
    """One request as the scheduler would lay it out: a slot and its own pages."""

    slot: int
    tokens: tuple[int, ...]
    pages: tuple[int, ...]

    @property
    def table(self) -> list[int]:
        return [*self.pages, *[-1] * (TABLE_PAGES - len(self.pages))]


def sequence(slot: int, length: int, seed: int = 0) -> Sequence:
    """A random prompt in `slot`; pages are dealt so that slots never share one."""
    rng = np.random.default_rng([seed, slot])
    pages = rng.permutation(np.arange(slot, PAGES, SLOTS))[: TABLE_PAGES - 2]
    return Sequence(slot, tuple(rng.integers(0, TINY.vocab, length).tolist()), tuple(pages.tolist()))


def prefill_rows(
    chunks: list[tuple[Sequence, int, int]], *, tokens: int, rows: int, how: SamplingParams | None = None
) -> PrefillRows:
    """Rows for chunks `(sequence, start, end)`, padded to `tokens` and `rows`; a chunk that ends its prompt samples."""
    lens = [end - start for _, start, end in chunks]
    spare = rows - len(chunks)
    flat = [token for s, start, end in chunks for token in s.tokens[start:end]]
    positions = [position for _, start, end in chunks for position in range(start, end)]
    return PrefillRows(
        tokens_T=np.pad(np.array(flat, np.int32), (0, tokens - len(flat))),
        positions_T=np.pad(np.array(positions, np.int32), (0, tokens - len(flat))),
        cu_q_lens=np.cumsum([0, *lens, *[0] * spare]).astype(np.int32),
        kv_lens_R=np.array([*[end for _, _, end in chunks], *[0] * spare], np.int32),
        page_table_RN=np.array([*[s.table for s, _, _ in chunks], *[[-1] * TABLE_PAGES] * spare], np.int32),
        slots_R=np.array([*[s.slot for s, _, _ in chunks], *[SLOTS] * spare], np.int32),
        samples_R=np.array([*[end == len(s.tokens) for s, _, end in chunks], *[False] * spare]),
        sampling=how or sampling(rows),
    )


def decode_rows(
    sequences: list[Sequence], positions: list[int], *, rows: int, how: SamplingParams | None = None
) -> DecodeRows:
    """Rows for sequences with `positions` KV entries written, padded to `rows`."""
    spare = rows - len(sequences)
    return DecodeRows(
        slots_B=np.array([*[s.slot for s in sequences], *[SLOTS] * spare], np.int32),
        positions_B=np.array([*positions, *[0] * spare], np.int32),
        page_table_BN=np.array([*[s.table for s in sequences], *[[-1] * TABLE_PAGES] * spare], np.int32),
        active_B=np.array([*[True] * len(sequences), *[False] * spare]),
        sampling=how or sampling(rows),
    )
