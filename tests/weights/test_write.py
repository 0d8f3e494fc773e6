"""A written config says what the model is; what cannot be said is refused."""

import dataclasses
import json

import pytest

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.huggingface import read_config
from nanoserve.specs.model_registry import model
from nanoserve.weights.write import huggingface_config


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-2-7b", "smollm2-135m"])
def test_a_written_config_is_read_back_as_the_same_model(tmp_path, name):
    spec = model(name)
    (tmp_path / "config.json").write_text(json.dumps(huggingface_config(spec)))
    who = {"name": "", "hf_id": "", "source": "here"}
    assert dataclasses.replace(read_config(tmp_path), **who) == dataclasses.replace(spec, **who)


def test_another_family_is_refused():
    with pytest.raises(WeightsError, match="only the family 'llama' is written, this is 'qwen2'"):
        huggingface_config(dataclasses.replace(model("tiny-llama"), family="qwen2"))
