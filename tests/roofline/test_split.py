"""Mesh axes: what they divide, what stays the same whoever does it, and the pipeline's idle time."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nanoserve.roofline.calibration import constants_for
from nanoserve.roofline.memory import memory_plan, weight_bytes_per_chip
from nanoserve.roofline.op import Op, totals
from nanoserve.roofline.ops import step_ops
from nanoserve.roofline.split import Split, idle_share, split_of
from nanoserve.roofline.timing import bound_times, op_times
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.chips import ClusterSpec
from nanoserve.specs.errors import ConfigError
from nanoserve.specs.model_registry import model
from nanoserve.specs.sizes import weight_bytes
from tests.roofline import factories as make

LLAMA, MIXTRAL = model("llama-3.1-70b"), model("mixtral-8x7b")
PLAN = make.joined(make.decode_counts(32, 700), make.prefill_counts([(0, 320), (64, 192)], sampled=2))


def mesh(name: str = "h100_sxm", **axes: int) -> ClusterSpec:
    return ClusterSpec(chip=chip(name), mesh=axes)


def named(ops: tuple[Op, ...], name: str) -> Op:
    (op,) = (op for op in ops if op.name == name)
    return op


@pytest.mark.parametrize("axes", [{"pipeline": 0}, {"modl": 2}])
def test_a_mesh_that_cannot_be_is_refused(axes):
    with pytest.raises(ConfigError, match="mesh"):
        split_of(mesh(**axes))


def test_a_price_is_of_one_replica():
    one, four = (step_ops(LLAMA, mesh(tensor=4, data=n), make.BF16, PLAN) for n in (1, 4))
    assert one == four
    plans = [memory_plan(LLAMA, mesh(tensor=4, data=n), make.BF16) for n in (1, 4)]
    assert plans[0] == plans[1]


@pytest.mark.parametrize(
    "axes", [{"tensor": 8}, {"pipeline": 8}, {"expert": 8}, {"tensor": 2, "expert": 2, "pipeline": 2}]
)
@pytest.mark.parametrize("spec", [LLAMA, MIXTRAL])
def test_chips_together_compute_what_one_computes_alone_where_loads_are_even(spec, axes):
    alone, together = (
        step_ops(spec, cluster, make.BF16, make.decode_counts(32, 700)) for cluster in (mesh(tensor=1), mesh(**axes))
    )
    layers = {op.name: op for op in alone if op.name in ("qkv", "o", "attention_decode")}
    for name, op in layers.items():
        assert 8 * named(together, name).flops == pytest.approx(op.flops)


def heads_over(**axes: int) -> ClusterSpec:
    return ClusterSpec(chip=chip("h100_sxm"), mesh=axes, expert_divides="heads")


def test_groups_of_experts_that_share_heads_differ_from_tensor_parallel_chips_in_their_experts_only():
    """Attention, pages and sums are those of eight chips in one group; of experts each has whole ones."""
    counts = make.decode_counts(32, 700)
    grouped = step_ops(MIXTRAL, heads_over(expert=4, tensor=2), make.BF16, counts)
    together = step_ops(MIXTRAL, mesh(tensor=8), make.BF16, counts)
    for name in ("qkv", "o", "attention_decode", "head", "all_reduce", "gather_logits"):
        assert named(grouped, name) == named(together, name)
    assert {op.name for op in grouped} == {op.name for op in together}  # no tokens are sent to experts and back
    assert named(grouped, "experts_gate_up").columns == 4 * named(together, "experts_gate_up").columns
    plans = [memory_plan(MIXTRAL, cluster, make.BF16) for cluster in (heads_over(expert=4, tensor=2), mesh(tensor=8))]
    assert plans[0].page_bytes == plans[1].page_bytes and plans[0].weight_bytes == plans[1].weight_bytes
    assert plans[0].activation_bytes > plans[1].activation_bytes  # whole experts' width, for each token


def test_divided_heads_hold_as_many_tokens_as_divided_sequences_and_less_of_the_weights():
    sequences, heads = (
        memory_plan(MIXTRAL, mesh(expert=8), make.BF16),
        memory_plan(MIXTRAL, heads_over(expert=8), make.BF16),
    )
    assert 8 * heads.page_bytes == sequences.page_bytes
    assert (heads.kv_groups, sequences.kv_groups) == (1, 8)
    assert heads.weight_bytes < sequences.weight_bytes
    assert heads.num_pages > sequences.num_pages


def test_a_pipeline_reads_its_weights_once_for_every_microbatch():
    alone, staged = (totals(step_ops(LLAMA, mesh(pipeline=n), make.BF16, PLAN)) for n in (1, 4))
    embedded = PLAN.new_tokens * 8192 * 2  # rows gathered, by however many
    head = 8192 * 128256 * 2
    norm = 8192 * 2
    layers = alone.weight_bytes - embedded - head - norm
    assert staged.weight_bytes == layers + embedded + 4 * (head + norm)  # the last stage's head, four times
    assert 4 * staged.kv_read_bytes == alone.kv_read_bytes


def test_a_lone_sequence_is_as_slow_in_a_pipeline_as_on_one_chip():
    """Its token passes all layers, one stage after the other; only the bytes between stages are more."""
    counts, cluster = make.decode_counts(1, 700), mesh("b200", pipeline=4)
    sol = constants_for(cluster.chip, make.BF16, "sol")
    alone, staged = (bound_times(step_ops(LLAMA, c, make.BF16, counts), c, sol) for c in (mesh("b200"), cluster))
    head_again_s = 3 * 8192 * (128256 + 1) * 2 / cluster.chip.hbm_bytes_per_s
    assert staged.weights == pytest.approx(alone.weights + head_again_s, rel=1e-3)


def test_stages_send_the_residual_stream_once():
    send = named(step_ops(LLAMA, mesh(tensor=2, pipeline=4), make.BF16, PLAN), "send")
    assert send.link_bytes == PLAN.new_tokens * 8192 * 2
    assert send.launches == 4


def test_experts_are_divided_and_tokens_are_sent_to_them():
    ops = step_ops(MIXTRAL, mesh(expert=8), make.BF16, make.decode_counts(4000, 100))
    alone = step_ops(MIXTRAL, mesh(), make.BF16, make.decode_counts(4000, 100))
    assert named(ops, "experts_down").weight_bytes == pytest.approx(named(alone, "experts_down").weight_bytes / 8)
    reached = 7 * (1 - 7 / 8 * 6 / 7)  # two of eight experts, one in each group
    assert named(ops, "dispatch").link_bytes == pytest.approx(32 * 500 * reached * 4096 * 2)
    assert named(ops, "combine").link_bytes == named(ops, "dispatch").link_bytes


def test_a_dense_model_sends_nothing_to_experts():
    names = {op.name for op in step_ops(LLAMA, mesh(expert=2), make.BF16, PLAN)}
    assert not names & {"dispatch", "combine"}


@given(
    spec=make.models,
    precision=make.precisions,
    tensor=st.sampled_from([1, 2, 4]),
    expert=st.sampled_from([1, 2, 4]),
    pipeline=st.sampled_from([1, 2, 4]),
)
def test_chips_of_any_mesh_hold_at_least_the_weights_together(spec, precision, tensor, expert, pipeline):
    split = Split(tensor=tensor, expert=expert, pipeline=pipeline)
    each = weight_bytes_per_chip(spec, precision, split)
    dense_groups = 1 if spec.moe else expert  # what is no expert is on every group
    assert each * split.replica_chips >= weight_bytes(spec, precision) * dense_groups - split.replica_chips
    assert each <= weight_bytes_per_chip(spec, precision, tensor)


def test_groups_of_experts_have_sequences_of_their_own():
    one, two = (memory_plan(MIXTRAL, mesh(tensor=2, expert=n), make.BF16) for n in (1, 2))
    assert two.num_pages > 2 * one.num_pages  # twice the chips, and half the experts on each
    assert two.weight_bytes < one.weight_bytes


def test_a_pipeline_that_is_filled_once_idles_the_textbook_share():
    """Of 4 stages and 4 microbatches, 3 of 7 slots: drawn as a table of who works when."""
    stages, microbatches = 4, 4
    busy = {(stage + batch, stage) for stage in range(stages) for batch in range(microbatches)}
    slots = (max(time for time, _ in busy) + 1) * stages
    idle = idle_share(stages, microbatches)
    assert idle / (1 + idle) == pytest.approx(1 - len(busy) / slots)
    assert idle_share(1, 8) == 0


@pytest.mark.parametrize("stages", [2, 4])
def test_a_step_of_a_pipeline_takes_its_turns_and_the_light_needs_no_more_than_its_work(stages):
    """2 S - 1 turns of which S are work: whatever passes the layers takes so much longer; the head does not."""
    cluster = mesh(pipeline=stages, tensor=2)
    ops = step_ops(LLAMA, cluster, make.BF16, PLAN)
    for mode, turns in (("calibrated", 2 * stages - 1), ("sol", stages)):
        constants = constants_for(cluster.chip, make.BF16, mode)
        for op in ops:
            work_s = op_times(dataclasses.replace(op, idle=None), cluster, constants).total
            staged = op.name not in ("embed", "head", "sample", "gather_logits", "host", "host_rows")
            assert (op.idle is not None) == staged
            factor = turns / stages if staged else 1
            assert op_times(op, cluster, constants).total == pytest.approx(factor * work_s)


def test_a_token_alone_waits_for_no_other():
    cluster = mesh(pipeline=4)
    idle = {op.name: op.idle for op in step_ops(LLAMA, cluster, make.BF16, make.decode_counts(1, 1))}
    assert idle["qkv"] == idle["elementwise"] == idle["send"] == 0
    many = {op.name: op.idle for op in step_ops(LLAMA, cluster, make.BF16, make.decode_counts(4, 1))}
    assert many["qkv"] == many["elementwise"] == many["send"] == pytest.approx(3 / 4)
