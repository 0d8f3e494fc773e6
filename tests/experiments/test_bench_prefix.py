"""The benchmark of the prefix cache: what it counts by hand, and the file it writes."""

import json

import pytest

from experiments.bench import prefix


@pytest.fixture
def trace(tmp_path):
    """Three prompts of blocks of 4: the second begins like the first, the third repeats the second."""
    path = tmp_path / "hashed.jsonl"
    rows = [(10, [1, 2, 3]), (12, [1, 2, 4]), (12, [1, 2, 4])]
    path.write_text(
        "".join(
            json.dumps({"timestamp": place, "input_length": length, "output_length": 1, "hash_ids": ids}) + "\n"
            for place, (length, ids) in enumerate(rows)
        )
    )
    return path


def run(trace, *more: str) -> tuple[int, list[dict]]:
    out = trace.parent / "figures.json"
    code = prefix.main(["prefix", f"--trace={trace}", f"--out={out}", "--model=tiny-llama", *more])
    return code, json.loads(out.read_text())["rows"] if out.exists() else []


def test_shares_are_what_one_counts_by_hand(trace):
    code, rows = run(trace, "--pages=3,4")
    assert code == 0
    unlimited = [row for row in rows if row["pages"] is None]
    assert [row["evicted_first"] for row in unlimited] == ["lru", "cost"]
    for row in unlimited:
        assert row["blocks"] == pytest.approx((2 + 3) / 9)
        assert row["tokens"] == pytest.approx((8 + 12) / 34)
        assert row["tokens_beyond_first"] == pytest.approx((4 + 8) / (34 - 12))
        assert row["flops"] > row["blocks"] - 0.1
    assert rows[0]["pages"] == 3 and rows[0]["blocks"] <= unlimited[0]["blocks"]


@pytest.mark.parametrize("pages", ["2", "many", "0"])
def test_a_cache_that_cannot_hold_a_prompt_is_refused(trace, pages, capsys):
    code, rows = run(trace, f"--pages={pages}")
    assert code == 2 and not rows
    assert "at least 3" in capsys.readouterr().err


def test_a_trace_without_hashes_is_refused(tmp_path, capsys):
    path = tmp_path / "plain.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n")
    assert prefix.main(["prefix", f"--trace={path}", f"--out={tmp_path / 'out.json'}"]) == 2
    assert "no prefix hashes" in capsys.readouterr().err
