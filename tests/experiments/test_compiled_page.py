"""docs/compile.md is what its figures give."""

from experiments import compiled_page


def test_the_page_is_what_its_figures_give():
    assert compiled_page.PAGE.read_text() == compiled_page.page()


def test_every_figure_that_is_committed_is_on_the_page():
    found = {path.name for path in compiled_page.FOLDER.iterdir()}
    wanted = {f"{name}.json" for name in compiled_page.CONFIGS}
    wanted |= {f"fits_{name}.{kind}" for name in compiled_page.SURFACES for kind in ("json", "png")}
    assert found == wanted


def test_check_says_whether_the_page_is_out_of_date(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(compiled_page, "PAGE", tmp_path / "compile.md")
    assert compiled_page.main(["compiled_page", "--check"]) == 1
    assert compiled_page.main(["compiled_page"]) == 0 == compiled_page.main(["compiled_page", "--check"])
    compiled_page.PAGE.write_text("old")
    assert compiled_page.main(["compiled_page", "--check"]) == 1 and not capsys.readouterr().err
    assert compiled_page.main(["compiled_page", "--chek"]) == 2
