"""The whole steps that are measured: which model, how it is stored, how many rows, and how much they attend to.

A decode step's `context_tokens` are what each row attends, averaged over the steps of a loop. A model's cases follow
one another, so that its weights are made once.

Next: `step_ready` (a case, ready to run), `step` (the part).
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Literal

from experiments.bench.parts import Case
from nanoserve.roofline.counts import StepCounts, causal_pairs
from nanoserve.specs.chips import Precision
from nanoserve.specs.model_registry import model
from nanoserve.specs.models import ModelSpec

Kind = Literal["decode", "prefill"]
PAGE_TOKENS = 64
EIGHT, SEVENTY, TOY = "llama-3.1-8b", "llama-3.1-70b", "toy"
SHORT = {EIGHT: "8b", SEVENTY: "70b", TOY: "toy"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class StepCase(Case):
    """One step.

    Attributes:
      model: of the registry, or `toy`. weights, kv: how they are stored.
      kind: decode: each of `rows` gains a token. prefill: one prompt of `new_tokens`, from its first token on.
      rows: sequences. context_tokens: KV positions that a decoding row attends. new_tokens: of the step.
    """

    model: str
    weights: str
    kv: str
    kind: Kind
    rows: int
    context_tokens: int
    new_tokens: int

    @property
    def spec(self) -> ModelSpec:
        """The model's dimensions."""
        return toy_model() if self.model == TOY else model(self.model)

    @property
    def precision(self) -> Precision:
        """How it is stored and computed: activations and products in bf16."""
        return Precision(weights=self.weights, kv=self.kv)

    @property
    def counts(self) -> StepCounts:
        """The step as the cost model sees it."""
        if self.kind == "decode":
            attended = self.rows * self.context_tokens
            return StepCounts(
                decode_seqs=self.rows,
                decode_kv_tokens=attended,
                decode_window_tokens=attended,
                sampled=self.rows,
            )
        pairs = causal_pairs(0, self.new_tokens)
        return StepCounts(
            prefill_seqs=1,
            prefill_tokens=self.new_tokens,
            prefill_pairs=pairs,
            prefill_window_pairs=pairs,
            prefill_kv_tokens=self.new_tokens,
            prefill_window_kv_tokens=self.new_tokens,
            sampled=1,
        )


def toy_model() -> ModelSpec:
    """Llama-3.1-8B's family, as small as its kernels' shapes allow."""
    sizes = {"layers": 2, "hidden": 256, "heads": 4, "kv_heads": 2, "head_size": 64, "ffn": 512, "vocab": 512}
    return dataclasses.replace(model(EIGHT), name="toy", **sizes)


def decode(name: str, rows: int, context: int, weights: str = "bf16", kv: str = "bf16") -> StepCase:
    """A decode step of a model."""
    suffix = "" if kv == "bf16" else f"_{kv}"
    return StepCase(
        name=f"{_prefix(name, weights)}_decode_b{rows}_s{context}{suffix}",
        model=name, weights=weights, kv=kv, kind="decode", rows=rows, context_tokens=context, new_tokens=rows,
    )  # fmt: skip


def prefill(name: str, tokens: int, weights: str = "bf16") -> StepCase:
    """A prompt of a model, whole."""
    return StepCase(
        name=f"{_prefix(name, weights)}_prefill_t{tokens}",
        model=name, weights=weights, kv="bf16", kind="prefill", rows=1, context_tokens=tokens, new_tokens=tokens,
    )  # fmt: skip


def _prefix(name: str, weights: str) -> str:
    return SHORT[name] if weights == "bf16" else f"{SHORT[name]}_{weights}"


def catalogue() -> Sequence[StepCase]:
    """Every step for an accelerator: of each model, what the project is judged by comes first."""
    return [*_eight(), *_seventy()]


def _eight() -> Iterator[StepCase]:
    """128 rows of 4,096 positions in bf16 do not fit beside the weights in 80 GB: the most that do, and fp8 KV."""
    for rows, context in ((1, 1024), (32, 4096), (64, 4096), (128, 1024)):
        yield decode(EIGHT, rows, context)
    yield prefill(EIGHT, 2048)
    yield decode(EIGHT, 80, 4096)
    for rows, context in ((1, 4096), (8, 1024), (8, 4096), (32, 1024), (64, 1024), (128, 4096)):
        yield decode(EIGHT, rows, context)
    yield prefill(EIGHT, 8192)
    yield prefill(EIGHT, 512)
    yield decode(EIGHT, 128, 4096, kv="fp8")


def _seventy() -> Iterator[StepCase]:
    """32 rows of 4,096 positions in bf16 do not fit beside the weights either."""
    for rows, context in ((1, 1024), (8, 1024), (32, 1024)):
        yield decode(SEVENTY, rows, context, "int4")
    yield prefill(SEVENTY, 2048, "int4")
    for rows, context in ((1, 4096), (8, 4096), (16, 4096), (32, 4096)):
        yield decode(SEVENTY, rows, context, "int4")
    yield prefill(SEVENTY, 512, "int4")
    yield prefill(SEVENTY, 8192, "int4")
    yield decode(SEVENTY, 32, 4096, "int4", kv="fp8")


def toy_catalogue() -> Sequence[StepCase]:
    """The same kinds of steps of a tiny model."""
    return [
        decode(TOY, 2, 96),
        prefill(TOY, 64),
        decode(TOY, 2, 96, "int4"),
        decode(TOY, 2, 96, kv="fp8"),
    ]
