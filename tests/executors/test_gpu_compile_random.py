"""Random weights of 70 billion parameters in 4 bits, drawn by an H100: the stack and a layer are all that it holds."""

import jax
import jax.numpy as jnp
import pytest

from kernels.pallas import aot_gpu
from kernels.pallas.quant_matmul.weight import stored_bytes
from nanoserve.model import sharding
from nanoserve.model.params import shape_of
from nanoserve.model.quantised import Storage
from nanoserve.model.random_params import drawing
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec
from nanoserve.specs.model_registry import model

pytestmark = pytest.mark.skipif(not aot_gpu.available(), reason="needs the compiler for GPUs: run `make aot-gpu`")
SPEC, INT4 = model("llama-3.1-70b"), Storage(scheme="int4", implementation="pallas_gpu")


@pytest.mark.parametrize(
    ("field", "how"), [("w_gate_up", INT4), ("w_down", INT4), ("w_gate_up", None), ("embed", None)]
)
def test_a_matrix_of_all_layers_is_drawn_in_the_memory_of_one(field, how):
    from nanoserve.executors.aot_targets import devices

    mesh = sharding.make_mesh(devices(ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 1})))
    program, wanted = drawing(SPEC, field, jnp.bfloat16, how, mesh)
    everywhere = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    key = jax.eval_shape(lambda: jax.random.key(0))
    key = jax.ShapeDtypeStruct(key.shape, key.dtype, sharding=everywhere)
    memory = program.trace(key).lower().compile().memory_analysis()
    one_layer = 4 * shape_of(SPEC, field)[-2] * shape_of(SPEC, field)[-1]  # in float32
    assert memory.temp_size_in_bytes < one_layer
    made = sum(stored_bytes(leaf) for leaf in jax.tree.leaves(wanted))
    assert made <= memory.output_size_in_bytes < 1.01 * made
