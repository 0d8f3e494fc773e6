"""`experiments/bench/h100.py`: that it loses nothing, what its figures count, and the cheap parts end to end."""

import gc
import itertools
import json
import subprocess
import sys
import types
import typing
import weakref
from collections.abc import Callable
from pathlib import Path

import jax
import pytest

from experiments.bench import h100, h100_measuring, parts
from experiments.bench.attention_timing import CPU, Timed
from experiments.bench.h100_results import Results, resumed
from experiments.bench.h100_table import tables
from experiments.bench.parts import PARTS, USUAL, Case, Context, Shared, matmul, matmul_calls, step, step_ready
from experiments.bench.parts.step_account import needs, predictions
from experiments.bench.parts.step_cases import EIGHT, catalogue, decode, prefill, toy_catalogue
from experiments.bench.parts.step_ready import check_fits
from nanoserve.specs.chip_registry import chip
from nanoserve.specs.errors import ConfigError
from nanoserve.weights.random import RandomTensors

REPOSITORY = Path(__file__).parents[2]
H100 = chip("h100_sxm")
RUN = {"device": "Chip", "toy": False}
HOPPER = types.SimpleNamespace(platform="gpu", compute_capability="9.0")


def fake_part(name: str, outcomes: dict[str, Callable[[], dict]], extras: tuple[str, ...] = ()):
    """A part whose cases do what the test says."""
    return types.SimpleNamespace(
        NAME=name,
        cases=lambda toy: [Case(name=case, extra=case in extras) for case in outcomes],
        measure=lambda case, context: outcomes[case.name](),
        columns=lambda record: {"figure": str(record["figure"])},
    )


def raising(error: BaseException) -> Callable[[], dict]:
    def raise_it():
        raise error

    return raise_it


@pytest.fixture
def faked(monkeypatch):
    """Replaces the parts `ceilings` and `step` by fakes with these cases."""

    def install(**cases: dict[str, Callable[[], dict]]):
        monkeypatch.setattr(parts, "load", lambda name: fake_part(name, cases[name]))
        return f"--parts={','.join(cases)}"

    return install


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--parts=ceiling"], "Did you mean 'ceilings'?"),
        (["--cases=8b_decode_b33_s4096"], "Did you mean '8b_decode_b32_s4096'?"),
        (["--parts=ceilings", "--cases=step/*"], "--cases=step/* names no case"),
        (["--parts=ceilings,peer"], "peer leaves memory to others than JAX: measure it by itself"),
        (["--resume"], "name it with --out"),
        (["--toy", "--parts=ceilings", "--out=/no/such/folder/x.json"], "Name a file in a folder that exists"),
        (["step"], "unexpected argument 'step'"),
    ],
)
def test_a_mistake_is_one_message(arguments, says, capsys):
    assert h100.main(["h100.py", *arguments]) == 2
    err = capsys.readouterr().err
    assert says in err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_a_case_that_fails_or_cannot_be_had_stops_no_other_and_resume_takes_it_again(faked, tmp_path, capsys):
    measured: list[str] = []
    outcomes = {
        "good": lambda: measured.append("good") or {"figure": 1},
        "bad": raising(RuntimeError("out of registers")),
        "too_large": raising(ConfigError("does not fit")),
    }
    asked = [faked(ceilings=outcomes, step={"last": lambda: {"figure": 2}}), f"--out={tmp_path / 'out.json'}"]
    assert h100.main(["h100.py", *asked]) == 1
    content = json.loads((tmp_path / "out.json").read_text())
    statuses = {case: record["status"] for of_part in content["parts"].values() for case, record in of_part.items()}
    assert statuses == {"good": "measured", "bad": "failed", "too_large": "skipped", "last": "measured"}
    assert "RuntimeError: out of registers" in content["parts"]["ceilings"]["bad"]["reason"]
    out = capsys.readouterr().out
    assert "out of registers" in out and "skipped: does not fit" in out

    outcomes["bad"] = lambda: {"figure": 3}
    assert h100.main(["h100.py", *asked, "--resume", "--commit=abc"]) == 0
    content = json.loads((tmp_path / "out.json").read_text())
    assert measured == ["good"]  # once
    assert content["runs"][1]["commit"] == "abc" and "--commit=abc" in content["runs"][1]["command"]
    assert [content["parts"]["ceilings"][case]["run"] for case in ("good", "bad")] == [0, 1]
    assert len(content["runs"]) == 2 and content["runs"][0]["machine"]["cores"] > 0


def test_what_was_measured_before_an_interrupt_is_kept(faked, tmp_path):
    outcomes = {"first": lambda: {"figure": 1}, "second": raising(KeyboardInterrupt()), "third": lambda: {"figure": 3}}
    assert h100.main(["h100.py", faked(ceilings=outcomes), f"--out={tmp_path / 'out.json'}"]) == 130
    assert list(json.loads((tmp_path / "out.json").read_text())["parts"]["ceilings"]) == ["first"]


def test_no_case_is_started_when_the_time_is_up_and_the_first_that_waits_is_named(faked, capsys):
    assert h100.main(["h100.py", faked(ceilings={"first": lambda: {"figure": 1}}), "--seconds=0"]) == 1
    assert "no time is left: 1 cases are left, ceilings/first first" in capsys.readouterr().err


def test_a_device_that_answers_no_more_ends_the_measuring_and_what_failed_is_taken_last(
    faked, monkeypatch, tmp_path, capsys
):
    taken: list[str] = []

    def taking(name: str, then: Callable[[], dict]) -> Callable[[], dict]:
        return lambda: taken.append(name) or then()

    outcomes = {"killer": taking("killer", raising(RuntimeError("illegal address")))}
    outcomes |= {name: taking(name, lambda: {"figure": 1}) for name in ("second", "third")}
    asked = ["h100.py", faked(ceilings=outcomes), f"--out={tmp_path / 'out.json'}"]
    monkeypatch.setattr(h100_measuring, "answers", lambda device: False)
    assert h100.main(asked) == 1
    assert "answers no more after ceilings/killer: 2 cases are left, ceilings/second first" in capsys.readouterr().err
    assert h100.main([*asked, "--resume"]) == 1
    assert taken == ["killer", "second", "third", "killer"]
    assert set(resumed(tmp_path / "out.json").parts["ceilings"]) == set(outcomes)


def test_this_device_answers():
    assert h100_measuring.answers(jax.devices()[0])


def test_a_part_that_cannot_be_imported_stops_no_other(monkeypatch, capsys):
    def load(name: str):
        if name == "step":
            raise ImportError("no module named lightning")
        return fake_part(name, {"one": lambda: {"figure": 1}})

    monkeypatch.setattr(parts, "load", load)
    assert h100.main(["h100.py", "--parts=ceilings,step"]) == 1
    out = capsys.readouterr().out
    assert "step: cannot be loaded here: no module named lightning" in out and "one" in out
    assert any("1 cases, which cannot be shown here" in line for line in tables({"step": {"one": {}}}))


def test_extras_are_measured_when_they_are_named():
    cases = {"a": [Case(name="one"), Case(name="two", extra=True)], "b": [Case(name="one")]}
    names = {
        patterns: [f"{part}/{case.name}" for part, of_part in h100.select(patterns, cases).items() for case in of_part]
        for patterns in ((), ("one",), ("a/*",), ("*two", "b/one"))
    }
    assert names[()] == ["a/one", "b/one"]
    assert names[("one",)] == ["a/one", "b/one"]
    assert names[("a/*",)] == ["a/one", "a/two"]
    assert names[("*two", "b/one")] == ["a/two", "b/one"]


def test_a_file_is_whole_after_every_case_and_is_of_one_device_and_size(tmp_path):
    path = tmp_path / "results.json"
    results = Results(path)
    results.begin(RUN)
    for count, status in enumerate(("measured", "failed", "skipped"), start=1):
        results.add("step", status, {"status": status})
        assert len(json.loads(path.read_text())["parts"]["step"]) == count
    again = resumed(path)
    assert [again.has("step", case) for case in ("measured", "failed", "skipped", "new")] == [True, False, True, False]
    for other in ({"device": "Other"}, {"toy": True}):
        with pytest.raises(ConfigError, match="Give another --out"):
            again.begin(RUN | other)


@pytest.mark.parametrize("text", ["", "[]", '{"runs": [], "shapes": {}}'])
def test_a_file_of_something_else_is_not_gone_on_with(text, tmp_path):
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match="no result of this command"):
        resumed(path)


def test_what_cases_share_is_made_once_and_let_go_before_the_next_is_made():
    class Weights:
        pass

    shared, alive = Shared(), []

    def make():
        gc.collect()
        alive.append(sum(reference() is not None for reference in references))
        weights = Weights()
        references.append(weakref.ref(weights))
        return weights

    references: list[weakref.ref] = []
    assert shared.get("8b", make) is shared.get("8b", make)
    shared.get("70b", make)
    shared.release()
    assert alive == [0, 0] and all(reference() is None for reference in references)


def test_every_part_is_there_and_its_page_needs_neither_jax_nor_torch_nor_what_gpu_machines_lack():
    program = f"""
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
sys.modules |= dict.fromkeys(("jax", "torch", "gin", "beartype", "polars", "gguf"))
from experiments.bench import h100, h100_measuring, parts
for name in parts.PARTS:
    part = parts.load(name)
    for toy in (False, True):
        names = [case.name for case in part.cases(toy)]
        assert part.NAME == name and names and len(set(names)) == len(names), name
    assert callable(part.measure) and callable(part.columns), name
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_issues_steps_are_all_asked_for():
    names = {case.name for case in catalogue()}
    assert len(names) == len(catalogue())
    assert {f"8b_decode_b{rows}_s{context}" for rows in (1, 8, 32, 64, 128) for context in (1024, 4096)} <= names
    assert {f"70b_int4_decode_b{rows}_s1024" for rows in (1, 8, 32)} <= names
    assert {f"{model}_prefill_t{tokens}" for model in ("8b", "70b_int4") for tokens in (512, 2048, 8192)} <= names
    models = [case.model for case in catalogue()]
    assert len(set(models)) == 1 + sum(a != b for a, b in itertools.pairwise(models))  # weights are made once


def test_a_decode_step_reads_every_matrix_once_and_every_attended_position():
    work = needs(decode(EIGHT, 2, 1000), H100)
    layer = 4096 * (4096 + 2 * 1024) + 4096 * 4096 + 3 * 4096 * 14336
    matrices, norms, embedded = 32 * layer + 4096 * 128256, (2 * 32 + 1) * 4096, 2 * 4096
    assert work["bytes"]["weights"] == 2 * (matrices + norms + embedded)
    assert work["bytes"]["kv"] == 2 * (1000 + 1) * 32 * 2 * 8 * 128 * 2
    assert work["flops"] == 2 * 2 * matrices + 4 * 32 * 32 * 128 * 2 * 1000
    assert work["bytes"]["total"] == sum(work["bytes"][part] for part in ("weights", "kv", "other"))


def test_eight_bit_kv_is_half_as_much_and_its_factors():
    plain, eight = (needs(decode(EIGHT, 1, 4096, kv=kv), H100)["bytes"]["kv"] for kv in ("bf16", "fp8"))
    assert eight == plain // 2 + 4096 * 32 * 2 * 8 * 4


def test_a_prediction_is_never_below_the_datasheets_limit_and_says_whose_constants_it_has():
    for case in (decode(EIGHT, 32, 4096), prefill(EIGHT, 2048)):
        predicted = predictions(case, H100)
        assert 0 < predicted["sol_s"] < predicted["calibrated_s"]
        assert "h100_sxm" in predicted["calibrated_by"]


def test_a_step_that_does_not_fit_says_how_much_is_missing():
    case = next(case for case in catalogue() if case.name == "8b_decode_b128_s4096")
    with pytest.raises(ConfigError, match=r"128 x 4,096 positions of bf16 KV are 65\.0 GiB, .* are left of 80\.0"):
        check_fits(case, H100, H100.hbm_bytes, case.rows * 65)


@pytest.mark.parametrize("steps", [step_ready.LOOP_STEPS, step.SHORT_LOOP, 1])
def test_the_steps_of_a_loop_lie_evenly_around_the_context_and_on_the_pages_there_are(steps):
    case, nothing = decode(EIGHT, 2, 1000), typing.cast(typing.Any, None)
    ready = step_ready.Prepared(case=case, model=nothing, executor=nothing, pages=((0,), (1,)), book=nothing)
    plan = ready.plan(steps)
    attended = [row.start + 1 + step for row in plan.rows() for step in range(plan.horizon)]
    assert sum(attended) == plan.counts.decode_kv_tokens == steps * 2 * 1000
    assert plan.counts.new_tokens == steps * 2 and max(attended) <= 1000 + step_ready.LOOP_STEPS // 2
    assert ready.plan(steps) is plan


def test_the_host_gap_is_what_a_plan_costs_beyond_its_steps():
    def timed(steps: int) -> Timed:
        """A plan of 0.5 s and 0.1 s a step."""
        return Timed(((0.5 + 0.1 * steps) / steps,) * 5)

    record = step.decode_record(timed(33), timed(step.SHORT_LOOP), 33)
    assert record["device_step_s"] == pytest.approx(0.1)
    assert record["host_gap_s"] == pytest.approx(0.5 / 33)
    assert record["host_gap_share"] == pytest.approx(0.5 / (0.5 + 3.3))


def test_a_quantised_product_goes_to_the_kernel_where_there_is_one():
    cases = matmul.cases(toy=False)
    assert {case.rows for case in cases} == {1, 8, 32, 128, 512, 2048}
    assert {case.scheme for case in cases} == {"int4", "int8", "fp8"}
    assert all(matmul_calls.chosen(case, HOPPER).name == "pallas_gpu" for case in cases)
    assert matmul_calls.chosen(cases[0], jax.devices()[0]).name == "xla"


def test_a_product_by_the_wrong_layer_is_never_timed(monkeypatch, tmp_path):
    def first_layer(x_TD, stack, layer):
        return matmul_calls._plain(x_TD, stack, 0)

    def with_a_wrong_one(matrices, ours):
        return {**right(matrices, ours), "bf16": (first_layer, matrices.plain)}

    right = matmul_calls._contenders
    monkeypatch.setattr(matmul_calls, "_contenders", with_a_wrong_one)
    ticks = itertools.count()
    given = {"effort": CPU, "clock": lambda: float(next(ticks)), "scratch": tmp_path, "shared": Shared()}
    context = Context(device=jax.devices()[0], found={}, toy=True, **given)
    record = matmul.measure(matmul.cases(toy=True)[0], context)
    assert record["status"] == "measured" and record["peers"]["dequantised"]["status"] == "measured"
    assert record["peers"]["bf16"]["status"] == "failed" and "more than" in record["peers"]["bf16"]["reason"]


def test_the_table_has_a_line_for_every_case_and_the_reason_of_those_without_figures():
    found = {
        "ceilings": {
            "copy": {
                "status": "measured",
                "unit": "bytes",
                "rate_per_s": 3e12,
                "datasheet_fraction": 0.9,
                "ways": {"a": {"median_s": 1.0}, "b": {"median_s": 0.5}},
            },
            "matmul_fp8": {"status": "failed", "reason": "no units"},
        }
    }
    lines = list(tables(found))
    assert "3.00 TB/s" in lines[2] and lines[2].endswith(" b")
    assert lines[3].split() == ["matmul_fp8", "failed:", "no", "units"]


def test_the_toy_goes_end_to_end_and_resumes(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(step_ready, "DrawnOnDevices", RandomTensors)  # whose programs take a CPU long to compile
    out = tmp_path / "toy.json"
    asked = ["h100.py", "--toy", "--parts=ceilings,attention,matmul,step", f"--out={out}"]
    asked.append("--cases=copy,toy_prefill_t8*,toy_down_fp8*,toy_prefill_t64")
    assert h100.main(asked) == 0
    content = json.loads(out.read_text())
    assert all(record["status"] == "measured" for cases in content["parts"].values() for record in cases.values())
    stepped = content["parts"]["step"]["toy_prefill_t64"]
    assert stepped["tokens_per_s"] * stepped["time"]["median_s"] == pytest.approx(64)
    assert stepped["copy_fraction"] > 0 and stepped["matmul_fraction"] is None  # a ceiling that was not asked for
    assert not content["runs"][0]["absolute_times_count"]
    capsys.readouterr()
    assert h100.main([*asked, "--resume"]) == 0
    again = json.loads(out.read_text())
    assert again["parts"] == content["parts"] and len(again["runs"]) == 2
    assert "toy_prefill_t64" in capsys.readouterr().out


def test_toys_are_of_every_kind_that_the_real_ones_are():
    def kinds(cases):
        return {(case.kind, case.weights, case.kv) for case in cases}

    missing = kinds(catalogue()) - kinds(toy_catalogue())
    assert missing <= {("prefill", "int4", "bf16"), ("decode", "int4", "fp8")}  # kinds together, each is there


def test_the_usual_parts_are_those_of_the_issue():
    assert USUAL == ("ceilings", "attention", "matmul", "step", "replay") and set(USUAL) <= set(PARTS)
