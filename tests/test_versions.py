"""scripts/test-versions tries the ends of every library, and is red when a row is."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import versions
from versions import GREEN, RED, ROWS, SKIPPED, Row


def row(tmp_path: Path, test: str, *, version: str | None = "floor", python: str | None = None) -> Row:
    """A row on the environment that is there already, with one test file."""
    file = tmp_path / "test_it.py"
    file.write_text(test)
    return Row("a row", "click", version, (str(file),), python)


def test_both_ends_of_both_libraries_are_tried_at_every_change() -> None:
    ends = {(row.library, row.version) for row in ROWS if row.end}
    assert ends == {("transformers", "floor"), ("transformers", None), ("wandb", "floor"), ("wandb", None)}


@pytest.mark.parametrize(
    ("test", "state", "text"),
    [
        ("def test_a(): pass\n", GREEN, "1 passed"),
        ("def test_a(): pass\ndef test_b(): assert 0\n", RED, "1 failed, 1 passed"),
        ("import pytest\ndef test_a(): pytest.skip('no')\n", RED, "0 failed, 0 passed, 1 skipped"),
    ],
)
def test_a_row_is_green_only_if_tests_ran_and_all_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, test: str, state: str, text: str
) -> None:
    # The environment of these tests stands for the row's own, which pip would fill.
    folder = tmp_path / "environment" / "bin"
    folder.mkdir(parents=True)
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(versions, "environment", lambda row, version: python)
    outcome = versions.try_row(row(tmp_path, test))
    assert outcome.state == state
    assert outcome.text.startswith(text)


def test_a_python_that_is_not_here_leaves_its_row_out_and_a_release_that_cannot_be_had_does_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(versions, "FOLDER", tmp_path / "environments")
    missing = versions.try_row(row(tmp_path, "", python="3.99"))
    assert (missing.state, missing.text) == (SKIPPED, "no Python 3.99 here")

    def unreachable(row: Row, version: str) -> Path:
        raise versions.Unavailable("pip cannot install click: no network")

    monkeypatch.setattr(versions, "environment", unreachable)
    assert versions.try_row(row(tmp_path, "")).state == RED
    monkeypatch.setattr(versions, "release", lambda row: "99")
    assert versions.try_row(row(tmp_path, "", version=None)).state == SKIPPED


def test_the_document_is_written_only_when_every_row_is_green(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    document = tmp_path / "compatibility.md"
    document.write_text("head\n<!-- table -->\nold\n<!-- end of table -->\ntail\n")
    monkeypatch.setattr(versions, "DOCUMENT", document)
    monkeypatch.setattr(versions, "ROOT", tmp_path)
    state = RED

    def tried(row: Row, *, same_is_enough: bool) -> versions.Outcome:
        return versions.Outcome(row, state, "Python 3.11.7", "1 passed", 1.0)

    monkeypatch.setattr(versions, "try_row", tried)
    assert versions.main(["--write"]) == 1
    assert "old" in document.read_text()
    state = GREEN
    assert versions.main(["--write", "--only", "wandb"]) == 0
    assert "old" in document.read_text()
    assert versions.main(["--write"]) == 0
    written = document.read_text()
    assert written.startswith("head\n<!-- table -->\nTried on 2")
    assert written.endswith("<!-- end of table -->\ntail\n")
    assert all(row.name in written for row in ROWS)
    assert "old" not in written
