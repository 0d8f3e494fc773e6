"""docs/h100.md and README.md's table are what the figures of an H100 give, or say that there are none."""

import json
from pathlib import Path

import pytest

from experiments.bench import h100_goals, h100_page
from experiments.bench.h100_results import Results, resumed
from experiments.bench.parts.step_cases import EIGHT, catalogue
from experiments.bench.results_file import FAILED, MEASURED, SKIPPED

TOY = Path(__file__).parents[2] / "experiments" / "bench" / "results" / "h100_cpu_toy.json"


def step_record(name: str, **figures) -> dict:
    """A step of the catalogue, with these figures."""
    case = next(case for case in catalogue() if case.name == name)
    return case.sizes() | {"status": MEASURED, "host_gap_share": 0.01} | figures


def verdict(found: dict, words: str) -> h100_goals.Verdict:
    """The verdict on the goal of which these are words."""
    return next(each for each in h100_goals.judged(found) if words in each.goal.what)


def test_the_page_and_the_readme_are_what_the_figures_give():
    results, readme = resumed(h100_page.FIGURES), h100_page.README.read_text()
    assert h100_page.PAGE.read_text() == h100_page.page(results)
    assert h100_page.with_block(readme, h100_page.readme_block(results)) == readme


def test_without_figures_the_page_says_so_and_has_none():
    text = h100_page.page(Results(None))
    assert "Not measured yet: no H100 was available" in text and h100_page.COMMAND in text
    assert all("not measured" in line for line in text.splitlines() if "| wanted" not in line and "at least" in line)
    assert "Not measured yet" in h100_page.readme_block(Results(None))


def test_a_toys_page_has_every_part_and_says_that_it_is_a_toy():
    results = resumed(TOY)
    text, content = h100_page.page(results), json.loads(TOY.read_text())
    assert "These are no figures of the chip" in text and "Not measured yet" not in text
    assert content["parts"]
    for part, cases in content["parts"].items():
        assert f"## {part.capitalize()}: " in text
        assert all(name.replace("_", "\\_") in text for name in cases)


def test_a_goal_is_met_by_its_worst_case_and_by_no_case_of_another():
    found = {
        "step": {
            "8b_decode_b32_s4096": step_record("8b_decode_b32_s4096", mbu=0.80),
            "8b_decode_b64_s4096": step_record("8b_decode_b64_s4096", mbu=0.76),
            "8b_decode_b32_s1024": step_record("8b_decode_b32_s1024", mbu=0.10),
        }
    }
    said = verdict(found, "MBU of an 8B bf16 decode step, 32 to 128 rows")
    assert (said.met, said.worst, said.worst_case, said.cases) == (True, 0.76, "8b_decode_b64_s4096", 2)
    assert verdict(found, "8B bf16 decode step, 1 row").met is None
    found["step"]["8b_decode_b64_s4096"]["mbu"] = 0.74
    assert verdict(found, "32 to 128 rows").met is False


def test_a_case_that_failed_speaks_against_a_goal_and_one_that_does_not_fit_says_nothing():
    good = step_record("8b_decode_b32_s4096", mbu=0.80)
    bad = step_record("8b_decode_b128_s4096") | {"status": SKIPPED, "reason": "does not fit"}
    found = {"step": {"good": good, "bad": bad}}
    assert verdict(found, "32 to 128 rows").met is True
    bad["status"] = FAILED
    assert verdict(found, "32 to 128 rows").met is False
    assert any(line.startswith("SHORT") and "bad failed" in line for line in h100_goals.goal_lines(found))


@pytest.mark.parametrize(("gap", "met"), [(0.02, True), (0.04, False)])
def test_of_a_host_gap_less_is_better(gap, met):
    found = {"step": {"one": step_record("8b_decode_b1_s1024", mbu=0.9, host_gap_share=gap)}}
    assert verdict(found, "Host gap").met is met


def test_the_slowest_peer_does_not_hide_the_fastest():
    time = {"time": {"median_s": 1.0}}
    record = {"status": MEASURED, "kind": "decode", "kv": "bf16", "rows": 32, "longest_tokens": 2048, "model": EIGHT}
    peers = {name: {"status": MEASURED, "time": {"median_s": seconds}} for name, seconds in (("a", 2.0), ("b", 0.9))}
    found = {"attention": {"one": record | time | {"copy_fraction": 0.9, "peers": peers}}}
    assert verdict(found, "the fastest other attention").worst == pytest.approx(0.9)
    assert verdict(found, "of the measured copy").met is True


def test_check_says_whether_either_is_out_of_date(monkeypatch, tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text("# A\n<!-- h100: by a command -->\nold\n<!-- end of h100 -->\nb\n")
    monkeypatch.setattr(h100_page, "PAGE", tmp_path / "h100.md")
    monkeypatch.setattr(h100_page, "README", readme)
    assert h100_page.main(["h100_page", "--check"]) == 1
    assert h100_page.main(["h100_page"]) == 0 == h100_page.main(["h100_page", "--check"])
    assert readme.read_text().startswith("# A\n<!-- h100: by a command -->\nNot measured yet")
    assert readme.read_text().endswith("<!-- end of h100 -->\nb\n")
    readme.write_text(readme.read_text().replace("Not measured yet", "Measured"))
    assert h100_page.main(["h100_page", "--check"]) == 1
    assert "README.md not what the figures give" in capsys.readouterr().out
