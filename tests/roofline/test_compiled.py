"""Reading compiled programs: a hand-made one whose every number is known, and matrix products of every disguise."""

import math
import re

import numpy as np
import pytest

from nanoserve.roofline.compiled import Assumed, collectives, copies, executed, parse, product_flops, stated_trips
from nanoserve.specs.errors import ConfigError

LAYERS, CHUNKS = 5, 3

# A scan of 5 layers around a loop that data ends: a product, a sum over chips in two halves, a slice of the stack, and
# a choice between two branches. `wide` takes 70 cycles, `narrow` 7; the sentinel of `start` is no estimate.
PROGRAM = """\
HloModule jit_step, is_scheduled=true

%product (p0: bf16[4,8], p1: bf16[8,16]) -> bf16[4,16] {
  %p0 = bf16[4,8]{1,0:T(8,128)(2,1)} parameter(0)
  %p1 = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(1)
  ROOT %convolution.1 = bf16[4,16]{1,0} convolution(%p0, %p1), dim_labels=bf_io->bf, metadata={op_name="mlp/dot"}
}

%sliced (p2: bf16[5,8,16], p3: s32[]) -> bf16[8,16] {
  %p2 = bf16[5,8,16]{2,1,0} parameter(0)
  %p3 = s32[] parameter(1)
  ROOT %dynamic-slice.1 = bf16[1,8,16]{2,1,0} dynamic-slice(%p2, %p3), dynamic_slice_sizes={1,8,16}
}

%attend_condition (a: (s32[], s32[])) -> pred[] {
  %a = (s32[], s32[]) parameter(0)
  %i = s32[] get-tuple-element(%a), index=0
  %n = s32[] get-tuple-element(%a), index=1
  ROOT %lt.1 = pred[]{:T(512)} compare(%i, %n), direction=LT
}

%attend_body (b: (s32[], s32[])) -> (s32[], s32[]) {
  %b = (s32[], s32[]) parameter(0)
  ROOT %chunk = (s32[], s32[]) fusion(%b), kind=kLoop, calls=%sum, CYCLES(10)
}

%sum (x: s32[], y: s32[]) -> s32[] {
  %x = s32[] parameter(0)
  %y = s32[] parameter(1)
  ROOT %add = s32[] add(%x, %y)
}

%layer_condition (c: (s32[], bf16[4,16])) -> pred[] {
  %five = s32[]{:T(128)} constant(5)
  %c = (s32[], bf16[4,16]) parameter(0)
  %j = s32[] get-tuple-element(%c), index=0
  ROOT %lt.2 = pred[] compare(%j, %five), direction=LT
}

%layer_body (d: (s32[], bf16[4,8], bf16[5,8,16])) -> (s32[], bf16[4,8], bf16[5,8,16]) {
  %d = (s32[], bf16[4,8], /*index=2*/bf16[5,8,16]) parameter(0)
  %index = s32[] get-tuple-element(%d), index=0
  %rows = bf16[4,8] get-tuple-element(%d), index=1
  %stack = bf16[5,8,16] get-tuple-element(%d), index=2
  %slice = bf16[1,8,16]{2,1,0} fusion(%stack, %index), kind=kLoop, calls=%sliced, CYCLES(50)
  %prefetch = (bf16[8,16]{1,0:S(1)}, bf16[8,16], u32[]{:S(2)}) copy-start(%slice)
  %dot = bf16[4,16] fusion(%rows, %slice), kind=kOutput, calls=%product, CYCLES(100)
  %start = (bf16[4,16], bf16[4,16]) all-reduce-start(%dot), channel_id=1, to_apply=%sum, CYCLES(NONE)
  %done = bf16[4,16] all-reduce-done(%start), channel_id=1
  %while.1 = (s32[], s32[]) while(%d), condition=%attend_condition, body=%attend_body, metadata={op_name="attend/while"}
  ROOT %out = (s32[], bf16[4,8], bf16[5,8,16]) tuple(%index, %rows, %stack)
}

%narrow (e: f32[4]) -> f32[4] {
  ROOT %exp = f32[4] exponential(%e), CYCLES(7)
}

%wide (f: f32[4]) -> f32[4] {
  ROOT %gather = f32[8] all-gather(%f), channel_id=2, dimensions={0}, CYCLES(70)
}

ENTRY %main (g: (s32[], bf16[4,8], bf16[5,8,16])) -> f32[4] {
  %g = (s32[], bf16[4,8], bf16[5,8,16]) parameter(0)
  %while.2 = (s32[], bf16[4,8], bf16[5,8,16]) while(%g), condition=%layer_condition, body=%layer_body
  %which = pred[] constant(false)
  ROOT %choice = f32[4] conditional(%which, %g, %g), branch_computations={%narrow, %wide}
}
"""


NO_ESTIMATE = 2**63 - 1


def written(program: str) -> str:
    """The text as XLA has it, where `CYCLES(n)` stands here."""
    numbered = program.replace("NONE", str(NO_ESTIMATE))
    return re.sub(r"CYCLES\((\d+)\)", r'backend_config={"flag_configs":[],"estimated_cycles":"\1"}', numbered)


@pytest.fixture
def program():
    return parse(written(PROGRAM))


@pytest.fixture
def ran(program):
    return executed(program, Assumed((CHUNKS,)))


def test_cycles_are_counted_as_often_as_loops_run_and_no_estimate_counts_nothing(ran):
    assert sum(each.cycles for each in ran) == LAYERS * (50 + 100 + CHUNKS * 10) + 7


def test_the_dearest_branch_is_taken_where_that_is_assumed(program):
    dearest = executed(program, Assumed((CHUNKS,), dearest_branch=True))
    assert sum(each.cycles for each in dearest) == LAYERS * (50 + 100 + CHUNKS * 10) + 70
    assert {each.kind for each in collectives(program, dearest)} == {"all-reduce", "all-gather"}


def test_products_inside_loops_and_fusions_are_counted_as_often_as_they_run(program, ran):
    assert product_flops(program, ran) == {"mlp/dot": LAYERS * 2 * 4 * 8 * 16}


def test_a_collective_of_two_halves_is_one(program, ran):
    (found,) = collectives(program, ran)
    assert (found.kind, found.times, found.size_bytes) == ("all-reduce", LAYERS, 4 * 16 * 2)


@pytest.mark.parametrize("layer", [(8, 16), (16, 8), (2, 4, 16), (8, 1, 16)])
def test_a_slice_of_a_layer_is_a_copy_and_a_prefetch_is_none(program, ran, layer):
    (found,) = copies(program, ran, [layer])
    assert (found.instruction.name, found.times, found.cycles) == ("slice", LAYERS, LAYERS * 50)


def test_what_is_as_large_as_a_layer_but_has_other_axes_is_no_copy(program, ran):
    assert copies(program, ran, [(32, 4)]) == ()


def test_a_plain_copy_of_the_stack_is_found():
    copied = PROGRAM.replace("  %which", "  %stacked = bf16[5,8,16] get-tuple-element(%g), index=2\n"
                             "  %again = bf16[5,8,16]{0,1,2} copy(%stacked)\n  %which")  # fmt: skip
    changed = parse(written(copied))
    (found,) = copies(changed, executed(changed, Assumed((CHUNKS,))), [(5, 8, 16)])
    assert found.instruction.name == "again"


def test_what_a_product_takes_to_work_with_is_no_copy_of_a_layer_of_the_same_size():
    """As XLA for GPUs writes a product with a matrix in the stack: the address and cuBLAS in one fusion."""
    called = """\
%in_the_stack (p4: bf16[5,8,16], p5: s32[], p6: bf16[4,8]) -> (bf16[4,16], s8[128]) {
  %p4 = bf16[5,8,16]{2,1,0} parameter(0)
  %p5 = s32[] parameter(1)
  %p6 = bf16[4,8]{1,0} parameter(2)
  %dynamic-slice.2 = bf16[1,8,16]{2,1,0} dynamic-slice(%p4, %p5), dynamic_slice_sizes={1,8,16}
  %matrix = bf16[8,16]{1,0} bitcast(%dynamic-slice.2)
  ROOT %custom-call.1 = (bf16[4,16]{1,0}, s8[128]{0}) custom-call(%p6, %matrix), custom_call_target="__cublas$gemm"
}

"""
    slice_of_it = re.search(r"\n  %slice = .*", PROGRAM)
    assert slice_of_it
    product = (
        "\n  %again = (bf16[4,16]{1,0}, s8[128]{0}) fusion(%stack, %index, %rows), kind=kCustom, calls=%in_the_stack"
    )
    text = PROGRAM.replace(slice_of_it[0], slice_of_it[0] + product).replace("%sliced (", called + "%sliced (", 1)
    changed = parse(written(text))
    found = copies(changed, executed(changed, Assumed((CHUNKS,))), [(8, 16)])
    assert [each.instruction.name for each in found] == ["slice"]


def test_a_loop_that_data_ends_wants_a_number(program):
    with pytest.raises(ConfigError, match=r"'while.1' \(attend/while\).*depth 1"):
        executed(program)


def test_loops_of_a_scope_may_have_a_number_of_their_own(program, ran):
    """The same loop, whether its number goes by depth or by the scope that it is in."""
    assert executed(program, Assumed((CHUNKS + 1,), within={"attend": (CHUNKS,)})) == ran


def test_a_scan_states_its_length_and_a_loop_over_data_does_not(program):
    assert stated_trips(program.computations["layer_condition"]) == LAYERS
    assert stated_trips(program.computations["attend_condition"]) is None


def test_what_is_no_program_is_refused():
    with pytest.raises(ConfigError, match="no ENTRY computation"):
        parse("HloModule nothing\n")


# How the TPU compiler writes products with batch or extra axes: as windows in which most kernel positions meet nothing.
DISGUISES = {
    "plain": ("[32,8192]", "[8192,3584]", "[32,3584]", "dim_labels=bf_io->bf", 32 * 8192 * 3584),
    "two_outputs": (
        "[32,64,1]", "[64,10,128]", "[32,10,128]",
        "window={size=10 pad=9_9 rhs_reversal=1}, dim_labels=bf0_i0o->b0f", 32 * 64 * 10 * 128,
    ),
    "two_contracted": (
        "[32,8,16]", "[8,16,64]", "[32,64,1]",
        "window={size=8}, dim_labels=b0f_0io->bf0", 32 * 128 * 64,
    ),
    "batched": (
        "[32,256,128]", "[32,8,128]", "[32,256,8]",
        "window={size=32 stride=31 lhs_dilate=32}, dim_labels=0bf_0oi->0bf", 32 * 256 * 128 * 8,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", DISGUISES)
def test_a_product_is_counted_whatever_its_disguise(name):
    left, right, output, how, multiplied = DISGUISES[name]
    program = parse(
        f"ENTRY %main (a: bf16{left}, b: bf16{right}) -> f32{output} {{\n  %a = bf16{left} parameter(0)\n"
        f"  %b = bf16{right} parameter(1)\n  ROOT %c = f32{output} convolution(%a, %b), {how}\n}}\n"
    )
    assert product_flops(program, executed(program)) == {"": 2 * multiplied}


def test_programs_that_jax_compiles_are_read():
    """Against the compiler of this machine: a scan of products, whose FLOPs are known."""
    import jax
    import jax.numpy as jnp

    def scanned(x, stack):
        return jax.lax.scan(lambda x, matrix: (jnp.tanh(x @ matrix), None), x, stack)[0]

    shapes = (64, 96), (7, 96, 96)
    text = jax.jit(scanned).lower(*(jnp.asarray(np.ones(shape, np.float32)) for shape in shapes)).compile().as_text()
    assert text is not None
    program = parse(text)
    assert sum(product_flops(program, executed(program)).values()) == 2 * 7 * math.prod((64, 96, 96))
