"""What compiled steps are held against: counts of every program, loops of XLA attention, and shapes on one chip."""

import dataclasses

import pytest

from nanoserve.executors.aot import Workload
from nanoserve.executors.aot_expected import Setting, attention_trips, layer_arrays, model_flops, step_counts
from nanoserve.roofline.counts import StepCounts
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model

WORK = Workload(batch=8, context_tokens=512, chunk_tokens=256, page_tokens=16, slots=8, loop_steps=4)


def setting(name: str, attention: str = "pallas_tpu", **axes: int) -> Setting:
    cluster = ClusterSpec(chip=chip("tpu_v5p"), mesh=axes, expert_divides="heads")
    return Setting(model=model(name), cluster=cluster, precision=Precision(), work=WORK, attention=attention)


def test_a_mixed_step_is_one_step_with_the_work_of_both_parts():
    of = {
        kind: step_counts(setting("llama-3.1-8b", tensor=1), f"{kind}_step") for kind in ("decode", "prefill", "mixed")
    }
    summed = [field.name for field in dataclasses.fields(StepCounts) if field.name != "steps"]
    for name in summed:
        assert getattr(of["mixed"], name) == getattr(of["decode"], name) + getattr(of["prefill"], name)
    assert of["mixed"].steps == 1
    assert (of["mixed"].sampled, of["mixed"].new_tokens) == (9, 8 + 256)


def test_loops_of_a_mixed_step_are_those_of_its_parts_in_turn():
    xla = setting("llama-3.1-8b", "xla", tensor=1)
    decode, prefill, mixed = (attention_trips(xla, f"{kind}_step") for kind in ("decode", "prefill", "mixed"))
    assert mixed == (*decode, *prefill)


@pytest.mark.parametrize("axes", [{"tensor": 8}, {"pipeline": 2, "tensor": 4}, {"pipeline": 4, "tensor": 2}])
def test_chips_of_a_replica_share_the_needed_products_evenly(axes):
    alone, shared = setting("llama-3.1-70b", tensor=1), setting("llama-3.1-70b", **axes)
    counts = step_counts(alone, "decode_step")
    assert 8 * model_flops(shared, counts) == model_flops(alone, counts)


def test_a_chip_holds_its_stages_layers_and_its_groups_experts():
    D, F, layers, pages = 4096, 14336, 32, 8 * 32
    arrays = layer_arrays(setting("mixtral-8x7b", pipeline=2, expert=2, tensor=2))
    for shape in ((layers // 2, 4, D, 2 * F // 2), (4, F // 2, D), (layers // 2, pages, 16, 8 // 4, 2, 128)):
        assert shape in arrays
