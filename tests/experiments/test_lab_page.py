"""The laboratory's page: made of findings alone, with what they say and nothing that they do not."""

import json
from pathlib import Path

import pytest

from experiments import lab_page
from nanoserve.analysis.pages.content import Page, as_json
from tests.analysis.pages.factories import answers


@pytest.fixture
def report(tmp_path) -> Path:
    """A folder as analyze.py leaves it."""
    written = as_json(Page(title="x", scope=(), findings=answers()))
    (tmp_path / "findings.json").write_text(json.dumps(written, allow_nan=False))
    return tmp_path


@pytest.fixture
def docs(tmp_path, monkeypatch) -> Path:
    folder = tmp_path / "docs"
    folder.mkdir()
    monkeypatch.setattr(lab_page, "FOLDER", folder / "laboratory")
    monkeypatch.setattr(lab_page, "PAGE", folder / "laboratory.md")
    return folder


def test_the_page_has_what_was_found_and_its_pictures(report, docs, capsys):
    assert lab_page.main(["lab_page.py", f"--week={report}", f"--conversation={report}"]) == 0
    text = (docs / "laboratory.md").read_text()
    found = {finding.key: finding for finding in answers()}
    assert found["failures.kinds"].title in text and "0 held-out requests fail instead of 28" in text
    pictures = [line.split("](")[1].rstrip(")") for line in text.splitlines() if line.startswith("![")]
    assert pictures and all((docs / picture).stat().st_size > 5000 for picture in pictures)
    assert len(pictures) == len(list((docs / "laboratory").glob("*.png")))


def test_a_page_that_was_changed_by_hand_is_told_from_one_that_was_made(report, docs):
    assert lab_page.main(["lab_page.py", f"--week={report}", f"--conversation={report}"]) == 0
    assert lab_page.main(["lab_page.py", "--check"]) == 0
    (docs / "laboratory.md").write_text("better than it is")
    assert lab_page.main(["lab_page.py", "--check"]) == 1


def test_only_the_findings_of_the_page_are_kept(report, docs):
    lab_page.main(["lab_page.py", f"--week={report}", f"--conversation={report}"])
    for part in lab_page.PARTS:
        kept = {each["key"] for each in json.loads((docs / "laboratory" / f"{part.name}.json").read_text())["findings"]}
        assert kept <= {*part.said, *part.drawn}


def test_a_folder_without_a_report_is_one_line(docs, tmp_path, capsys):
    assert lab_page.main(["lab_page.py", f"--week={tmp_path}", f"--conversation={tmp_path}"]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}")


def test_the_committed_page_is_what_the_committed_findings_give():
    assert lab_page.page(lab_page.FOLDER) == lab_page.PAGE.read_text()


def test_the_committed_findings_prove_what_the_laboratory_is_for():
    week, conversation = (lab_page.findings(lab_page.FOLDER / f"{part.name}.json") for part in lab_page.PARTS)
    assert week["proof.failures"].values["cut_share"] >= 0.9 and week["proof.failures"].values["cut_low_share"] > 0
    assert week["proof.goodput"].values["change_low_share"] > 0
    assert conversation["proof.goodput"].values["change_low_share"] > 0
