"""Speculation as an experiment asks for it: names that must fit, runs through `prepare`, and the page of figures."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments import distil, speculation_page
from experiments.distil_prompts import FORMS, SUBJECTS, prompts
from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import CONFIG_CLASSES, Experiment, resolve
from nanoserve.replay import prepare
from nanoserve.specs.config import load
from nanoserve.specs.errors import ConfigError

SPECULATING = EngineConfig(draft="model", draft_acceptance=0.5, max_step_tokens=2048)
SMALL = [  # few programs: this is about how the parts are put together
    "TraceSource.requests=3",
    "TraceSource.max_prompt_tokens=24",
    "TraceSource.max_output_tokens=12",
    "Engine.max_seqs=1",
    "Engine.max_step_tokens=24",
    "Engine.max_horizon_steps=1",
]
CONFIGS = Path(__file__).parents[2] / "configs"


def test_a_draft_model_is_named_if_and_only_if_it_is_used():
    with pytest.raises(ConfigError, match=r"needs Experiment\.draft_model"):
        resolve(Experiment(engine=SPECULATING))
    with pytest.raises(ConfigError, match=r"'llama-3\.2-1b' guesses nothing with Engine\.draft = 'none'"):
        resolve(Experiment(draft_model="llama-3.2-1b"))
    assert resolve(Experiment(draft_model="llama-3.2-1b", engine=SPECULATING)).draft.name == "llama-3.2-1b"


def test_a_draft_model_has_the_targets_vocabulary():
    with pytest.raises(ConfigError, match=r"'smollm2-135m' has a vocabulary of 49152 tokens and"):
        resolve(Experiment(draft_model="smollm2-135m", engine=SPECULATING))


def test_a_simulated_run_must_be_told_how_often_a_guess_is_right():
    config = dataclasses.replace(SPECULATING, draft="ngram", draft_acceptance=None)
    with pytest.raises(ConfigError, match=r"Engine\.draft_acceptance is not set"):
        prepare(Experiment(engine=config, executor="roofline"))


def test_a_draft_model_takes_room_for_its_weights_and_its_part_of_every_page():
    plain, drafting = (
        prepare(Experiment(executor="roofline", engine=engine, draft_model=draft)).engine.scheduler.pool.num_pages
        for engine, draft in ((EngineConfig(), None), (SPECULATING, "llama-3.2-1b"))
    )
    assert 0.5 * plain < drafting < 0.85 * plain


def _ran(*settings: str) -> tuple[dict[int, list[int]], int, int]:
    settings = (*SMALL, "Sampling.temperature=0.9", "Experiment.executor='jax'", *settings)
    replay = prepare(load(CONFIGS / "tiny_cpu.gin", CONFIG_CLASSES, "Experiment", list(settings)).value)
    replay.run()
    steps = replay.records().steps
    tokens = {entry["request"]: list(entry["output_ids"]) for entry in replay.outputs()}
    return tokens, steps["drafted_tokens"].sum(), steps["accepted_tokens"].sum()


def test_a_real_run_with_a_draft_model_gives_the_same_answers():
    """The draft model is the target with the same random weights, so all of its guesses are right."""
    plain, drafted, _ = _ran()
    assert drafted == 0
    tokens, drafted, accepted = _ran("Engine.draft='model'", "Experiment.draft_model='tiny-llama'")
    assert tokens == plain and len(tokens) == 3
    assert 0 < accepted == drafted


def test_questions_are_all_different_and_not_among_the_held_out_prompts():
    asked = list(prompts(len(SUBJECTS) * len(FORMS)))
    held_out = {json.loads(line)["prompt"] for line in distil.HELD_OUT.read_text().splitlines()}
    assert len(set(asked)) == len(asked) == len(SUBJECTS) * len(FORMS)
    assert not held_out & set(asked)


def test_the_page_is_what_the_figures_give():
    figures = json.loads(distil.RESULTS.read_text())
    assert speculation_page.page(figures) == distil.PAGE.read_text()
    for case in figures["cases"]:
        assert case["accepted_tokens"] <= case["drafted_tokens"]
        assert case["same_tokens"] == figures["prompts"]


def test_layers_that_the_teacher_does_not_have_are_refused():
    with pytest.raises(ConfigError, match="--layers: 30: the teacher has layers 0 to 29"):
        distil._layers(["0", "30"], 30)
