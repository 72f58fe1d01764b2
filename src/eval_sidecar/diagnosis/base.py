"""What a check says, and which versions of libraries work."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class Mark(str, enum.Enum):
    """How a check came out."""

    WORKS = "works"
    """Found, and does what it must."""
    ABSENT = "absent"
    """Not there, and not needed."""
    LIMITED = "limited"
    """The work goes on without it, but not as well."""
    BROKEN = "broken"
    """Needed, and does not work."""


@dataclass(frozen=True)
class Finding:
    """One line of what `doctor` says.

    Attributes:
        name: What was looked at, a word or two.
        mark: How it came out.
        found: What was found.
        advice: What to do; empty if there is nothing to do.
    """

    name: str
    mark: Mark
    found: str
    advice: str = ""


#: As pyproject.toml has them, which is for pip; a test compares the two.
REQUIREMENTS = {
    "torch": ">=2.4",
    "transformers": ">=4.51",
    "wandb": ">=0.19.10,!=0.24.0,!=0.27.1,!=0.27.2",
    "submitit": ">=1.5",
}


def unmet(library: str, version: str) -> str:
    """Return the part of a library's requirement that a version does not meet; empty if it meets all."""
    for part in filter(None, REQUIREMENTS.get(library, "").split(",")):
        operator, wanted = part[:2], _release(part[2:])
        is_met = _release(version) >= wanted if operator == ">=" else _release(version) != wanted
        if not is_met:
            return part
    return ""


def _release(version: str) -> tuple[int, ...]:
    """Return the numbers of a version, without zeros at the end: 2.13.0+cpu is (2, 13)."""
    found = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(number) for number in found.group().split(".")] if found else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)
