"""Models, clusters, dtypes and counts to price: a fixed few for examples, and strategies over all that ship."""

import dataclasses
import math

from hypothesis import strategies as st

from nanoserve.roofline.counts import StepCounts, causal_pairs, window_kv_tokens, window_pairs
from nanoserve.specs.chip_registry import chip, chip_names
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model, model_names
from nanoserve.specs.models import ModelSpec

BF16 = Precision()
FP8 = Precision(weights="fp8", kv="fp8", compute="fp8")
INT8_WEIGHTS = Precision(weights="int8", kv="int8")


def cluster(name: str = "h100_sxm", ways: int = 1) -> ClusterSpec:
    """Chips of one kind, tensor-parallel."""
    return ClusterSpec(chip=chip(name), mesh={"tensor": ways})


def decode_counts(rows: int, context: int, steps: int = 1, window: int | None = None) -> StepCounts:
    """`rows` sequences that attend `context` positions each in the first step."""
    seen = [context + i for i in range(steps)]
    full, capped = rows * sum(seen), rows * sum(min(c, window or math.inf) for c in seen)
    return StepCounts(steps, rows, full, int(capped), sampled=steps * rows)


def prefill_counts(chunks: list[tuple[int, int]], window: int | None = None, sampled: int = 0) -> StepCounts:
    """Chunks given as (past, new tokens)."""
    full = sum(causal_pairs(past, new) for past, new in chunks), sum(past + new for past, new in chunks)
    within = full
    if window is not None:
        within = (
            sum(window_pairs(past, new, window) for past, new in chunks),
            sum(window_kv_tokens(past, new, window) for past, new in chunks),
        )
    return StepCounts(
        prefill_seqs=len(chunks),
        prefill_tokens=sum(new for _, new in chunks),
        prefill_pairs=full[0],
        prefill_window_pairs=within[0],
        prefill_kv_tokens=full[1],
        prefill_window_kv_tokens=within[1],
        sampled=sampled,
    )


def joined(decode: StepCounts, prefill: StepCounts) -> StepCounts:
    """One mixed step."""
    return StepCounts(
        1,
        decode.decode_seqs,
        decode.decode_kv_tokens,
        decode.decode_window_tokens,
        prefill.prefill_seqs,
        prefill.prefill_tokens,
        prefill.prefill_pairs,
        prefill.prefill_window_pairs,
        prefill.prefill_kv_tokens,
        prefill.prefill_window_kv_tokens,
        decode.sampled + prefill.sampled,
    )


ALTERNATING = dataclasses.replace(model("mistral-7b-v0.1"), full_attention_every=5)  # 6 layers in full, 26 windowed
models = st.sampled_from([*map(model, model_names()), ALTERNATING])
MESHES = (
    *({"tensor": ways} for ways in (1, 2, 4, 8)),
    {"expert": 8},
    {"pipeline": 4},
    {"tensor": 2, "expert": 4},
    {"tensor": 4, "expert": 2, "pipeline": 2},
)
clusters = st.builds(
    lambda name, mesh: ClusterSpec(chip=chip(name), mesh=mesh), st.sampled_from(chip_names()), st.sampled_from(MESHES)
)
precisions = st.sampled_from([BF16, FP8, INT8_WEIGHTS, Precision(weights="int4")])
chunk_lists = st.lists(st.tuples(st.integers(0, 8192), st.integers(1, 2048)), min_size=1, max_size=4)


@st.composite
def plans(draw: st.DrawFn, spec: ModelSpec, most_steps: int = 64) -> StepCounts:
    """A decode plan of some steps, a prefill step, or a mixed one; below the window no row crosses it."""
    window = spec.sliding_window_tokens
    kind = draw(st.sampled_from(["decode", "prefill", "mixed"]))
    rows, context = draw(st.integers(1, 256)), draw(st.integers(1, 8192))
    if kind == "decode":
        return decode_counts(rows, context, draw(st.integers(1, most_steps)), window)
    chunks = draw(chunk_lists)
    prefill = prefill_counts(chunks, window, sampled=draw(st.integers(0, len(chunks))))
    return prefill if kind == "prefill" else joined(decode_counts(rows, context, window=window), prefill)
