"""Measures what precisions cost in quality: how far a model's distributions move from its float32 ones.

    python experiments/quality.py
    python experiments/quality.py --cases=int8,int4 --out=/tmp/quality.json --page=/tmp/quality.md

Teacher-forced: every precision sees the same tokens, the continuations that float32 chose after the prompts of
../shared/references, and a text of our own. Writes the figures and docs/quantisation.md, the page made from them.
Exit code 0: both are written. 2: something the user can mend.
"""

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command, quality_page
from nanoserve.experiment import CONFIG_CLASSES, Experiment, resolve
from nanoserve.report.progress import Progress
from nanoserve.specs.chips import Precision
from nanoserve.specs.config import load
from nanoserve.specs.config import resolve as resolve_config
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from nanoserve.specs.models import ModelSpec
    from nanoserve.weights.types import TensorSource

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "experiments" / "bench" / "results" / "quality_smollm2.json"
PAGE = REPOSITORY / "docs" / "quantisation.md"
PROMPTS = REPOSITORY.parent / "shared" / "references" / "smollm2_reference.json"
TEXT = REPOSITORY / "experiments" / "quality_text.txt"
F32 = Precision(weights="f32", kv="f32", activations="f32", compute="f32")


def _rest(dtype: str, **parts: str) -> Precision:
    return Precision(**({"weights": dtype, "kv": dtype, "activations": dtype, "compute": dtype} | parts))


CASES: Mapping[str, Precision] = {
    "bf16": _rest("bf16"),
    "int8": _rest("f32", weights="int8"),
    "fp8": _rest("f32", weights="fp8"),
    "int4": _rest("f32", weights="int4"),
    "int8_bf16": _rest("bf16", weights="int8"),
    "fp8_bf16": _rest("bf16", weights="fp8"),
    "int4_bf16": _rest("bf16", weights="int4"),
    "int8_rows": _rest("f32", weights="int8", compute="int8"),
    "fp8_rows": _rest("f32", weights="fp8", compute="fp8"),
    "kv_int8": _rest("f32", kv="int8"),
    "kv_fp8": _rest("f32", kv="fp8"),
    "int8_kv_int8": _rest("f32", weights="int8", kv="int8"),
    "int4_kv_fp8": _rest("f32", weights="int4", kv="fp8"),
}


@dataclasses.dataclass(frozen=True)
class Passage:
    """Tokens, and the first of them that counts: what stands before is a prompt."""

    kind: str
    ids: tuple[int, ...]
    first: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class Quality:
    """How far a precision's next-token distributions are from float32's, over the tokens of one kind of passage.

    Attributes:
      tokens: compared. top1_agreement: share of them where both think the same token the likeliest.
      kl_mean, kl_p99: nats, of float32's distribution to the precision's.
      nll: mean negative log-likelihood of the tokens themselves, in nats. nll_f32: float32's.
    """

    tokens: int
    top1_agreement: float
    kl_mean: float
    kl_p99: float
    nll: float
    nll_f32: float


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("config", "smollm2_cpu", "name in configs/, or path of a gin file", flag_values=own)
    flags.DEFINE_list("cases", list(CASES), "precisions to measure", flag_values=own)
    flags.DEFINE_string("prompts", str(PROMPTS), "prompts with float32's continuations", flag_values=own)
    flags.DEFINE_string("out", str(RESULTS), "file for the figures", flag_values=own)
    flags.DEFINE_string("page", str(PAGE), "file for the page", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    command.known("--cases", "precision", asked.cases, CASES)
    experiment = load(resolve_config(asked.config, REPOSITORY / "configs"), CONFIG_CLASSES, "Experiment", []).value
    spec = resolve(experiment).model
    source, passages = _weights(experiment, spec), list(_passages(experiment, spec, Path(asked.prompts)))
    figures = {
        "model": spec.name,
        "tokens": {kind: sum(len(p.ids) - p.first for p in passages if p.kind == kind) for kind in ("answers", "text")},
        "cases": measured(spec, source, passages, {name: CASES[name] for name in asked.cases}),
    }
    command.write_json("--out", Path(asked.out), figures)
    command.write_text("--page", Path(asked.page), quality_page.page(figures))
    print(f"written to {asked.out} and {asked.page}")
    return 0


def measured(
    spec: "ModelSpec", source: "TensorSource", passages: Sequence[Passage], cases: Mapping[str, Precision]
) -> dict[str, Any]:
    """The figures of every case, as JSON takes them.

    Args:
      spec, source: the model, and its weights.
      passages: what is compared on. cases: precisions by name.
    """
    exact = _log_probabilities(spec, source, passages, F32)
    found: dict[str, Any] = {}
    with Progress(len(cases), "precisions") as progress:
        for done, (name, precision) in enumerate(cases.items(), start=1):
            ours = _log_probabilities(spec, source, passages, precision)
            kinds = {passage.kind: _compared(passage.kind, passages, exact, ours) for passage in passages}
            found[name] = {"precision": dataclasses.asdict(precision)} | {
                kind: dataclasses.asdict(quality) for kind, quality in kinds.items()
            }
            progress.update(done, precision=name)
    return found


def _weights(experiment: Experiment, spec: "ModelSpec") -> "TensorSource":
    from nanoserve.weights.open import open_weights

    if experiment.weights is None:
        raise ConfigError("quality is measured on a trained model: give the config Experiment.weights")
    return open_weights(experiment.weights, spec)


def _passages(experiment: Experiment, spec: "ModelSpec", prompts: Path) -> Iterator[Passage]:
    """The answers of the reference file, and our text in pieces of the longest answer's length."""
    from nanoserve.weights.tokenizer import open_tokenizer

    if not prompts.exists():
        raise ConfigError(f"--prompts={prompts}: there is no such file")
    answers = json.loads(prompts.read_text())["prompts"]
    for answer in answers:
        yield Passage("answers", (*answer["prompt_ids"], *answer["output_ids"]), len(answer["prompt_ids"]))
    assert experiment.weights is not None
    ids = open_tokenizer(experiment.weights).encode(TEXT.read_text())
    piece = max(len(a["prompt_ids"]) + len(a["output_ids"]) for a in answers)
    for start in range(0, len(ids), piece):
        if len(rest := ids[start : start + piece]) > 1:
            yield Passage("text", tuple(rest), 1)


def _log_probabilities(
    spec: "ModelSpec", source: "TensorSource", passages: Sequence[Passage], precision: Precision
) -> list["np.ndarray"]:
    """Of every passage, what is said of each of its tokens that count: [tokens, V], float32."""
    import jax
    import numpy as np

    from nanoserve.executors.jax_build import load_model
    from nanoserve.model.teacher import teacher_forced

    model = load_model(spec, source, precision)
    longest = max(len(passage.ids) for passage in passages)
    said = []
    for passage in passages:
        padded = np.pad(np.array(passage.ids, np.int32), (0, longest - len(passage.ids)))
        logits_TV = teacher_forced(spec, model.params, padded, model.kv_dtype)
        said.append(np.asarray(jax.nn.log_softmax(logits_TV[passage.first - 1 : len(passage.ids) - 1])))
    return said


def _compared(
    kind: str, passages: Sequence[Passage], exact: Sequence["np.ndarray"], ours: Sequence["np.ndarray"]
) -> Quality:
    import numpy as np

    chosen = [index for index, passage in enumerate(passages) if passage.kind == kind]
    p, q = (np.concatenate([said[index] for index in chosen]).astype(np.float64) for said in (exact, ours))
    targets = np.concatenate([passages[index].ids[passages[index].first :] for index in chosen])
    kl = np.sum(np.exp(p) * (p - q), axis=-1)
    rows = np.arange(len(targets))
    return Quality(
        tokens=len(targets),
        top1_agreement=float(np.mean(p.argmax(-1) == q.argmax(-1))),
        kl_mean=float(kl.mean()),
        kl_p99=float(np.quantile(kl, 0.99)),
        nll=-float(q[rows, targets].mean()),
        nll_f32=-float(p[rows, targets].mean()),
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv))
