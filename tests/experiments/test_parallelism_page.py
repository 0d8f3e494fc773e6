"""docs/parallelism.md is what its figures give."""

from experiments import parallelism_page


def test_the_page_is_what_its_figures_give():
    assert parallelism_page.PAGE.read_text() == parallelism_page.page()


def test_every_figure_that_is_committed_is_on_the_page():
    assert {path.stem for path in parallelism_page.FOLDER.iterdir()} == set(parallelism_page.COMPILED)
