"""README.md says what the code does: its figures are those of a run, its commands and its code are accepted."""

import itertools
import re
import shlex
from pathlib import Path

import pytest

from experiments import readme_figures
from nanoserve.experiment import CONFIG_CLASSES, resolve
from nanoserve.report.plots import roofline_plot
from nanoserve.specs.config import load
from nanoserve.specs.config import resolve as resolve_config
from nanoserve.specs.errors import ConfigError

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, text in BLOCKS if kind == "sh" for line in text.splitlines() if "make run" in line]


def test_the_figures_are_those_of_a_run():
    runs = readme_figures.simulate()
    written = readme_figures.MARKS.search(README)
    assert written is not None
    assert written[0] == written[1] + readme_figures.figures(runs, roofline_plot(runs["calibrated"])) + written[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_command_names_what_exists(command: str):
    config, overrides = in_words(command)
    resolve(load(resolve_config(config, REPOSITORY / "configs"), CONFIG_CLASSES, "Experiment", overrides).value)


def in_words(command: str) -> tuple[str, list[str]]:
    """The config and the overrides of a `make run` command, read as make and its shell read them."""
    words = shlex.split(command.replace("$tokens", "512"), comments=True)
    variables = dict(word.split("=", 1) for word in words if word.startswith(("CONFIG=", "ARGS=")))
    arguments = shlex.split(variables.get("ARGS", ""))
    overrides = [value for flag, value in itertools.pairwise(arguments) if flag == "--set"]
    flags = {argument.split("=")[0] for argument in arguments if argument.startswith("--")}
    assert flags <= {"--set", "--trace", "--out", "--executor", "--compare_executors", "--profile_steps", "--resume"}
    return variables.get("CONFIG", readme_figures.CONFIG), overrides


def test_a_command_with_a_misspelt_field_would_be_found():
    with pytest.raises(ConfigError, match=r"Did you mean 'max_seqs'"):
        test_a_command_names_what_exists('make run ARGS="--set Engine.max_seq=4"')


def test_the_example_config_holds(tmp_path: Path):
    (text,) = [text for kind, text in BLOCKS if not kind]
    path = tmp_path / "mine.gin"
    path.write_text(text.replace("include '", f"include '{REPOSITORY}/configs/"))
    resolve(load(path, CONFIG_CLASSES, "Experiment").value)


def test_every_link_leads_to_a_file():
    links = re.findall(r"\]\(([^)#:]+)\)", README + (REPOSITORY / "WORKSPACE.md").read_text())
    assert links
    assert [link for link in links if not (REPOSITORY / link).exists()] == []


def test_every_path_of_the_workspace_exists():
    text = (REPOSITORY / "WORKSPACE.md").read_text()
    named = re.findall(r"`((?:nanoserve|kernels|experiments|tests|configs)/[\w./-]*)", text)
    assert named
    assert [name for name in named if "NAME" not in name and not (REPOSITORY / name).exists()] == []
