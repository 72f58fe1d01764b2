"""Scratch repositories for the tests of the command line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox import Repository


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    """A repository whose path is as awkward as paths get: blanks, both quotes, a dollar, a hash, a star."""
    made = Repository(tmp_path / 'Li Wei\'s "GenRec" $HOME #1 [a-z]*')
    yield made
    made.clean_up()


@pytest.fixture
def plain_repository(tmp_path: Path) -> Iterator[Repository]:
    """A repository at a path that can be written into a command line without quotes."""
    made = Repository(tmp_path / "GenRec")
    yield made
    made.clean_up()
