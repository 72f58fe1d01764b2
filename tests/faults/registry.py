"""The kinds of faults by name."""

from __future__ import annotations

from typing import Callable

from faults.world import World

Kind = Callable[[World], None]
KINDS: dict[str, Kind] = {}


def kind(name: str) -> Callable[[Kind], Kind]:
    """Enter a function as a kind: it breaks something; ending well is the trial's business."""

    def enter(function: Kind) -> Kind:
        KINDS[name] = function
        return function

    return enter
