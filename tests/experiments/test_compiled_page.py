"""docs/compile.md is what its figures give."""

from experiments import compiled_page


def test_the_page_is_what_its_figures_give():
    assert compiled_page.PAGE.read_text() == compiled_page.page()


def test_every_figure_that_is_committed_is_on_the_page():
    found = {path.name for path in compiled_page.FOLDER.iterdir()}
    wanted = {f"{name}.json" for name in compiled_page.CONFIGS}
    wanted |= {f"fits_{name}.{kind}" for name in compiled_page.SURFACES for kind in ("json", "png")}
    assert found == wanted
