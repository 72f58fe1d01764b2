"""Whole sessions in a terminal emulator; `scripts/sessions --show` prints what a person sees in them."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("pyte")
from sessions import SESSIONS, replay

#: What these show does not depend on the width; `scripts/sessions` replays them at both.
_ONCE = ("background_instances", "no_key_for_several_models", "a_closed_window", "plain_terminals_and_pipes")


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("name", SESSIONS)
def test_the_screen_is_as_it_should_be(tmp_path: Path, name: str, columns: int) -> None:
    if name in _ONCE and columns != 80:
        pytest.skip("replayed at 80 columns")
    if name == "no_key_for_several_models":
        pytest.importorskip("wandb")
    replay(name, columns, tmp_path)
