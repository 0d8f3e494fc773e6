"""`experiments/compile_run.py`: mistakes are one message; with the GPU compiler, a toy run's programs go through it."""

import dataclasses
import json
from pathlib import Path

import pytest

from experiments.compile_run import Outcome, line_of, main, of_run
from experiments.compile_run import largest as largest_of
from kernels.pallas import aot_gpu
from nanoserve.executors.arrays import Ladders
from nanoserve.experiment import CONFIG_CLASSES
from nanoserve.specs.config import load

CONFIG = Path(__file__).parents[2] / "configs" / "llama70b_int4_h100x1.gin"
FITS = Outcome(
    name="decode[4]", refused="", argument_bytes=2**30, temp_bytes=2**29, rematerialised=0, lower_s=1.0, compile_s=2.0
)
needs_compiler = pytest.mark.skipif(not aot_gpu.available(), reason="needs the compiler for GPUs: run `make aot-gpu`")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--config=llama70b_int4"], "Did you mean 'llama70b_int4_h100x1'?"),
        (["--set=Experiment.model=llama"], "model 'llama' is not in the registry"),
        (["--config=llama70b_speculative_h100"], "only one pool's prefill, decode and mixed steps"),
        (["--config=llama70b_disaggregated_h100"], "Leave out Disaggregation"),
        (["--set=Engine.batch_invariant=True"], "Engine.batch_invariant"),
        (["--set=Precision.weights=bf16"], "leaves no room for KV"),
    ],
)
def test_a_mistake_is_one_message(arguments, says, capsys):
    assert main(["compile_run.py", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_line_says_what_is_wrong_with_a_program():
    assert line_of(FITS).startswith("decode[4]") and "twice" not in line_of(FITS)
    assert "1.00 GiB resident" in line_of(FITS) and "0.500 GiB temporary" in line_of(FITS)
    assert "31 instructions are computed twice" in line_of(dataclasses.replace(FITS, rematerialised=31))
    assert "DOES NOT FIT" in line_of(dataclasses.replace(FITS, refused="RESOURCE_EXHAUSTED: 90G\nmore"))


def test_the_largest_programs_are_one_of_each_kind():
    ladders = Ladders(decode_rows=(1, 4), prefill_tokens=(8, 16), prefill_rows=4, table_pages=8, loop_steps=4)
    assert largest_of(ladders).programs == 4


@needs_compiler
def test_the_ladders_are_those_of_the_run():
    """Where they are made for a real run, the trace is cut in the same way (`building.jax_executors`)."""
    toy = ["Experiment.model='tiny-llama'", "Engine.num_pages=64", "TraceSource.requests=30"]
    _, ladders, described = of_run(load(CONFIG, CONFIG_CLASSES, "Experiment", toy).value)
    assert ladders.table_pages == 64 and ladders.loop_steps == 128 and ladders.decode_rows == (1, 4, 16, 30)
    assert described.startswith("tiny-llama in int4 for 1 x h100_sxm, attention")


@needs_compiler
def test_every_program_of_a_toy_run_compiles_and_is_named(tmp_path, capsys):
    out = tmp_path / "compiled.json"
    small = ["Engine.num_pages=8", "Engine.max_seqs=1", "Engine.max_step_tokens=64", "TraceSource.requests=2"]
    sets = [f"--set={flag}" for flag in ("Experiment.model='tiny-llama'", *small)]
    assert main(["compile_run.py", "--largest", f"--out={out}", *sets]) == 0
    report = json.loads(out.read_text())
    assert [each["name"] for each in report["programs"]] == [
        "decode[1]", "decode_loop[1]", "prefill[64]", "mixed[1, 64]",
    ]  # fmt: skip
    assert all(each["argument_bytes"] > 0 and not each["refused"] for each in report["programs"])
    assert "4 programs" in capsys.readouterr().out
