"""The shapes of the attention benchmark, and what each of them has to compute and read.

A shape is one call on one chip: a model of the registry cut over `ways` chips, the lengths of its rows, and how its KV
is stored. Work is what the cost model counts for it (`nanoserve.roofline.ops`): positions that are attended, not padded
ones, each read once, scales of 8-bit KV included, and queries and results.

Next: `attention_calls` (arrays and timing), `attention_peers`, `attention` (the command).
"""

import dataclasses
import difflib
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

from nanoserve.roofline.counts import StepCounts, causal_pairs
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.storage import kv_scale_bytes_per_chip
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError, nearest
from nanoserve.specs.model_registry import model

Kind = Literal["decode", "prefill"]
KINDS: tuple[Kind, ...] = ("decode", "prefill")

# Heads of a chip: Llama-3.1-8B alone (H 32, K 8), Llama-3.1-70B on eight chips (H 8, K 1).
MODELS: Mapping[str, tuple[str, int]] = {"8b": ("llama-3.1-8b", 1), "70b_tp8": ("llama-3.1-70b", 8)}
BATCHES = (1, 8, 32, 64, 128)
CONTEXTS = (1024, 2048, 4096, 8192)
PAGES = (16, 64)
CHUNKS = (512, 2048, 8192)
SKEWED = (16_384, *(512,) * 31)  # one long row among short ones: half of all KV is in one row of 32
MOST_LISTED = 12
TOY_MODEL, TOY_WAYS = "llama-3.1-70b", 8  # one KV head: what an interpreter takes time for


@dataclasses.dataclass(frozen=True, kw_only=True)
class BenchShape:
    """One call on one chip.

    Attributes:
      name: what `--shapes` selects. kind: which entry point is called.
      model, ways: registry name, and over how many chips its heads are cut.
      page_tokens: p. kv_lens: positions written of each row, the new ones included.
      q_lens: new tokens of each row; one each for decode.
      kv: storage of KV: bf16, int8 or fp8. Queries are bf16.
    """

    name: str
    kind: Kind
    model: str
    ways: int
    page_tokens: int
    kv_lens: tuple[int, ...]
    q_lens: tuple[int, ...]
    kv: str = "bf16"

    @property
    def heads(self) -> int:
        """H of one chip."""
        return model(self.model).heads // self.ways

    @property
    def kv_heads(self) -> int:
        """K of one chip."""
        return model(self.model).kv_heads // self.ways

    @property
    def head_size(self) -> int:
        """The size h of a head."""
        return model(self.model).head_size

    @property
    def tokens(self) -> int:
        """Queries of the call."""
        return sum(self.q_lens)

    @property
    def pages(self) -> tuple[int, ...]:
        """Pages of each row."""
        return tuple(-(-length // self.page_tokens) for length in self.kv_lens)

    @property
    def even(self) -> bool:
        """All rows have one length and as many new tokens."""
        return len(set(self.kv_lens)) == len(set(self.q_lens)) == 1


@dataclasses.dataclass(frozen=True)
class Useful:
    """What a call cannot do without: bytes read and written, and FLOPs."""

    bytes: int
    flops: int


def useful(shape: BenchShape) -> Useful:
    """What the cost model counts for one layer's attention over a shape; KV is written by another operation.

    Factors of 8-bit KV, which the cost model does not price, are read too and counted here.
    """
    spec = dataclasses.replace(model(shape.model), layers=1)
    cluster = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": shape.ways})  # no count depends on which chip
    parts = {op.name: op for op in step_ops(spec, cluster, Precision(kv=shape.kv), counts(shape))}
    op = parts[f"attention_{shape.kind}"]
    factors = sum(shape.kv_lens) * kv_scale_bytes_per_chip(spec, Precision(kv=shape.kv), shape.ways)
    return Useful(int(op.kv_read_bytes + op.activation_bytes) + factors, int(op.flops))


def counts(shape: BenchShape) -> StepCounts:
    """A shape as the cost model sees it."""
    if shape.kind == "decode":
        return StepCounts(decode_seqs=len(shape.kv_lens), decode_kv_tokens=sum(shape.kv_lens))
    chunks = zip(shape.kv_lens, shape.q_lens, strict=True)
    return StepCounts(
        prefill_seqs=len(shape.q_lens),
        prefill_tokens=shape.tokens,
        prefill_pairs=sum(causal_pairs(length - new, new) for length, new in chunks),
        prefill_kv_tokens=sum(shape.kv_lens),
    )


def catalogue() -> dict[str, BenchShape]:
    """Every shape for a device with an accelerator, by name, the ones that issues are decided by first."""
    return _by_name((*_decode(), *_skewed(), *_eight_bit(), *_prefill()))


def toy_catalogue() -> dict[str, BenchShape]:
    """A few shapes that an interpreter finishes in seconds; they show that the command works, and nothing else."""

    def toy(name: str, kind: Kind, kv_lens: Sequence[int], q_lens: Sequence[int], page: int = 16, kv: str = "bf16"):
        return BenchShape(
            name=f"toy_{kind}_{name}", kind=kind, model=TOY_MODEL, ways=TOY_WAYS, page_tokens=page,
            kv_lens=tuple(kv_lens), q_lens=tuple(q_lens), kv=kv,
        )  # fmt: skip

    return _by_name(
        (
            toy("b2_s64_p64", "decode", (64, 64), (1, 1), page=64),
            toy("skewed_p16", "decode", (70, 5, 17), (1, 1, 1)),
            toy("b2_s32_p16_int8", "decode", (32, 32), (1, 1), kv="int8"),
            toy("t32_p64", "prefill", (32,), (32,), page=64),
            toy("t8_past_24_p16", "prefill", (32,), (8,)),
        )
    )


def select(patterns: Sequence[str], shapes: Mapping[str, BenchShape], kinds: Sequence[str]) -> list[BenchShape]:
    """The shapes of some kinds that any pattern names, in the catalogue's order.

    Args:
      patterns: names, with `*` and `?` as in file names; none means every shape.
      shapes: a catalogue. kinds: of `KINDS`.

    Raises:
      ConfigError: for a pattern that names no shape of these kinds.
    """
    wanted = {name: shape for name, shape in shapes.items() if shape.kind in kinds}
    for pattern in patterns:
        if not fnmatch.filter(wanted, pattern):
            raise ConfigError(
                f"--shapes={pattern} names no shape of {' or '.join(kinds)}.{_hint(pattern, list(wanted))} "
                "Names may hold '*' and are separated by commas"
            )
    return [shape for name, shape in wanted.items() if not patterns or _named(name, patterns)]


def _hint(pattern: str, names: list[str]) -> str:
    """The nearest name; a hundred names where none is near would help nobody."""
    close = difflib.get_close_matches(pattern, names, n=1, cutoff=0.5)
    return nearest(pattern, names) if close or len(names) <= MOST_LISTED else f" The first of {len(names)}: {names[0]}."


def _named(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _by_name(shapes: Sequence[BenchShape]) -> dict[str, BenchShape]:
    return {shape.name: shape for shape in shapes}


def _decode() -> Iterator[BenchShape]:
    for page in reversed(PAGES):
        for heads in MODELS:
            for batch in BATCHES:
                for context in CONTEXTS:
                    yield _shape("decode", f"{heads}_b{batch}_s{context}", heads, page, (context,) * batch)


def _skewed() -> Iterator[BenchShape]:
    for heads in MODELS:
        yield _shape("decode", f"{heads}_skewed32", heads, 64, SKEWED)


def _eight_bit() -> Iterator[BenchShape]:
    for kv in ("int8", "fp8"):
        for heads in MODELS:
            for context in (2048, 8192):
                yield _shape("decode", f"{heads}_b32_s{context}", heads, 64, (context,) * 32, kv=kv)


def _prefill() -> Iterator[BenchShape]:
    for page in reversed(PAGES):
        for heads in MODELS:
            for chunk in CHUNKS:
                yield _shape("prefill", f"{heads}_t{chunk}", heads, page, (chunk,), (chunk,))
    for heads in MODELS:
        yield _shape("prefill", f"{heads}_t512_past7680", heads, 64, (8192,), (512,))
        yield _shape("prefill", f"{heads}_skewed16", heads, 64, (4096, *(128,) * 15), (4096, *(128,) * 15))


def _shape(
    kind: Kind, name: str, heads: str, page: int, kv_lens: tuple[int, ...], q_lens: tuple[int, ...] = (), kv="bf16"
) -> BenchShape:
    registered, ways = MODELS[heads]
    suffix = f"_p{page}" if kv == "bf16" else f"_p{page}_{kv}"
    return BenchShape(
        name=f"{kind}_{name}{suffix}",
        kind=kind,
        model=registered,
        ways=ways,
        page_tokens=page,
        kv_lens=kv_lens,
        q_lens=q_lens or (1,) * len(kv_lens),
        kv=kv,
    )
