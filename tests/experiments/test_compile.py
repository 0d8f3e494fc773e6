"""`experiments/compile.py`: mistakes are one message; with the TPU compiler installed, a tiny model goes through."""

import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path

import pytest

from experiments.compile import main, page
from nanoserve.executors.aot_report import ProgramReport, clock_hz, part_of
from nanoserve.executors.aot_targets import CUBES, FLAT, TOPOLOGIES, topology_name
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.errors import ConfigError

REPOSITORY = Path(__file__).parents[2]
TINY = ("--config=tiny_cpu", "--set=Cluster.chip=tpu_v5e", "--set=Cluster.mesh={'tensor': 2}", "--batch=4")
HAS_COMPILER = importlib.util.find_spec("libtpu") is not None
REFUSED = ProgramReport(name="decode_step", lower_s=1.0, compile_s=2.0, refused="CompileTimeHbmOom: 17G exceeds 15G")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--confg=x"], "Unknown command line flag 'confg'. Did you mean: config ?"),
        (["llama70b_v5p"], "unexpected argument 'llama70b_v5p'"),
        (["--batch=0"], "flag --batch=0"),
        (["--config=llama70b_v5"], "Did you mean 'llama70b_v5p'?"),
        (["--set=Experiment.model=llama"], "model 'llama' is not in the registry"),
        (["--attention=xl"], "paged attention has no implementation 'xl'"),
        (["--programs=decode"], "there is no step 'decode'. Did you mean 'decode_step'?"),
        (["--config=smollm2_cpu"], "nothing is compiled ahead of time for it"),
        (["--set=Cluster.chip=tpu_v4"], "compiled ahead of time for tpu_v5e, tpu_v5p, tpu_v6e only"),
        (["--set=Cluster.mesh={'tensor': 8, 'pipeline': 8}"], "64 x tpu_v5p is no slice that can be compiled for"),
        (["--config=llama70b_h100", "--set=Cluster.mesh={'tensor': 16}"], "a host of at most 8 can be compiled for"),
        (["--set=Precision.weights=fp4"], "Precision.weights = 'fp4' is priced but not executed"),
        (["--kernels"], "kernels are listed of GPUs' programs"),
        (["--config=llama8b_h100", "--xla=xla_gpu_autotune_level"], "give a value, as in --xla="),
        (["--oom_surface=x.png", "--contexts=1k"], "--contexts: '1k' is not a number of positions"),
    ],
)
def test_a_mistake_is_one_message(arguments, says, capsys):
    assert main(["compile.py", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.skipif(HAS_COMPILER, reason="the TPU compiler is installed")
def test_without_the_compiler_the_message_says_what_to_install(capsys):
    assert main(["compile.py", *TINY]) == 2
    assert "tpu-aot" in capsys.readouterr().err


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_topology_has_as_many_chips_as_it_is_asked_for(name):
    for count, shape in (CUBES if name == "tpu_v5p" else FLAT).items():
        family, found = topology_name(chip(name), count).split(":")
        assert name == f"tpu_{family}" and found == shape
        assert math.prod(map(int, found.split("x"))) == count


def test_a_chip_that_shows_two_devices_is_refused():
    with pytest.raises(ConfigError, match=r"tpu_v4"):
        topology_name(chip("tpu_v4"), 4)


@pytest.mark.parametrize(("name", "ghz"), [("tpu_v5e", 1.5), ("tpu_v5p", 1.75), ("tpu_v6e", 1.75)])
def test_the_clock_that_the_peak_implies_is_the_published_one(name, ghz):
    assert clock_hz(chip(name)) == pytest.approx(ghz * 1e9, rel=0.01)


@pytest.mark.parametrize(
    ("scope", "part"),
    [
        ("jit(decode_step)/while/body/eval_jaxpr/attention/qkv/TD,DKJh->TKJh/dot_general", "qkv"),
        ("jit(decode_step)/while/body/eval_jaxpr/attention/decode_attention/while/body/reduce_sum", "decode_attention"),
        ("jit(decode_step)/while/body/jit(dynamic_index_in_dim)/dynamic_slice", "slices of a layer"),
        ("jit(decode_step)/while/body/eval_jaxpr/add", "other"),
    ],
)
def test_an_operation_belongs_to_the_part_whose_name_is_in_its_path(scope, part):
    assert part_of(scope) == part


def test_a_refused_program_shows_the_compilers_own_message():
    lines = list(page(REFUSED))
    assert "DOES NOT FIT" in lines[0]
    assert REFUSED.refused in lines[1]


@pytest.mark.skipif(not HAS_COMPILER, reason="needs the TPU compiler: install the extra tpu-aot")
def test_a_tiny_model_compiles_and_agrees_with_the_models(tmp_path: Path):
    out = tmp_path / "compiled.json"
    command = [sys.executable, "experiments/compile.py", *TINY, "--context=512", f"--out={out}"]
    process = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr[-2000:]
    programs = {program["name"]: program for program in json.loads(out.read_text())["programs"]}
    assert set(programs) == {"decode_step", "prefill_step", "decode_loop"}
    for program in programs.values():
        assert program["memory"]["weights"] == pytest.approx(program["memory"]["model_weights"], rel=0.001)
        assert program["memory"]["kv"] == program["memory"]["model_kv"]
        assert program["memory"]["alias"] >= program["memory"]["kv"]  # donation held: the pool is updated in place
        assert program["estimated_s"] > 0
        assert any(each["kind"] == "all-reduce" for each in program["collectives"])
    assert programs["decode_step"]["product_flops"] == pytest.approx(programs["decode_step"]["model_flops"], rel=0.01)
