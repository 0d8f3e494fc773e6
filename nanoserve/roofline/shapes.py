"""Steps described by their shapes and priced by the million: the array face of the cost model.

A shape is what one would write on a whiteboard: so many rows at such a context, and a chunk of so many tokens after so
many. `step_counts` turns shapes into `StepCounts`, `shape_prices` into seconds. Both are the code that prices one step;
a field may be a number, a NumPy array or a JAX value, so `jax.vmap`, `jax.jit` and `jax.grad` apply and a frontier or a
fit is an array program. Shapes are made floats: exact up to 2**53, and no 32-bit overflow under JAX's default types.

Next: `ops`, `timing`. `experiments/bench/price_shapes.py` measures how long a million take.
"""

import dataclasses
from collections.abc import Callable

from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.counts import Count, StepCounts, causal_pairs, window_kv_tokens, window_pairs
from nanoserve.roofline.numeric import minimum
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import BoundTimes, bound_times
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepShapes:
    """One step or many, each field a number or an array; arrays have one shape or broadcast to one.

    Attributes:
      decode_seqs: rows that decode. context_tokens: KV positions that each of them attends, the new one included.
      chunk_tokens: new tokens of one prompt chunk, 0 for none. past_tokens: of its sequence, already in KV; a prefix
        found in the cache counts as such.
    """

    decode_seqs: Count = 0
    context_tokens: Count = 0
    chunk_tokens: Count = 0
    past_tokens: Count = 0


def step_counts(shapes: StepShapes, window_tokens: int | None = None) -> StepCounts:
    """Returns the counts of single steps of these shapes; every row is sampled, and so is the chunk.

    Args:
      shapes: the steps. window_tokens: the model's sliding window, or None.
    """
    rows, context = 1.0 * shapes.decode_seqs, 1.0 * shapes.context_tokens
    chunk, past = 1.0 * shapes.chunk_tokens, 1.0 * shapes.past_tokens
    has_chunk = 1.0 * (chunk > 0)
    pairs, kv_tokens = causal_pairs(past, chunk), has_chunk * (past + chunk)
    seen, pairs_seen, kv_seen = context, pairs, kv_tokens
    if window_tokens is not None:
        seen = minimum(context, window_tokens)
        pairs_seen = window_pairs(past, chunk, window_tokens)
        kv_seen = has_chunk * window_kv_tokens(past, chunk, window_tokens)
    return StepCounts(
        steps=1,
        decode_seqs=rows,
        decode_kv_tokens=rows * context,
        decode_window_tokens=rows * seen,
        prefill_seqs=has_chunk,
        prefill_tokens=chunk,
        prefill_pairs=pairs,
        prefill_window_pairs=pairs_seen,
        prefill_kv_tokens=kv_tokens,
        prefill_window_kv_tokens=kv_seen,
        sampled=rows + has_chunk,
    )


def shape_prices(
    model: ModelSpec, cluster: ClusterSpec, precision: Precision, calibration: Calibration
) -> Callable[[StepShapes], BoundTimes]:
    """Returns a pure function from shapes to seconds by bound, `total` the time of the step.

    Args:
      model, cluster, precision: what is priced. calibration: with which constants.

    Raises:
      ConfigError: when called, for an unknown dtype or mesh axis.
    """

    def prices(shapes: StepShapes) -> BoundTimes:
        counts = step_counts(shapes, model.sliding_window_tokens)
        return bound_times(step_ops(model, cluster, precision, counts), cluster, calibration)

    return prices
