"""docs/textbook.md is what the cost model says, to the letter."""

from experiments import textbook


def test_the_page_is_what_the_code_computes():
    assert textbook.PAGE.read_text() == textbook.page(), "run python experiments/textbook.py"


def test_the_command_writes_the_page(tmp_path):
    out = tmp_path / "page.md"
    assert textbook.main(["textbook.py", f"--out={out}"]) == 0
    assert out.read_text() == textbook.page()


def test_a_folder_that_does_not_exist_is_one_line(tmp_path, capsys):
    assert textbook.main(["textbook.py", f"--out={tmp_path / 'no' / 'page.md'}"]) == 2
    assert capsys.readouterr().err.startswith("error: --out=")


def test_figures_are_those_of_the_book_and_of_plain_arithmetic():
    """Written out here, so that the page cannot agree with a wrong function."""
    page = textbook.page()
    weights_and_kv = (
        68_451_041_280 + 2 * 8192 * 128256 + 80 * 2 * 8192 * 2 + 8192 * 2
    )  # int8 matrices, bf16 head, norms
    weights_and_kv += 32 * 8192 * 2  # and the rows of the embedding
    weights_and_kv += 32 * 8192 * 2 * 80 * 8 * 128
    for figure in (
        f"{2 * 40 * 40 * 128 * 2 * 4096:,} bytes, 3.125 GiB",
        f"{weights_and_kv / 1e9:.1f} GB",
        f"{weights_and_kv / (8 * 819e9) * 1e3:.1f} ms",
        f"{197e12 / (2 * 819e9) * 2:.1f}; {197e12 / (2 * 819e9):.1f}",
        f"{61 * (512 + 64) * 2 / 1e3} kB",
    ):
        assert figure in page
