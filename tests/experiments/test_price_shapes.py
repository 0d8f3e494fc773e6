"""The benchmark of the cost model: a small run writes what it says, and mistakes are one line."""

import json

from experiments.bench import price_shapes


def test_a_small_run_writes_seconds_of_every_model(tmp_path, capsys):
    out = tmp_path / "result.json"
    assert price_shapes.main(["price_shapes.py", "--shapes=50", "--repetitions=1", f"--out={out}"]) == 0
    report = json.loads(out.read_text())
    assert [row["model"] for row in report["results"]] == [name for name, *_ in price_shapes.SETTINGS]
    assert all(row["shapes"] == 50 and row["best_cpu_s"] > 0 for row in report["results"])
    assert capsys.readouterr().out.count("50 shapes in") == len(price_shapes.SETTINGS)


def test_the_same_shapes_are_drawn_again():
    one, two = price_shapes.shapes(100, seed=0), price_shapes.shapes(100, seed=0)
    assert (one.decode_seqs == two.decode_seqs).all()
    assert one.context_tokens.max() < price_shapes.LIMITS["context_tokens"]


def test_no_shapes_at_all_is_one_line(capsys):
    assert price_shapes.main(["price_shapes.py", "--shapes=0"]) == 2
    assert capsys.readouterr().err.startswith("error: --shapes")
