"""A real model's answers on the device: SmolLM2-135M against recorded ones, in float32 and in bfloat16.

In float32, with products of full precision, the engine must choose every greedy token of the reference, on which two
independent implementations agree. In bfloat16 a token may differ where the reference's two best were close; what is
compared is the likelihood of given tokens: by chunks of prompts and by decode steps, each with XLA's attention and with
the device's kernels, against float32's on the same device. There are no kernels of float32: that run attends by XLA.

Next: `smollm2_pack` (where the model comes from), `nanoserve.model.teacher` (likelihoods of given tokens).
"""

import contextlib
import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from experiments.bench.parts import Case, Context
from experiments.bench.results_file import FAILED, MEASURED, Record
from nanoserve.specs.chips import Precision
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model

if TYPE_CHECKING:
    import numpy as np

    from kernels.pallas.choosing import Choice
    from nanoserve.executors.jax_build import LoadedModel

NAME = "tokens"
SPEC = model("smollm2-135m")
STOP_ID = 2
SLOTS, PAGE_TOKENS, LOOP_STEPS = 8, 64, 8
Kind = Literal["greedy", "prefill", "decode"]
Dtype = Literal["f32", "bf16"]
Attention = Literal["xla", "kernel"]
KINDS: tuple[Kind, ...] = ("greedy", "prefill", "decode")
KERNEL: Attention = "kernel"  # the device's own
ATTENTIONS: tuple[Attention, ...] = (KERNEL, "xla")
PRECISIONS: Mapping[str, Precision] = {
    dtype: Precision(weights=dtype, kv=dtype, activations=dtype, compute=dtype) for dtype in ("f32", "bf16")
}
# Nats, of the reference's mean over a prompt, which has five digits; float32 sums in another order move the sixth.
REFERENCE_TOLERANCE = 1e-4
NLL_TOLERANCE = 0.01  # relative: what the project allows bfloat16
FLIP_MARGIN = 0.3  # logits; the reference's own word on which tokens bfloat16 may choose otherwise
TOY_TOKENS = 8


@dataclasses.dataclass(frozen=True, kw_only=True)
class TokensCase(Case):
    """One way to ask the model.

    Attributes:
      kind: `greedy`: what the engine answers; `prefill` and `decode`: the likelihood of the reference's tokens.
      precision: of weights, KV and activations. attention: `xla`, or the device's `kernel`.
    """

    kind: Kind
    precision: Dtype
    attention: Attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt of the reference, and what it was answered.

    Attributes:
      name: in the reference. ids: of the prompt. answer: greedy tokens. margins: of logits, best to next, of each.
      nll: mean over the prompt's tokens after the first, in nats.
    """

    name: str
    ids: tuple[int, ...]
    answer: tuple[int, ...]
    margins: tuple[float, ...]
    nll: float


class Subject:
    """The model and its prompts; what is slow to make is made once."""

    def __init__(self, context: Context):
        """Opens the model's file; raises ConfigError where there is none."""
        from experiments.bench.smollm2_pack import opened
        from nanoserve.weights.open import open_weights

        found = opened(context.scratch)
        self.source = open_weights(found.weights, SPEC)
        self.prompts = prompts_of(found.reference, context.toy)

    def load(self, precision: str, attention: "Choice") -> "LoadedModel":
        """The model in a precision, attending by what was chosen."""
        from nanoserve.executors.jax_build import load_model

        return load_model(SPEC, self.source, PRECISIONS[precision], attention=attention)

    @functools.cached_property
    def exact(self) -> "np.ndarray":
        """Log-probabilities in float32, by chunks, with products of full precision; NaN where nothing is said."""
        return _logprobs(self, "prefill", "f32", "xla")


def cases(toy: bool) -> Sequence[TokensCase]:
    """Greedy tokens first; kernels beside XLA."""
    float32 = [_case(kind, "f32", "xla") for kind in KINDS]
    return [*float32, *(_case(kind, "bf16", attention) for kind in KINDS for attention in ATTENTIONS)]


def _case(kind: Kind, precision: Dtype, attention: Attention) -> TokensCase:
    name = f"{kind}_{precision}_{attention}"
    return TokensCase(name=name, kind=kind, precision=precision, attention=attention)


def prompts_of(reference: Mapping[str, Any], toy: bool) -> list[Prompt]:
    """The reference's prompts; of a toy with the first tokens of their answers."""
    most = TOY_TOKENS if toy else None
    return [
        Prompt(
            name=prompt["name"],
            ids=tuple(prompt["prompt_ids"]),
            answer=tuple(prompt["output_ids"][:most]),
            margins=tuple(prompt["margins"][:most]),
            nll=prompt["prompt_nll_mean"],
        )
        for prompt in reference["prompts"]
    ]


def measure(case: TokensCase, context: Context) -> Record:
    """How the model answers, beside the reference; `failed` where it does not as it must.

    Raises:
      ConfigError: the model is not there, or the device has no kernels.
    """
    choice, exact = attention_on(context.device, case), case.precision == "f32"
    subject = context.shared.get(NAME, lambda: Subject(context))
    if case.kind == "greedy":
        with products(case.precision):
            found = compared(subject.prompts, _answers(subject, case, choice), exact=exact)
    else:
        said = _logprobs(subject, case.kind, case.precision, choice.name)
        found = likelihoods(subject.prompts, said, None if exact else subject.exact)
    return {"implementation": choice.name, "why": choice.why, "prompts": len(subject.prompts)} | found


def products(precision: str) -> contextlib.AbstractContextManager[Any]:
    """In which products of float32 have full precision; others are what they are in a run."""
    import jax

    return jax.default_matmul_precision("highest") if precision == "f32" else contextlib.nullcontext()


def columns(record: Record) -> Mapping[str, str]:
    """The cells of a line."""
    greedy = record["kind"] == "greedy"
    return {
        "attention": record["implementation"],
        "tokens": str(record["tokens"]),
        "as the reference": str(record["equal_tokens"]) if greedy else "",
        "nats a token": "" if greedy else f"{record['nll']:.4f}",
        "against float32": "" if greedy or record["nll_f32"] is None else f"{record['relative']:+.2%}",
    }


def attention_on(device: Any, case: TokensCase) -> "Choice":
    """The implementation that a case asks for.

    Raises:
      ConfigError: the device has no kernels, or none that serve this model.
    """
    from kernels.pallas import compat
    from kernels.pallas.choosing import NATIVE
    from nanoserve.executors.precisions import JAX_DTYPES
    from nanoserve.model.attention import choose_attention

    target, dtype = compat.kernel_target(device), JAX_DTYPES[case.precision]
    if case.attention == KERNEL and target not in NATIVE:
        raise ConfigError(f"{device.device_kind} has no attention kernels of ours")
    asked = NATIVE[target] if case.attention == KERNEL else case.attention
    shapes = {"rows": SLOTS, "page_tokens": PAGE_TOKENS, "table_pages": 1, "ways": 1}
    return choose_attention(asked, SPEC, target, dtype=dtype, kv_dtype=dtype, **shapes)


def compared(prompts: Sequence[Prompt], answers: Sequence[Sequence[int]], *, exact: bool) -> Record:
    """How far answers are the reference's.

    Args:
      prompts: with the reference's answers. answers: tokens, at least as many.
      exact: every token must be; else those may differ whose margin is small, and what follows them.
    """
    flips = []
    equal = 0
    for prompt, answer in zip(prompts, answers, strict=True):
        same = [ours == theirs for ours, theirs in zip(answer, prompt.answer, strict=False)]
        at = same.index(False) if False in same else len(same)
        equal += at
        if at < len(prompt.answer):
            flips.append({"prompt": prompt.name, "token": at, "margin": prompt.margins[at]})
    found = {"tokens": sum(len(p.answer) for p in prompts), "equal_tokens": equal, "first_differences": flips}
    wrong = [flip for flip in flips if exact or flip["margin"] > FLIP_MARGIN]
    reasons = "; ".join(f"{f['prompt']}: token {f['token']} differs, at a margin of {f['margin']:.3g}" for f in wrong)
    return found | _judged(reasons)


def likelihoods(prompts: Sequence[Prompt], said: "np.ndarray", exact: "np.ndarray | None") -> Record:
    """What likelihoods come to, in nats a token.

    Args:
      prompts: whose tokens are likely. said: log-probabilities [prompts, T-1], NaN beyond a prompt's answer.
      exact: those of float32; None where `said` is float32 itself, which is held against the reference's prompts.
    """
    import numpy as np

    answers = np.concatenate([said[i, len(p.ids) - 1 : len(p.ids) + len(p.answer) - 1] for i, p in enumerate(prompts)])
    of_prompts = [-float(said[i, : len(p.ids) - 1].mean()) for i, p in enumerate(prompts)]
    nll, nll_f32 = (-float(np.nanmean(values)) if values is not None else None for values in (said, exact))
    assert nll is not None  # `said` is there
    found = {"tokens": int(np.isfinite(said).sum()), "nll": nll, "nll_answers": -float(answers.mean())}
    if nll_f32 is None:
        off = max(abs(ours - prompt.nll) for ours, prompt in zip(of_prompts, prompts, strict=True))
        wrong = f"a prompt's mean is {off:.2g} nats off the reference" if off > REFERENCE_TOLERANCE else ""
        return found | {"nll_f32": None, "reference_error": off} | _judged(wrong)
    relative = nll / nll_f32 - 1
    wrong = f"{relative:+.2%} of float32's, more than {NLL_TOLERANCE:.0%}" if abs(relative) > NLL_TOLERANCE else ""
    return found | {"nll_f32": nll_f32, "relative": relative} | _judged(wrong)


def _judged(wrong: str) -> Record:
    return {"status": FAILED, "reason": wrong} if wrong else {"status": MEASURED}


def _answers(subject: Subject, case: TokensCase, choice: "Choice") -> list[list[int]]:
    """What the engine answers to all prompts at once."""
    import numpy as np

    from nanoserve.building import build_engine
    from nanoserve.engine.clock import WallClock
    from nanoserve.engine.config import EngineConfig
    from nanoserve.engine.types import to_ticks
    from nanoserve.executors.arrays import RequestSampling
    from nanoserve.executors.jax_build import build_jax_executor, ladders_for
    from nanoserve.executors.tokens import TokenBook
    from nanoserve.trace.load import OpenLoop
    from nanoserve.trace.types import Trace

    prompts = subject.prompts
    trace = Trace(
        name=NAME,
        source="the prompts of the reference",
        arrival_s=np.zeros(len(prompts)),
        prompt_tokens=np.array([len(prompt.ids) for prompt in prompts]),
        output_tokens=np.array([len(prompt.answer) + 1 for prompt in prompts]),  # the stop token ends those that stop
    )
    config = EngineConfig(max_seqs=SLOTS, page_tokens=PAGE_TOKENS, max_horizon_steps=LOOP_STEPS)
    ladders = ladders_for(trace, config)
    pages = ladders.table_pages * SLOTS
    book, sampling = TokenBook([p.ids for p in prompts].__getitem__, {STOP_ID}), RequestSampling.uniform(len(prompts))
    loaded = subject.load(case.precision, choice)
    executor = build_jax_executor(loaded, config, pages, ladders, book, sampling, seed=0)
    build_engine(config, SPEC, trace, pages, executor, WallClock(), OpenLoop(trace, to_ticks)).run()
    return [book.outputs[index] for index in range(len(prompts))]


def _logprobs(subject: Subject, kind: str, precision: str, implementation: str) -> "np.ndarray":
    """Log-probabilities of every prompt's and answer's tokens after the first, [prompts, T-1]; NaN beyond its end."""
    import jax.numpy as jnp
    import numpy as np

    from nanoserve.executors.jax_build import PLAIN
    from nanoserve.model.teacher import teacher_forced_decoding

    loaded = subject.load(precision, PLAIN)
    rows = [(*prompt.ids, *prompt.answer) for prompt in subject.prompts]
    longest = max(map(len, rows))
    ids_BT = np.array([np.pad(row, (0, longest - len(row))) for row in rows], np.int32)
    by = teacher_forced_decoding if kind == "decode" else _by_chunks
    with products(precision):
        said = np.array(by(SPEC, loaded.params, jnp.asarray(ids_BT), loaded.kv_dtype, implementation), np.float64)
    for row, ids in enumerate(rows):
        said[row, len(ids) - 1 :] = np.nan
    return said


def _by_chunks(spec, params, ids_BT, kv_dtype, implementation):
    """As `teacher_forced_decoding`, each row as one chunk."""
    import jax
    import jax.numpy as jnp

    from nanoserve.model.teacher import teacher_forced

    def row(ids_T):
        logits_TV = teacher_forced(spec, params, ids_T, kv_dtype, implementation)
        return jnp.take_along_axis(jax.nn.log_softmax(logits_TV[:-1]), ids_T[1:, None], axis=1)[:, 0]

    return jnp.stack([row(ids_T) for ids_T in ids_BT])
