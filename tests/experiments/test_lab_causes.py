"""The count of hits and false alarms: the page says what the rows say, and rows that are there are not made again."""

import json

import pytest

from experiments import lab_causes
from experiments.lab_causes import FIRST_SEED
from experiments.lab_causes_page import HEALTHY, PLANTED, TOGETHER, false_alarms, is_hit, page


def row(config, named, seed=FIRST_SEED, lost=0.1):
    causes = dict.fromkeys(PLANTED.values(), 0.0) | dict.fromkeys(named, 0.05)
    return {
        "config": config,
        "seed": seed,
        "requests": 100,
        "failed": 0.01,
        "lost": lost,
        "named": named,
        "scores": causes,
        "explained": causes,
    }


RIGHT = [row(HEALTHY, []), *(row(config, [cause], lost=0.15) for config, cause in PLANTED.items())]


def figures(rows):
    outcome = {"requests": 9, "lost": 0.25, "failed": 0.05, "ttft_p95_s": 1.5, "latency_p95_s": 9.0}
    replay = {"cause": "memory_leak", "bindings": {"Faults.leak_every": None}, "explained": 0.125}
    return {"days": 3, "rows": rows, "replays": [replay | {"before": outcome, "after": outcome | {"lost": 0.2}}]}


@pytest.mark.parametrize(
    ("config", "named", "hit", "alarms"),
    [
        (HEALTHY, [], True, 0),
        (HEALTHY, ["memory_leak"], False, 1),
        ("leak", ["memory_leak"], True, 0),
        ("leak", ["memory_leak", "slow_replica"], True, 1),
        ("leak", ["slow_replica", "memory_leak"], False, 1),
        ("leak", [], False, 0),
        (TOGETHER, ["slow_interval", "contiguous_allocation"], True, 0),
    ],
)
def test_a_hit_is_the_planted_cause_first_and_an_alarm_what_was_not_planted(config, named, hit, alarms):
    assert is_hit(row(config, named)) is hit
    assert len(false_alarms(row(config, named))) == alarms


def test_the_page_counts_what_the_rows_say():
    text = page(figures([*RIGHT, row("leak", ["slow_replica"], seed=1001)]))
    assert "first in 5 of 6 runs" in text
    assert "names none in 1 of 1" in text
    assert "False alarms in all of these: 1." in text
    assert "| `leak` | memory_leak | 1 of 2 | 1 |" in text


def test_the_same_seed_in_order_says_what_a_cause_costs():
    assert "| `leak` | 1.00% (1.00% to 1.00%) | 15.00% (15.00% to 15.00%) | 5.00% (5.00% to 5.00%) |" in page(
        figures(RIGHT)
    )


def test_rows_that_are_there_are_not_made_again(tmp_path, monkeypatch):
    made = []

    def pretended(name, seed, days):
        made.append((name, seed, days))
        return row(name, [], seed)

    monkeypatch.setattr(lab_causes, "diagnosed", pretended)
    kept = tmp_path / "page.json"
    kept.write_text(json.dumps(figures([each for each in RIGHT if each["config"] != "leak"])))
    arguments = ["lab_causes.py", "--seeds=1", f"--out={tmp_path / 'page.md'}"]
    assert lab_causes.main(arguments) == 0
    assert made == [("leak", FIRST_SEED, 3), (TOGETHER, FIRST_SEED, 3)]
    assert lab_causes.main(arguments) == 0
    assert len(made) == 2
    assert len(json.loads(kept.read_text())["rows"]) == 7


def test_the_page_has_replays_of_causes():
    text = page(figures(RIGHT))
    assert "| as it is |  | 25.00% | 5.00% | 1.50 | 9.00 |" in text
    assert "| without memory_leak: `Faults.leak_every = None` | 12.50% | 20.00% | 5.00% | 1.50 | 9.00 |" in text


def test_rows_of_other_days_do_not_count(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(lab_causes, "diagnosed", lambda name, seed, days: made.append(name) or row(name, [], seed))
    (tmp_path / "page.json").write_text(json.dumps({"days": 2, "rows": RIGHT}))
    lab_causes.main(["lab_causes.py", "--seeds=1", "--only=leak", f"--out={tmp_path / 'page.md'}"])
    assert made == ["leak"]


def test_a_misspelt_config_is_an_error_of_the_user(capsys):
    assert lab_causes.main(["lab_causes.py", "--only=leek"]) == 2
    assert "Did you mean 'leak'?" in capsys.readouterr().err


def test_a_run_is_diagnosed_from_its_files():
    found = lab_causes.diagnosed("leak", seed=7, days=1)
    assert found["requests"] > 1000
    assert set(found["scores"]) == {*PLANTED.values(), "few_slots"}
