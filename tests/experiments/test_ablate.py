"""The table of ablations: a row for every config, its turned lines beside it, on the traces that can show it."""

import pytest

from experiments import ablate


def test_every_config_but_the_default_turns_something():
    names = ablate.names_of(ablate.FOLDER)
    assert names[0] == ablate.DEFAULT and len(names) > 30
    turned = {name: ablate.turned(name) for name in names}
    assert [name for name, lines in turned.items() if not lines] == [ablate.DEFAULT]


def test_a_row_says_what_its_config_turns():
    assert ablate.turned("static") == "`Engine.batching = 'static'`"
    assert "`Engine.num_pages" in ablate.turned("few_pages_swap") and "'swap'" in ablate.turned("few_pages_swap")


@pytest.fixture(scope="module")
def page(shared, tmp_path_factory) -> str:
    """The page of three configs."""
    path = tmp_path_factory.mktemp("ablations") / "ablations.md"
    assert ablate.main(["ablate", "--only=default,queue_limit,prefix_lru", f"--out={path}"]) == 0
    return path.read_text()


def _rows(page: str, trace: str) -> dict[str, list[str]]:
    """The cells of a trace's table, by config."""
    part = page.split(f"## {trace}\n")[1].split("\n## ")[0]
    lines = [line.strip("|").split("|") for line in part.splitlines() if line.startswith("| `")]
    return {cells[0].strip(" `"): [cell.strip() for cell in cells] for cells in lines}


def test_prefix_caches_have_rows_only_where_the_log_has_prefixes(page):
    assert list(_rows(page, "Conversation")) == ["default", "queue_limit"]
    assert list(_rows(page, "Coding agents")) == ["default", "prefix_lru", "queue_limit"]


def test_rows_show_what_their_knob_does(page):
    column = {name: place + 2 for place, name in enumerate(ablate.COLUMNS)}
    agents, chat = _rows(page, "Coding agents"), _rows(page, "Conversation")
    assert float(agents["prefix_lru"][column["from cache"]].strip("%")) > 80
    assert agents["default"][column["from cache"]] == "0.0%"
    assert int(chat["queue_limit"][column["refused"]].replace(",", "")) > 0 == int(chat["default"][column["refused"]])


def test_a_config_that_is_not_there_is_named_with_the_nearest(capsys):
    assert ablate.main(["ablate", "--only=statick"]) == 2
    assert "static" in capsys.readouterr().err
