"""What an instruction moves through HBM: slices by the slice, updates by the update, on-chip memory not at all."""

import pytest

from nanoserve.roofline.compiled import executed, parse
from nanoserve.roofline.compiled_traffic import hbm_bytes

PROGRAM = """HloModule jit_f, entry_computation_layout={()->f32[]}

%sliced (stack: bf16[4,8,16], index: s32[], x: bf16[2,8]) -> bf16[2,16] {
  %stack = bf16[4,8,16]{2,1,0} parameter(0)
  %index = s32[] parameter(1)
  %zero = s32[] constant(0)
  %slice = bf16[1,8,16]{2,1,0} dynamic-slice(%stack, %index, %zero, %zero), dynamic_slice_sizes={1,8,16}
  %matrix = bf16[8,16]{1,0} bitcast(%slice)
  %x = bf16[2,8]{1,0} parameter(2)
  ROOT %product = bf16[2,16]{1,0} dot(%x, %matrix), lhs_contracting_dims={1}, rhs_contracting_dims={0}
}

%renamed (same: f32[100]) -> f32[100] {
  %same = f32[100]{0} parameter(0)
  ROOT %again = f32[100]{0} bitcast(%same)
}

%outer (whole: f32[100]) -> f32[100] {
  %whole = f32[100]{0} parameter(0)
  %inner = f32[100]{0} fusion(%whole), kind=kLoop, calls=%renamed
  ROOT %doubled = f32[100]{0} add(%inner, %inner)
}

%updated (pool: bf16[1000], new: bf16[10], at: s32[]) -> bf16[1000] {
  %pool = bf16[1000]{0} parameter(0)
  %new = bf16[10]{0} parameter(1)
  %at = s32[] parameter(2)
  ROOT %update = bf16[1000]{0} dynamic-update-slice(%pool, %new, %at)
}

ENTRY %main (p0: bf16[4,8,16], p1: s32[], p2: bf16[2,8], p3: f32[100], p4: bf16[1000], p5: bf16[10]) -> f32[] {
  %p0 = bf16[4,8,16]{2,1,0} parameter(0)
  %p1 = s32[] parameter(1)
  %p2 = bf16[2,8]{1,0:T(8,128)S(1)} parameter(2)
  %p3 = f32[100]{0} parameter(3)
  %p4 = bf16[1000]{0} parameter(4)
  %p5 = bf16[10]{0} parameter(5)
  %one_layer = bf16[2,16]{1,0} fusion(%p0, %p1, %p2), kind=kOutput, calls=%sliced
  %all_of_it = f32[100]{0} fusion(%p3), kind=kLoop, calls=%outer
  %in_place = bf16[1000]{0} fusion(%p4, %p5, %p1), kind=kLoop, calls=%updated
  %copied = f32[100]{0} copy(%p3)
  %view = f32[10,10]{1,0} bitcast(%p3)
  ROOT %result = f32[] constant(0)
}
"""


@pytest.mark.parametrize(
    ("name", "moved"),
    [
        ("one_layer", 8 * 16 * 2 + 4 + 2 * 16 * 2),  # one layer of the stack, the index, the result; x is on the chip
        ("all_of_it", 400 + 400),
        ("in_place", 20 + 4 + 20),  # what is new, twice, and where it goes
        ("copied", 800),
        ("view", 0),
    ],
)
def test_bytes_moved(name, moved):
    program = parse(PROGRAM)
    (found,) = (each for each in executed(program) if each.instruction.name == name)
    assert hbm_bytes(program, found.computation, found.instruction) == moved
