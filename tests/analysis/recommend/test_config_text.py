"""A recommended config is read back to what it was made of, with its reasons above its lines."""

import dataclasses

import pytest

from nanoserve.analysis.recommend.config_text import config_text
from nanoserve.engine.config import EngineConfig
from nanoserve.experiment import CONFIG_CLASSES, Cluster, Experiment, SloConfig
from nanoserve.specs.config import load
from nanoserve.trace.source import TraceSource

EXPERIMENT = Experiment(
    name="recommended",
    model="llama-3.1-70b",
    cluster=Cluster(mesh={"data": 2, "tensor": 4}),
    engine=EngineConfig(max_seqs=64, queue_limit=8, timeout_s=30.0),
    slo=SloConfig(name="llama2-70b"),
    trace=TraceSource(path="requests.parquet"),
)


@pytest.mark.parametrize("experiment", [Experiment(), EXPERIMENT])
def test_the_text_loads_to_the_experiment(experiment):
    assert load(config_text(experiment, "x", {}), CONFIG_CLASSES, "Experiment").value == experiment


def test_a_reason_stands_above_its_line_even_where_the_value_is_the_default():
    reason = "a word " * 40
    text = config_text(EXPERIMENT, "header", {"Engine.page_tokens": reason})
    lines = text.splitlines()
    place = lines.index("Engine.page_tokens = 16")
    assert (
        lines[0] == "# header" and lines[place - 1].startswith("# a word") and lines[place - 2].startswith("# a word")
    )
    assert all(len(line) <= 120 for line in lines)
    assert load(text, CONFIG_CLASSES, "Experiment").value == EXPERIMENT


def test_only_what_differs_from_defaults_is_written():
    changed = dataclasses.replace(Experiment(), engine=EngineConfig(max_seqs=8))
    assert config_text(changed, "x", {}).splitlines() == ["# x", "", "Engine.max_seqs = 8"]
