"""What `compile.py --kernels` prints and records, of a recorded program."""

import json

from experiments import compile_kernels
from nanoserve.executors.aot_kernels import KernelReport
from nanoserve.roofline.compiled import Assumed, executed, parse
from nanoserve.roofline.compiled_kernels import extra_bytes, kernels
from nanoserve.roofline.compiled_launches import launches
from tests.roofline.record_gpu_program import LAYERS
from tests.roofline.test_compiled_kernels import FOLDER

TIMES = 5


def report() -> KernelReport:
    texts = {name: (FOLDER / f"gpu.{name}.txt").read_text() for name in ("hlo", "thunks", "names")}
    program = parse(texts["hlo"])
    found = kernels(program, executed(program, Assumed(trips=(TIMES,))))
    host = launches(texts["thunks"], texts["names"], program, TIMES)
    return KernelReport(
        program="decode_step", layers=LAYERS, steps=1, kernels=found, extra_bytes=extra_bytes(found), host=host
    )


def test_every_kernel_of_a_layer_has_a_line_and_the_sums_are_those_of_the_program():
    made = report()
    lines = list(compile_kernels.lines(made))
    of_a_layer = [each for each in made.kernels if each.in_layers]
    assert all(sum(f"  {each.name}" == line[-2 - len(each.name) :] for line in lines) == 1 for each in of_a_layer)
    assert made.of_a_layer == len(of_a_layer)
    assert made.of_a_layer * LAYERS + made.outside == sum(each.times for each in made.kernels)
    assert f"{made.of_a_layer:.2f} of each layer" in lines[0] and "7.00 waits for the device" in lines[1]


def test_figures_are_plain_numbers_that_say_the_same():
    made = report()
    figures = json.loads(json.dumps(compile_kernels.figures(made)))
    assert figures["host"] == {"launches": 23.0, "command_buffers": 3.0, "waits": 7.0}
    assert sum(each["times"] for each in figures["kernels"] if each["in_layers"]) == LAYERS * figures["of_a_layer"]
