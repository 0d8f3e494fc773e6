"""The files in configs/: each loads, names things that exist, and its operative text stands for it."""

from pathlib import Path

import pytest

from nanoserve.experiment import CONFIG_CLASSES, resolve
from nanoserve.specs.config import load

CONFIGS = Path(__file__).parents[2] / "configs"
EXPERIMENTS = sorted([*CONFIGS.glob("*.gin"), *CONFIGS.glob("ablations/*.gin"), *CONFIGS.glob("lab/*.gin")])


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_a_shipped_config_loads_and_names_what_exists(path: Path):
    experiment = load(path, CONFIG_CLASSES, "Experiment").value
    resolve(experiment)
    assert experiment.name == path.stem


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_the_operative_text_of_a_shipped_config_needs_no_other_file(path: Path):
    loaded = load(path, CONFIG_CLASSES, "Experiment")
    assert load(loaded.operative, CONFIG_CLASSES, "Experiment").value == loaded.value


def test_every_part_is_included_by_some_config():
    parts = {str(path.relative_to(CONFIGS)) for path in set(CONFIGS.glob("*/*.gin")) - set(EXPERIMENTS)}
    text = "".join(path.read_text() for path in EXPERIMENTS)
    assert parts == {part for part in parts if f"{part}'" in text}
