"""What a program for a GPU launches, on a recorded one whose every kernel can be counted by hand.

Three layers (sort, product, tanh, product with the sum), a loop of unknown length around a sort, a condition around
another: `record_gpu_program` made the files.
"""

from pathlib import Path

import pytest

from nanoserve.roofline.compiled import Assumed, executed, parse
from nanoserve.roofline.compiled_kernels import COPY, CUBLAS, ELEMENT_WISE, Kernel, extra_bytes, kernels
from nanoserve.roofline.compiled_launches import launches
from nanoserve.roofline.compiled_launches import parse as parse_thunks
from tests.roofline.record_gpu_program import LAYERS, ROWS, WIDTH

FOLDER = Path(__file__).parent / "programs"
PROGRAM = parse((FOLDER / "gpu.hlo.txt").read_text())
THUNKS, NAMES = (FOLDER / "gpu.thunks.txt").read_text(), (FOLDER / "gpu.names.txt").read_text()
TIMES = 5  # of the loop whose length is data
X, MATRIX = 2 * ROWS * WIDTH, 2 * WIDTH * WIDTH  # bytes


@pytest.fixture(scope="module")
def found() -> tuple[Kernel, ...]:
    return kernels(PROGRAM, executed(PROGRAM, Assumed(trips=(TIMES,))))


def test_every_layer_launches_what_its_loop_holds(found):
    of_a_layer = [each for each in found if each.in_layers]
    assert all(each.times == LAYERS for each in of_a_layer)
    others = [COPY, ELEMENT_WISE]  # what is sorted is added to as well; and one more layer is done
    assert sorted(each.kind for each in of_a_layer) == sorted(["sort", CUBLAS, ELEMENT_WISE, CUBLAS, *others])


def test_what_runs_as_often_as_data_says_is_not_of_the_layers(found):
    assert {each.times for each in found if not each.in_layers} == {1.0, float(TIMES)}


def test_a_product_moves_its_layers_matrix_and_not_the_stack_or_its_room_to_work_in(found):
    counter = 4  # which layer it is
    first, second = (each.moved_bytes - counter for each in found if each.kind == CUBLAS)
    assert first == 2 * X + MATRIX
    assert second == 3 * X + MATRIX  # what it adds to is read


def test_bytes_besides_products_are_those_of_everything_else(found):
    others = [each for each in found if each.kind != CUBLAS]
    assert extra_bytes(found) == sum(each.times * each.moved_bytes for each in others) > LAYERS * 2 * X


def test_the_host_waits_for_loops_of_unknown_length_and_conditions_only():
    host = launches(THUNKS, NAMES, PROGRAM, TIMES)
    before, layers, loop, condition = 3, LAYERS, 3 * TIMES + 1, 1
    assert host.launches == before + layers + loop + condition
    assert host.command_buffers == LAYERS
    assert host.waits == (TIMES + 1) + 1


def test_thunks_are_read_with_what_is_inside_of_them():
    thunks = parse_thunks(THUNKS)
    assert [each.kind for each in thunks] == ["kCopy", "kCopy", "kCopy", "kWhile", "kWhile", "kConditional"]
    parts = [[(name, [each.kind for each in part]) for name, part in thunk.parts] for thunk in thunks[3:]]
    assert parts == [
        [("condition", ["kCustomKernel"]), ("body", ["kCommandBuffer"])],
        [("condition", ["kCustomKernel"]), ("body", ["kCustomKernel", "kCustomKernel"])],
        [("false_branch", ["kCopy", "kCustomKernel"]), ("true_branch", ["kCopy"])],
    ]
