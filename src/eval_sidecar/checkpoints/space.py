"""Room on the disk: sizes and shares as flags give them, and how much of it pins may take."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Union

from eval_sidecar.errors import UsageError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

#: A number of bytes, or a share between 0 and 1.
Amount = Union[int, float]

#: Free space to leave to the training, in units of the largest checkpoint that it has written so far, with
#: its optimizer: the next one must fit before anything can be given up for it.
_ROOM = 1.5


def parse_amount(text: str, *, most: float = 1.0) -> Amount:
    """Read ``20G``, ``500M``, ``1048576`` or ``5%``; a share must be below `most`.

    Raises:
        UsageError: if it is neither a size nor a share.
    """
    if text.endswith("%"):
        try:
            share = float(text[:-1]) / 100
        except ValueError:
            share = -1.0
        if 0 <= share < most:
            return share
    elif match := _SIZE.fullmatch(text.strip()):
        return int(float(match[1]) * _UNITS[match[2].upper()])
    raise UsageError(f"{text!r}: give a size such as 20G or a share such as 5%")


@dataclass(frozen=True)
class Limits:
    """How much disk space pins may keep in use. What counts is pins whose original has been deleted: the
    others share their data with it.

    Attributes:
        floor: Free space below which pins are given up: a size, or a share of the disk.
        most: How many pins there may be; 0 means any number.
        size: How large all of them may be: a size, or a share of what is free without them.
    """

    floor: Amount = 0.01
    most: int = 0
    size: Amount = 0.5


@dataclass(frozen=True)
class Room:
    """Free and all bytes of a disk."""

    free: int
    total: int

    @classmethod
    def on_disk_of(cls, folder: Path) -> Room:
        """Ask the file system, which may need a while to count in what was just deleted."""
        usage = shutil.disk_usage(folder)
        return cls(usage.free, usage.total)

    def lack(self, floor: Amount, largest: int) -> str:
        """Say that there is too little free space, or nothing if there is enough.

        Args:
            floor: As in `Limits`.
            largest: Bytes of the largest checkpoint that this training has written, with its optimizer.
        """
        asked = floor * self.total if isinstance(floor, float) else floor
        if self.free < asked:
            return f"free space is below --min-free-space ({as_text(self.free)} of {as_text(asked)})"
        if self.free < _ROOM * largest:
            return (
                f"free space ({as_text(self.free)}) is below {_ROOM:g} times the training's largest"
                f" checkpoint ({as_text(largest)})"
            )
        return ""

    def excess(self, limits: Limits, pins: int, size: int) -> str:
        """Say that pins whose original is gone are too many or too large, or nothing if they are not."""
        if limits.most and pins > limits.most:
            return f"there are more pins than --max-pins ({limits.most})"
        allowed = limits.size
        if isinstance(allowed, float):
            allowed = allowed * (self.free + size)
        if size > allowed:
            return f"pins take more than --max-pin-size ({as_text(size)} of {as_text(allowed)})"
        return ""


def as_text(size: float) -> str:
    """Return a number of bytes for people."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
