"""A whole step, ready to run: the engine's own executor, over weights and KV that are drawn on the device.

Everything after the scheduler is the engine's: how rows become arrays, which program runs, how tokens come back and are
booked. Only the plans are made here. KV is random, pages lie in random order, and nothing of a step's shape is padded.

Next: `nanoserve.executors.jax_executor`, `step` (who takes the time).
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench.parts import Context
from experiments.bench.parts.step_cases import PAGE_TOKENS, StepCase
from nanoserve.engine.config import EngineConfig
from nanoserve.engine.sequence import pages_for
from nanoserve.engine.types import Kind, Plan, Row, StepResult
from nanoserve.executors.arrays import Ladders, RequestSampling
from nanoserve.executors.jax_build import LoadedModel, attention_here, build_jax_executor, load_model
from nanoserve.executors.jax_executor import JaxExecutor
from nanoserve.executors.tokens import TokenBook
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.memory import memory_plan
from nanoserve.specs.chips import ChipSpec, ClusterSpec, Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.models import ModelSpec
from nanoserve.weights.random import DrawnOnDevices

LOOP_STEPS = 33  # of the longer loop; odd, so that its steps lie evenly around the context
SEED = 0
# Where arguments fill more than 0.8 of a GPU, XLA takes what is left for none, and computes again what it could keep.
FAST_SHARE = 0.79
_QUANTISED_SPREAD = 32.0  # of the numbers in 8-bit pages; far from the ends of both types


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prepared:
    """A step that can be run.

    Attributes:
      case: what it is. model: loaded. executor: which runs it.
      pages: of each row. book: where its tokens go.
      made: plans, by their steps.
    """

    case: StepCase
    model: LoadedModel
    executor: JaxExecutor
    pages: Sequence[Sequence[int]]
    book: TokenBook
    made: dict[int, Plan] = dataclasses.field(default_factory=dict)

    @property
    def spec(self) -> ModelSpec:
        """The model."""
        return self.case.spec

    @property
    def precision(self) -> Precision:
        """How it is stored."""
        return self.case.precision

    @property
    def counts(self) -> StepCounts:
        """Of one step."""
        return self.case.counts

    @property
    def attention(self) -> str:
        """Which implementation attends, and why."""
        return self.executor.attention

    def once(self) -> None:
        """One step, as the engine runs it, until its tokens are on the host."""
        self.result(1)

    def result(self, steps: int) -> StepResult:
        """`steps` steps of decoding, or one of prefill, until their tokens are on the host."""
        return self.executor.submit(self.plan(steps)).result()

    def results(self, plans: int) -> None:
        """So many plans of one step, all given to the device before the first is waited for."""
        pending = [self.executor.submit(self.plan(1)) for _ in range(plans)]
        for each in pending:
            each.result()

    def plan(self, steps: int) -> Plan:
        """What the scheduler would ask for: `steps` decode steps around the context, or one of prefill.

        Made when it is first asked for: a scheduler's work is no part of what is measured.
        """
        if steps not in self.made:
            rows = tuple(self._row(index, steps) for index in range(self.case.rows))
            kind = Kind.DECODE if self.case.kind == "decode" else Kind.PREFILL
            counts = _times(self.counts, steps)
            self.made[steps] = Plan(step=0, kind=kind, horizon=steps, counts=counts, rows=lambda: rows)
        return self.made[steps]

    def _row(self, index: int, steps: int) -> Row:
        decodes = self.case.kind == "decode"
        start = self.case.context_tokens - 1 - steps // 2 if decodes else 0
        new_tokens = 1 if decodes else self.case.new_tokens
        return Row(index, index, start, new_tokens, samples=True, pages=self.pages[index], generated=0)

    def check(self) -> None:
        """Says whether what was computed so far are numbers.

        Raises:
          FloatingPointError: a token's log-probability is not finite.
        """
        wrong = sum(not math.isfinite(value) for values in self.book.logprobs.values() for value in values)
        if wrong:
            raise FloatingPointError(f"{wrong} tokens have log-probabilities that are no numbers")


def prepare(case: StepCase, context: Context) -> Prepared:
    """Makes a step ready: its model is drawn if the last case was of another, or stored otherwise.

    Raises:
      ConfigError: the step does not fit the device, or cannot be executed on it.
    """
    row_pages = pages_for(case.context_tokens + LOOP_STEPS // 2, PAGE_TOKENS)
    check_fits(case, context.chip, memory_bytes(context), case.rows * row_pages)
    ladders = Ladders(
        decode_rows=(case.rows,),
        prefill_tokens=(case.new_tokens,),
        prefill_rows=1,
        table_pages=row_pages,
        loop_steps=LOOP_STEPS,
    )
    config = EngineConfig(max_seqs=case.rows, page_tokens=PAGE_TOKENS)
    attention = attention_here("auto", case.spec, case.precision, config, ladders)
    key = (case.model, case.precision, attention.name)
    load = functools.partial(load_model, case.spec, DrawnOnDevices(case.spec, SEED), case.precision)
    model: LoadedModel = context.shared.get(key, lambda: load(attention=attention))
    book = TokenBook(functools.partial(_prompt, case))
    for index in range(case.rows):
        book.newest(index)  # opens it: its tokens can be booked
    num_pages, sampling = case.rows * row_pages, RequestSampling.uniform(case.rows)
    executor = build_jax_executor(model, config, num_pages, ladders, book, sampling, SEED)
    executor.state = dataclasses.replace(executor.state, pool=_filled(executor.state.pool))
    shuffled = np.random.default_rng(SEED).permutation(num_pages).reshape(case.rows, row_pages)
    return Prepared(case=case, model=model, executor=executor, pages=shuffled.tolist(), book=book)


def memory_bytes(context: Context) -> int:
    """What a step may fill of the device's memory: what XLA may take of it, and no more than programs stay fast in."""
    stats = context.device.memory_stats() or {}
    return min(stats.get("bytes_limit", context.chip.hbm_bytes), round(FAST_SHARE * context.chip.hbm_bytes))


def check_fits(case: StepCase, chip: ChipSpec, limit_bytes: int, pages: int) -> None:
    """Says whether a step's KV fits beside its weights.

    Args:
      case, chip: which step, and on what. limit_bytes: of memory that may be used. pages: of KV that the step needs.

    Raises:
      ConfigError: it does not, with both figures.
    """
    cluster = ClusterSpec(chip=chip, mesh={"tensor": 1})
    fits = memory_plan(
        case.spec,
        cluster,
        case.precision,
        page_tokens=PAGE_TOKENS,
        hbm_utilization=limit_bytes / chip.hbm_bytes,
        max_step_tokens=max(case.new_tokens, 1),
        max_seqs=case.rows,
    )
    if pages > fits.num_pages:
        sizes = (pages * fits.page_bytes, max(0, fits.kv_bytes), limit_bytes, fits.weight_bytes)
        needed, room, limit, weights = (size / 2**30 for size in sizes)
        raise ConfigError(
            f"does not fit: {case.rows} x {case.context_tokens:,} positions of {case.kv} KV are {needed:.1f} GiB, and "
            f"{room:.1f} GiB are left of {limit:.1f} beside {weights:.1f} GiB of weights"
        )


def _prompt(case: StepCase, index: int) -> list[int]:
    """Token ids of a request."""
    tokens = case.new_tokens if case.kind == "prefill" else 1
    return np.random.default_rng((SEED, index)).integers(0, case.spec.vocab, tokens).tolist()


def _times(counts: StepCounts, steps: int) -> StepCounts:
    """So many equal steps; their rows are the same in each."""
    totals = {field.name: steps * getattr(counts, field.name) for field in dataclasses.fields(counts)}
    return StepCounts(**(totals | {"decode_seqs": counts.decode_seqs}))


def _filled(pool: Any) -> Any:
    """The pool with random numbers in it, a layer at a time and in place: no second pool would fit."""
    for layer in range(pool.pages.shape[0]):
        pool = _fill_layer(pool, layer)
    return pool


@functools.partial(jax.jit, donate_argnums=0)
def _fill_layer(pool: Any, layer: Any) -> Any:
    key = jax.random.fold_in(jax.random.key(SEED), layer)
    return jax.tree.map(lambda array: array.at[layer].set(_numbers(key, array)), pool)


def _numbers(key: Any, array: jax.Array) -> jax.Array:
    """One layer's numbers: keys and values of about 1, or quotients and the factors that make them so."""
    shape = array.shape[1:]
    if array.dtype == jnp.float32:
        return jax.random.uniform(key, shape, jnp.float32, 0.5 / _QUANTISED_SPREAD, 1.5 / _QUANTISED_SPREAD)
    numbers = jax.random.normal(key, shape, jnp.bfloat16)
    return numbers if array.dtype == jnp.bfloat16 else (numbers * _QUANTISED_SPREAD).astype(array.dtype)
