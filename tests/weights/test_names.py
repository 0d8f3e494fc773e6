"""Names and shapes of a model's tensors: as many numbers as the model has parameters, and precise complaints."""

import dataclasses
import math

import pytest

from nanoserve.specs.errors import WeightsError
from nanoserve.specs.model_registry import model, model_names
from nanoserve.specs.sizes import parameter_counts
from nanoserve.weights.names import check_tensors, tensor_shapes, unknown_tensor
from tests.weights.factories import tiny_spec

SPEC = tiny_spec(family="qwen2", qkv_bias=True, qk_norm=True)
MATRIX = "model.layers.1.mlp.down_proj.weight"
LIKE_LLAMA = [name for name in model_names() if not (model(name).mla or model(name).biases)]


@pytest.mark.parametrize("name", LIKE_LLAMA)
def test_tensors_of_every_llama_style_model_hold_exactly_its_parameters(name):
    spec = model(name)
    assert sum(math.prod(shape) for _, shape in tensor_shapes(spec)) == parameter_counts(spec).total


class Shapes:
    """A source that knows only shapes."""

    description = "a checkpoint"

    def __init__(self, shapes):
        self._shapes = shapes

    def names(self):
        return frozenset(self._shapes)

    def shape(self, name):
        return self._shapes[name]

    def read(self, name):
        raise NotImplementedError(name)

    def fingerprint(self):
        return ""


def test_check_names_the_missing_and_the_misshapen_tensor():
    shapes = dict(tensor_shapes(SPEC))
    with pytest.raises(WeightsError, match=rf"'{MATRIX}' of model 'tiny' is missing.*nearest is"):
        check_tensors(Shapes({n: s for n, s in shapes.items() if n != MATRIX}), SPEC)
    with pytest.raises(WeightsError, match=r"has shape \[160, 64\], but model 'tiny' needs \[64, 160\]"):
        check_tensors(Shapes(shapes | {MATRIX: (160, 64)}), SPEC)
    check_tensors(Shapes(shapes | {"model.rotary_emb.inv_freq": (8,)}), SPEC)


def test_check_of_an_endless_model_stops_at_the_first_missing_layer():
    endless = dataclasses.replace(SPEC, layers=1 << 40)
    with pytest.raises(WeightsError, match=r"layers\.2\."):
        check_tensors(Shapes(dict(tensor_shapes(SPEC))), endless)


def test_the_error_for_a_name_unlike_all_others_does_not_list_the_checkpoint():
    source = Shapes({f"model.layers.{i}.x": (1,) for i in range(200)})
    assert str(unknown_tensor(source, "###")) == "a checkpoint: no tensor '###'. There are 200 others."


def test_a_header_of_a_million_names_is_not_searched():
    source = Shapes({f"model.layers.{i}.x": (1,) for i in range(20_000)})
    assert "others" in str(unknown_tensor(source, "model.layers.1.y"))
