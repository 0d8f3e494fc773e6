"""What an engine must be told of KV (`engine.memory.KvFacts`): what pages hold, what they cost, whether to swap.

What pages hold is known from token ids where there are any: those of a real run, which knows what it generated too, or
those of the trace. A simulated run of a trace with prefix hashes takes those, and nobody checks who holds its pages.
Costs are the cost model's.

Next: `nanoserve.engine.page_keys`, `nanoserve.roofline.transfer`.
"""

from collections.abc import Callable

from nanoserve.engine.config import EngineConfig
from nanoserve.engine.memory import KvFacts
from nanoserve.engine.page_keys import hashed_keys, id_keys
from nanoserve.engine.pages import CheckedPagePool, PagePool
from nanoserve.engine.prefix import PageCost, PageKeys
from nanoserve.executors.tokens import TokenBook
from nanoserve.roofline.calibration import Calibration
from nanoserve.roofline.counts import StepCounts, causal_pairs, window_kv_tokens, window_pairs
from nanoserve.roofline.matrices import attention_flops, matmul_flops
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import step_time
from nanoserve.roofline.transfer import swap_seconds
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec
from nanoserve.trace.types import Trace


def kv_facts(
    config: EngineConfig,
    trace: Trace,
    model: ModelSpec,
    cluster: ClusterSpec,
    precision: Precision,
    calibration: Calibration,
    book: TokenBook | None = None,
) -> KvFacts:
    """Makes the facts that an engine's config asks for; those it does not ask for cost nothing.

    Args:
      config: of the engine. trace: what it serves.
      model, cluster, precision, calibration: what computes, and with which constants.
      book: token ids of a real run.

    Raises:
      ConfigError: a prefix cache for a trace of which nothing but lengths is known, or a choice between swapping and
        recomputing on a chip whose host link is not published.
    """
    return KvFacts(
        page_keys=None if config.prefix_cache == "off" else page_keys_of(trace, config.page_tokens, book),
        page_cost=page_cost_of(model, config.page_tokens) if config.prefix_cache == "cost" else None,
        swap_is_cheaper=_swap_is_cheaper(model, cluster, precision, calibration)
        if config.preemption == "cheaper"
        else None,
        pool=PagePool if book is None else CheckedPagePool,
    )


def page_keys_of(trace: Trace, page_tokens: int, book: TokenBook | None = None) -> PageKeys:
    """Keys of pages, from the best that is known: ids of a real run, the trace's hashes, or the trace's ids.

    Raises:
      ConfigError: nothing but lengths is known.
    """
    if book is not None:
        return lambda request, tokens: book.page_keys(request, tokens, page_tokens)
    if trace.prefix_hashes is not None:
        return hashed_keys(trace, page_tokens)
    prompts, outputs = trace.prompt_ids, trace.output_ids
    if prompts is None:
        raise ConfigError(
            f"Engine.prefix_cache: trace '{trace.name}' has neither prefix hashes nor token ids, so nobody knows what "
            "its requests have in common. Choose a trace that says it, or Engine.prefix_cache = 'off'"
        )
    if outputs is None:
        return id_keys(lambda request: prompts.row(request).tolist(), page_tokens)
    return id_keys(lambda request: [*prompts.row(request).tolist(), *outputs.row(request).tolist()], page_tokens)


def page_cost_of(model: ModelSpec, page_tokens: int) -> PageCost:
    """FLOPs to compute a page again, in those of a sequence's first page.

    The products cost the same at every depth, attention more the more comes before.
    """

    def flops(depth: int) -> int:
        past, window = depth * page_tokens, model.sliding_window_tokens
        pairs = causal_pairs(past, page_tokens)
        near = pairs if window is None else window_pairs(past, page_tokens, window)
        return matmul_flops(model, page_tokens, 0) + attention_flops(model, pairs, near)

    first = flops(0)
    return lambda depth: flops(depth) / first


def _swap_is_cheaper(
    model: ModelSpec, cluster: ClusterSpec, precision: Precision, calibration: Calibration
) -> Callable[[int], bool]:
    """Compares two trips over the host link with one prefill that nothing shares.

    Prefill in a step that other sequences run in costs less, since weights are read anyway; waiting costs the same.
    """
    trip_s = swap_seconds(model, cluster, precision, 1)
    window = model.sliding_window_tokens

    def swap_is_cheaper(tokens: int) -> bool:
        pairs = causal_pairs(0, tokens)
        counts = StepCounts(
            prefill_seqs=1,
            prefill_tokens=tokens,
            prefill_pairs=pairs,
            prefill_window_pairs=pairs if window is None else window_pairs(0, tokens, window),
            prefill_kv_tokens=tokens,
            prefill_window_kv_tokens=tokens if window is None else window_kv_tokens(0, tokens, window),
        )
        recompute_s = float(step_time(step_ops(model, cluster, precision, counts), cluster, calibration))
        return 2 * tokens * trip_s < recompute_s

    return swap_is_cheaper
