"""Every instruction of a program and every priced operation belongs to one entry of the list."""

import dataclasses

import pytest

from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.compiled import parse
from nanoserve.roofline.counts import StepCounts
from nanoserve.roofline.op import Op
from nanoserve.roofline.operations import OPERATIONS, OTHER, Named, of_priced, of_scope, prices
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.timing import step_time
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec, Precision
from nanoserve.specs.model_registry import model, model_names

COUNTS = StepCounts(
    steps=1, decode_seqs=4, decode_kv_tokens=400, decode_window_tokens=400, prefill_seqs=1, prefill_tokens=32,
    prefill_pairs=528, prefill_window_pairs=528, prefill_kv_tokens=32, prefill_window_kv_tokens=32, sampled=5,
)  # fmt: skip
TWO = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 2})
PRECISION = Precision(weights="bf16", kv="bf16")

PROGRAM = """HloModule jit_decode_step

%fused.1 (p0: bf16[4,8], p1: bf16[8,8]) -> bf16[4,8] {
  %p0 = bf16[4,8]{1,0} parameter(0)
  %p1 = bf16[8,8]{1,0} parameter(1)
  %normed = bf16[4,8]{1,0} multiply(%p0, %p0), metadata={op_name="jit(s)/while/body/attention/qkv/norm/mul"}
  %product = bf16[4,8]{1,0} dot(%normed, %p1), metadata={op_name="jit(s)/while/body/attention/qkv/dot_general"}
  ROOT %tail.1 = bf16[4,8]{1,0} add(%product, %p0), metadata={op_name="jit(s)/while/body/residual/add"}
}

%chunks (c: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %c = (s32[], bf16[4,8]{1,0}) parameter(0)
  %nameless_dot = bf16[4,8]{1,0} dot(%c, %c)
  ROOT %t.1 = (s32[], bf16[4,8]{1,0}) tuple(%c)
}

%body (b: (s32[], bf16[4,8])) -> (s32[], bf16[4,8]) {
  %b = (s32[], bf16[4,8]{1,0}) parameter(0)
  %fusion.7 = bf16[4,8]{1,0} fusion(%b, %b), kind=kOutput, calls=%fused.1
  %rope_fusion = bf16[4,8]{1,0} negate(%b), metadata={op_name="jit(s)/while/body/attention/rope/neg"}
  %reshaped = bf16[4,8]{1,0} negate(%b), metadata={op_name="jit(s)/while/body/attention/transpose"}
  %while.2 = (s32[], bf16[4,8]) while(%b), condition=%cond, body=%chunks, metadata={op_name="decode_attention/while"}
  %all-reduce.3 = bf16[4,8]{1,0} all-reduce(%b), to_apply=%sum, metadata={op_name="mlp/down/dot_general"}
  %lost_dot = bf16[1,8] dot(%b, %b)
  %shaped = bf16[8] bitcast(%lost_dot), metadata={op_name="jit(s)/while/body/mlp/down/TD,DF->TF/dot_general"}
  %copy.5 = bf16[4,8]{1,0} copy(%b)
  %unknown = bf16[4,8]{1,0} negate(%b)
  ROOT %t.2 = (s32[], bf16[4,8]{1,0}) tuple(%b)
}

%cond (d: (s32[], bf16[4,8])) -> pred[] {
  %d = (s32[], bf16[4,8]{1,0}) parameter(0)
  ROOT %less = pred[] compare(%d, %d), direction=LT
}

%sum (x: bf16[], y: bf16[]) -> bf16[] {
  %x = bf16[] parameter(0)
  %y = bf16[] parameter(1)
  ROOT %added = bf16[] add(%x, %y)
}

%command_buffer (e: bf16[4,8]) -> bf16[4,8] {
  %e = bf16[4,8]{1,0} parameter(0)
  ROOT %loop_select-fusion.9 = bf16[4,8]{1,0} negate(%e), metadata={op_name="jit(s)/sample/argmax"}
}

ENTRY %main (arg: bf16[4,8]) -> bf16[4,8] {
  %arg = bf16[4,8]{1,0} parameter(0)
  %while.1 = (s32[], bf16[4,8]{1,0}) while(%arg), condition=%cond, body=%body, metadata={op_name="jit(s)/while"}
  ROOT %call.4 = bf16[4,8]{1,0} call(%arg), to_apply=%command_buffer
}
"""


@pytest.mark.parametrize(
    ("instruction", "operation"),
    [
        ("fusion.7", "qkv"),  # where its product is, whatever it ends in
        ("rope_fusion", "elementwise"),
        ("reshaped", "elementwise"),
        ("nameless_dot", "attention_decode"),  # of the loop it is in
        ("lost_dot", "down"),  # of what became of it
        ("while.2", "loops"),
        ("all-reduce.3", "links"),
        ("copy.5", "copies"),
        ("unknown", "other"),
        ("loop_select-fusion.9", "sample"),
        ("call.4", "loops"),
        ("product", "qkv"),
        ("normed", "qkv"),  # fused into the product
        ("unheard_of", None),
    ],
)
def test_an_instruction_belongs_to_the_scope_of_its_product_its_own_or_its_loops(instruction, operation):
    assert Named(parse(PROGRAM)).operation(instruction) == operation


def test_a_kernel_inside_a_recorded_graph_is_known_by_its_own_name():
    named = Named(parse(PROGRAM))
    assert named.operation("call.4", "loop_select_fusion_9") == "sample"
    assert named.operation("call.4", "some_library_kernel") == "loops"
    assert named.operation("fusion.7", "loop_select_fusion_9") == "qkv"  # the instruction knows better


def test_the_innermost_scope_counts():
    assert of_scope("jit(decode_step)/while/body/mlp/down/dot_general") == "down"
    assert of_scope("jit(decode_step)/while/body/mlp/norm/mul") == "elementwise"
    assert of_scope("jit(decode_step)/while/body/add") is None


@pytest.mark.parametrize("name", model_names())
def test_every_priced_operation_of_every_model_is_in_the_list(name):
    ops = step_ops(model(name), TWO, PRECISION, COUNTS)
    found = {op.name: of_priced(op) for op in ops}
    assert set(found.values()) <= set(OPERATIONS)
    assert OTHER not in found.values(), found


@pytest.mark.parametrize("call_s", [0.0, 3e-5])
def test_prices_by_operation_add_up_to_the_price_of_the_step_and_of_its_call(call_s):
    calibration = dataclasses.replace(constants_for(TWO.chip, PRECISION, "calibrated"), host_call_s=call_s)
    spec = model("llama-3.1-8b")
    priced = prices(spec, TWO, PRECISION, COUNTS, calibration)
    whole = step_time(step_ops(spec, TWO, PRECISION, COUNTS), TWO, calibration)
    assert sum(times.total for times in priced.values()) == pytest.approx(whole + call_s, rel=1e-12)
    assert {"qkv", "out", "gate_up", "down", "head", "attention_decode", "attention_prefill", "links", "host"} <= set(
        priced
    )


def test_what_a_plan_does_not_do_has_no_price():
    decodes = StepCounts(decode_seqs=4, decode_kv_tokens=400, decode_window_tokens=400, sampled=4)
    one = ClusterSpec(chip=chip("h100_sxm"), mesh={"tensor": 1})
    calibration = constants_for(one.chip, PRECISION, "calibrated")
    priced = prices(model("llama-3.1-8b"), one, PRECISION, decodes, calibration)
    assert not {"attention_prefill", "links", "experts", "router"} & set(priced)


def test_an_operation_of_no_known_name_is_other():
    assert of_priced(Op(name="dreaming", kind="matmul")) == OTHER
