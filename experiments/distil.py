"""Distils a draft model from a model, on text that the model itself writes, and measures what it is good for.

    python experiments/distil.py
    python experiments/distil.py --measure_only
    python experiments/distil.py --questions=32 --tokens=24 --epochs=1 --out=/tmp/draft.json --page=/tmp/draft.md

The model answers questions (`distil_prompts`), half of them greedily; a student with a few of its layers learns from
its distributions over those answers (`nanoserve.model.student`); then other prompts are answered with the student
guessing ahead, with the untrained student, with a look-up, and without any guess. Writes the student's checkpoint, the
figures and docs/speculation.md. Exit code 0: all are written. 2: something the user can mend.
"""

import dataclasses
import json
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that a bare checkout runs without installing

from experiments import command, distil_prompts, speculation_page
from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import CONFIG_CLASSES, Experiment, resolve
from nanoserve.report.progress import Progress
from nanoserve.specs.chips import Precision
from nanoserve.specs.config import load
from nanoserve.specs.config import resolve as resolve_config
from nanoserve.specs.errors import ConfigError

if TYPE_CHECKING:
    import numpy as np

    from nanoserve.engine.engine import Engine
    from nanoserve.executors.jax_build import LoadedModel
    from nanoserve.model.student import Texts
    from nanoserve.weights.types import Tokenizer

REPOSITORY = Path(__file__).resolve().parents[1]
RESULTS = REPOSITORY / "experiments" / "bench" / "results" / "draft_smollm2.json"
PAGE = REPOSITORY / "docs" / "speculation.md"
WEIGHTS = REPOSITORY / "runs" / "draft_smollm2"
HELD_OUT = REPOSITORY / "configs" / "prompts" / "short.jsonl"
F32 = Precision(weights="f32", kv="f32", activations="f32", compute="f32")
TEMPERATURES = (0.0, 0.8)
WRITING_SEQS = 32
BATCH = 8
LEARNING_RATE = 1e-3
TRAINING = ("layers", "questions", "written_tokens", "epochs", "head_tokens", "losses")  # figures of it
MEASURED = EngineConfig(max_seqs=4, max_step_tokens=64, max_context_tokens=256, max_horizon_steps=8)


@dataclasses.dataclass(frozen=True)
class Written:
    """A prompt, and what the model answered."""

    prompt: tuple[int, ...]
    answer: tuple[int, ...]


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    return command.run(arguments, __doc__, _flags, _command)


def _flags(own: flags.FlagValues) -> None:
    flags.DEFINE_string("config", "smollm2_cpu", "the teacher: a name in configs/, or a gin file", flag_values=own)
    flags.DEFINE_list("layers", ["0", "29"], "layers of the teacher that the student begins with", flag_values=own)
    flags.DEFINE_integer("questions", 160, "questions that the teacher answers", 1, flag_values=own)
    flags.DEFINE_integer("tokens", 64, "most tokens of an answer", 1, flag_values=own)
    flags.DEFINE_integer("epochs", 10, "times that the student reads every answer", 1, flag_values=own)
    flags.DEFINE_integer("draft_tokens", 4, "tokens guessed at a time, when measured", 1, flag_values=own)
    flags.DEFINE_integer("measured_tokens", 32, "most tokens of an answer, when measured", 1, flag_values=own)
    flags.DEFINE_bool("measure_only", False, "measure the student that --out tells of, and train none", flag_values=own)
    flags.DEFINE_string("weights", str(WEIGHTS), "folder for the student's checkpoint", flag_values=own)
    flags.DEFINE_string("out", str(RESULTS), "file for the figures", flag_values=own)
    flags.DEFINE_string("page", str(PAGE), "file for the page", flag_values=own)


def _command(asked: flags.FlagValues) -> int:
    experiment = load(resolve_config(asked.config, REPOSITORY / "configs"), CONFIG_CLASSES, "Experiment", []).value
    teacher, tokenizer = _teacher(experiment)
    trained = _known(Path(asked.out)) if asked.measure_only else _trained(asked, teacher, tokenizer)
    held_out = [json.loads(line) for line in HELD_OUT.read_text().splitlines()]
    prompts = [(tokenizer.encode(one["prompt"]), min(one["output_tokens"], asked.measured_tokens)) for one in held_out]
    config = dataclasses.replace(MEASURED, draft_tokens=asked.draft_tokens)
    figures = {
        "model": teacher.spec.name,
        **trained,
        "draft_tokens": asked.draft_tokens,
        "sequences": config.max_seqs,
        "prompts": len(prompts),
        "cases": measured(teacher, Path(asked.weights), prompts, config, tokenizer.eos_ids),
    }
    command.write_json("--out", Path(asked.out), figures)
    command.write_text("--page", Path(asked.page), speculation_page.page(figures))
    print(f"written to {asked.weights}, {asked.out} and {asked.page}")
    return 0


def _trained(asked: flags.FlagValues, teacher: "LoadedModel", tokenizer: "Tokenizer") -> dict[str, Any]:
    """Has texts written, distils a student, and returns the figures of both."""
    layers = _layers(asked.layers, teacher.spec.layers)
    questions = [tokenizer.encode(text) for text in distil_prompts.prompts(asked.questions)]
    written = answers(teacher, questions, asked.tokens, tokenizer.eos_ids)
    return {
        "layers": layers,
        "questions": len(written),
        "written_tokens": sum(len(one.answer) for one in written),
        "epochs": asked.epochs,
        **distilled(teacher, written, layers, asked.epochs, Path(asked.weights)),
    }


def _known(figures: Path) -> dict[str, Any]:
    """What an earlier run said of the training of the student that is there."""
    if not figures.exists():
        raise ConfigError(f"--out={figures}: there is no such file, so nothing was distilled; leave --measure_only out")
    found = json.loads(figures.read_text())
    return {name: found[name] for name in TRAINING}


def answers(
    teacher: "LoadedModel", questions: Sequence[Sequence[int]], tokens: int, stop_ids: Sequence[int]
) -> list[Written]:
    """What the teacher answers, every other question greedily, the others at the higher temperature."""
    config = EngineConfig(max_seqs=WRITING_SEQS, max_step_tokens=256, max_horizon_steps=8, free_page_watermark=0.0)
    jobs = [(question, tokens) for question in questions]
    temperatures = [TEMPERATURES[place % len(TEMPERATURES)] for place in range(len(jobs))]
    engine, book = _engine(teacher, jobs, config, temperatures, stop_ids)
    with Progress(len(jobs), "answers") as progress:
        engine.run(observe=lambda done, now: progress.update(done))
    return [Written(tuple(questions[index]), tuple(ids)) for index, ids, _ in book.records()]


def distilled(
    teacher: "LoadedModel", written: Sequence[Written], layers: Sequence[int], epochs: int, folder: Path
) -> dict[str, Any]:
    """Trains a student and writes it, untrained and trained, into `folder`; returns the losses of each epoch."""
    import jax
    import numpy as np

    from nanoserve.model.student import Training, hidden_states, student_of

    spec, student = student_of(teacher.spec, teacher.params, layers)
    _save(folder / "untrained", spec, student)
    texts, used = _texts(written)
    batches = list(_batches(texts))
    say = jax.jit(lambda params, tokens: hidden_states(teacher.spec, params, tokens))
    taught = [np.asarray(say(teacher.params, batch.tokens_NS)) for batch in _shown(batches, "texts read")]
    head_VD = (teacher.params.embed if teacher.params.lm_head is None else teacher.params.lm_head.T)[used]
    training = Training.of(spec, epochs * len(batches), LEARNING_RATE)
    state, step = training.start(student), jax.jit(training.step)
    losses, order = [], np.random.default_rng(0)
    with Progress(epochs, "epochs") as progress:
        for epoch in range(epochs):
            of_epoch = []
            for place in order.permutation(len(batches)):
                student, state, value = step(student, state, batches[place], taught[place], head_VD)
                of_epoch.append(float(value))
            losses.append(float(np.mean(of_epoch)))
            progress.update(epoch + 1, loss=f"{losses[-1]:.3f}")
    _save(folder, spec, student)
    return {"head_tokens": len(used), "losses": losses}


def measured(
    target: "LoadedModel",
    folder: Path,
    prompts: Sequence[tuple[Sequence[int], int]],
    config: EngineConfig,
    stop_ids: Sequence[int],
) -> list[dict[str, Any]]:
    """Figures of every way of guessing at every temperature, as JSON takes them."""
    drafts: Mapping[str, LoadedModel | None] = {
        "none": None,
        "ngram": None,
        "untrained": _student(folder / "untrained"),
        "distilled": _student(folder),
    }
    found, alone = [], {}
    with Progress(len(TEMPERATURES) * len(drafts), "measurements") as progress:
        for temperature in TEMPERATURES:
            for name, draft in drafts.items():
                how = dataclasses.replace(config, draft=name if draft is None else "model")
                tokens, guessing = _guessing(target, prompts, how, temperature, stop_ids, draft)
                alone.setdefault(temperature, tokens)
                same = sum(ids == alone[temperature][index] for index, ids in tokens.items())
                found.append({"temperature": temperature, "draft": name} | guessing | {"same_tokens": same})
                progress.update(len(found), draft=name)
    return found


def _guessing(
    target: "LoadedModel",
    prompts: Sequence[tuple[Sequence[int], int]],
    config: EngineConfig,
    temperature: float,
    stop_ids: Sequence[int],
    draft: "LoadedModel | None",
) -> tuple[dict[int, list[int]], dict[str, Any]]:
    engine, book = _engine(target, prompts, config, [temperature] * len(prompts), stop_ids, draft)
    for _ in engine.executor.warm_up():  # type: ignore[attr-defined]
        pass
    began_s = time.process_time()
    engine.run()
    cpu_s = time.process_time() - began_s
    steps = engine.log.step_columns(num_pages=1)
    rows, accepted = int((steps["steps"] * steps["decode_seqs"]).sum()), int(steps["accepted_tokens"].sum())
    figures = {
        "drafted_tokens": int(steps["drafted_tokens"].sum()),
        "accepted_tokens": accepted,
        "tokens_per_row": (rows + accepted) / rows,
        "cpu_s": cpu_s,
    }
    return {index: list(ids) for index, ids, _ in book.records()}, figures


def _engine(
    model: "LoadedModel",
    jobs: Sequence[tuple[Sequence[int], int]],
    config: EngineConfig,
    temperatures: Sequence[float],
    stop_ids: Sequence[int],
    draft: "LoadedModel | None" = None,
) -> "tuple[Engine, Any]":
    """A real engine in which all jobs, (prompt, most tokens to generate), are there from the start; and its tokens."""
    import numpy as np

    from nanoserve.building import build_engine
    from nanoserve.engine.clock import WallClock
    from nanoserve.engine.sequence import pages_for
    from nanoserve.engine.types import to_ticks
    from nanoserve.executors.arrays import Ladders, RequestSampling
    from nanoserve.executors.jax_build import build_jax_executor
    from nanoserve.executors.speculation import speculate
    from nanoserve.executors.tokens import TokenBook
    from nanoserve.trace.load import OpenLoop

    trace = _trace(jobs)
    longest = int((trace.prompt_tokens + trace.output_tokens).max())
    table_pages = pages_for(longest, config.page_tokens)
    ladders = Ladders(
        decode_rows=(config.max_seqs,),
        prefill_tokens=(config.max_step_tokens,),
        prefill_rows=config.max_seqs,
        table_pages=table_pages,
        loop_steps=config.max_horizon_steps,
    )
    sampling = RequestSampling.uniform(len(jobs))
    sampling = dataclasses.replace(sampling, temperature=np.array(temperatures, np.float32))
    book, pages = TokenBook(lambda index: jobs[index][0], stop_ids), config.max_seqs * table_pages
    executor = build_jax_executor(model, config, pages, ladders, book, sampling, seed=0)
    if config.draft != "none":
        speculate(executor, model, config, draft)
    load = OpenLoop(trace, to_ticks)
    return build_engine(config, model.spec, trace, pages, executor, WallClock(), load), book


def _trace(jobs: Sequence[tuple[Sequence[int], int]]):
    import numpy as np

    from nanoserve.trace.types import Trace

    return Trace(
        name="prompts",
        source="experiments/distil.py",
        arrival_s=np.zeros(len(jobs)),
        prompt_tokens=np.array([len(prompt) for prompt, _ in jobs], np.int64),
        output_tokens=np.array([tokens for _, tokens in jobs], np.int64),
    ).validated()


def _teacher(experiment: Experiment):
    from nanoserve.executors.jax_build import load_model
    from nanoserve.weights.open import open_weights
    from nanoserve.weights.tokenizer import open_tokenizer

    if experiment.weights is None:
        raise ConfigError("a draft is distilled from a trained model: give the config Experiment.weights")
    spec = resolve(experiment).model
    return load_model(spec, open_weights(experiment.weights, spec), F32), open_tokenizer(experiment.weights)


def _layers(asked: Sequence[str], count: int) -> list[int]:
    wrong = [name for name in asked if not name.isdigit() or int(name) >= count]
    if wrong or not asked:
        raise ConfigError(f"--layers: {', '.join(wrong) or 'none'}: the teacher has layers 0 to {count - 1}")
    return [int(name) for name in asked]


def _student(folder: Path) -> "LoadedModel":
    from nanoserve.executors.jax_build import load_model
    from nanoserve.specs.huggingface import read_config
    from nanoserve.weights.open import open_weights

    spec = read_config(folder)
    return load_model(spec, open_weights(folder, spec), F32)


def _save(folder: Path, spec, student) -> None:
    from nanoserve.model.export import to_tensors
    from nanoserve.weights.write import write_checkpoint

    write_checkpoint(folder, spec, to_tensors(spec, student))


def _texts(written: Sequence[Written]) -> "tuple[Texts, np.ndarray]":
    """Every prompt with its answer, padded, whole batches; and the tokens that occur in them."""
    import numpy as np

    from nanoserve.model.student import Texts

    ids = [(*one.prompt, *one.answer) for one in written]
    longest, rows = max(map(len, ids)), -(-len(ids) // BATCH) * BATCH
    tokens, learned = np.zeros((rows, longest), np.int32), np.zeros((rows, longest), bool)
    for row, (one, text) in enumerate(zip(written, ids, strict=True)):
        tokens[row, : len(text)] = text
        learned[row, len(one.prompt) - 1 : len(text) - 1] = True
    return Texts(tokens, learned), np.unique(tokens)  # type: ignore[arg-type]


def _batches(texts: "Texts") -> "Iterator[Texts]":
    import jax

    for start in range(0, len(texts.tokens_NS), BATCH):
        yield jax.tree.map(lambda array, start=start: array[start : start + BATCH], texts)


def _shown(items: Sequence, what: str) -> Iterator:
    """The items, with progress."""
    with Progress(len(items), what) as progress:
        for done, item in enumerate(items, start=1):
            yield item
            progress.update(done)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
