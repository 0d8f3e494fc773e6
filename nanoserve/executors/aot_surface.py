"""How many sequences fit at each context: the compiler's answer, found by asking it, beside the memory model's.

The compiler says for one batch whether its program fits, so the boundary is closed in on, from the model's guess.
Next: `aot`, which asks.
"""

import dataclasses
from collections.abc import Callable, Iterator

from nanoserve.engine.sequence import pages_for
from nanoserve.executors.aot import Compiler, Workload
from nanoserve.roofline.memory import memory_plan
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.models import ModelSpec

RESOLUTION = 0.02  # of the batch: how closely a boundary is found
Answer = Callable[[int], str]
"""(sequences) -> why they do not fit, or an empty string"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Boundary:
    """The most sequences of one context that fit.

    Attributes:
      context_tokens: positions of each sequence. compiler, model: how many fit by each; 0 where not even one does.
      refusal: what the compiler said of the smallest batch that it was asked about and refused. asked: how often.
    """

    context_tokens: int
    compiler: int
    model: int
    refusal: str
    asked: int


def boundaries(
    spec: ModelSpec,
    cluster: ClusterSpec,
    precision: Precision,
    attention: str,
    *,
    contexts: tuple[int, ...],
    page_tokens: int,
) -> Iterator[Boundary]:
    """Finds the boundary of a decode step at each context, one after the other.

    Raises:
      ConfigError: as `aot.Compiler`.
    """
    for context in contexts:
        refusals: dict[int, str] = {}
        sizes = {"context_tokens": context, "page_tokens": page_tokens}

        def compiled(batch: int, sizes=sizes, refusals=refusals) -> str:
            work = Workload(batch=batch, chunk_tokens=sizes["context_tokens"], slots=batch, **sizes)
            refusals[batch] = Compiler(spec, cluster, precision, work, attention).decode_step().refused
            return refusals[batch]

        def predicted(batch: int, sizes=sizes) -> str:
            return _predicted(spec, cluster, precision, batch, **sizes)

        guess = largest_fitting(predicted, 1)
        found = largest_fitting(compiled, max(1, guess))
        refused = [batch for batch, refusal in refusals.items() if refusal]
        yield Boundary(
            context_tokens=context,
            compiler=found,
            model=guess,
            refusal=refusals[min(refused)] if refused else "",
            asked=len(refusals),
        )


def largest_fitting(answer: Answer, guess: int) -> int:
    """Returns the most that fits, within `RESOLUTION` of itself, or 0.

    Args:
      answer: says why a number does not fit, or nothing; what fits, fits with fewer.
      guess: where to begin; at least 1.
    """
    step = max(1, int(guess * RESOLUTION))
    if answer(guess):
        low, high = max(0, guess - step), guess
        while low and answer(low):
            step *= 2
            low, high = max(0, low - step), low
    else:
        low, high = guess, guess + step
        while not answer(high):
            step *= 2
            low, high = high, high + step
    while high - low > max(1, int(low * RESOLUTION)):
        middle = (low + high) // 2
        low, high = (low, middle) if answer(middle) else (middle, high)
    return low


def _predicted(
    spec: ModelSpec, cluster: ClusterSpec, precision: Precision, batch: int, context_tokens: int, page_tokens: int
) -> str:
    """What the memory model says of a decode step with all of the chip's memory to itself."""
    plan = memory_plan(
        spec,
        cluster,
        precision,
        page_tokens=page_tokens,
        hbm_utilization=1.0,
        max_step_tokens=batch,
        max_seqs=batch,
    )
    pages = batch * pages_for(context_tokens, page_tokens)
    return "" if pages <= plan.num_pages else f"{pages} pages, and {plan.num_pages} fit"
