"""docs/h100_steps.md is what its figures give, and its figures are of the steps and candidates that there are."""

import json

from experiments import compile_steps, steps_page
from experiments.bench.parts.flags import SHIPPED


def test_the_page_is_up_to_date(capsys):
    assert steps_page.main(["steps_page.py", "--check"]) == 0, capsys.readouterr()


def test_every_program_is_in_the_figures_with_the_options_of_its_candidate():
    found = json.loads(steps_page.FIGURES.read_text())["programs"]
    wanted = list(compile_steps.programs())
    assert [(each["step"], each["program"], each["candidate"]) for each in found] == [
        (each.step.name, each.program, each.candidate) for each in wanted
    ]
    assert all(each["options"] == dict(compile_steps.CANDIDATES[each["candidate"]]) for each in found)


def test_no_step_as_it_is_shipped_copies_weights_or_waits_but_to_go_on_with_a_loop():
    for each in json.loads(steps_page.FIGURES.read_text())["programs"]:
        if each["candidate"] == SHIPPED:
            assert each["layer_copies"] == 0
            assert each["host"]["waits"] == (each["steps"] + 1 if each["program"] == "decode_loop" else 0)


def test_a_pattern_that_names_nothing_is_one_message(capsys):
    assert compile_steps.main(["compile_steps.py", "--out=x.json", "--only=9b*"]) == 2
    assert "8b_decode_b1_s1024+shipped" in capsys.readouterr().err
