"""Takes a ``metrics.json`` on disk into the ledger: one way, for watching and for uploading.

It saves nothing; the caller says where a result comes from.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, NamedTuple, Optional, Union

from eval_sidecar.errors import MissingResultError
from eval_sidecar.ledger.entry import Entry
from eval_sidecar.ledger.results import read_result
from eval_sidecar.types import Origin, Result, Stamp


class Intake(NamedTuple):
    """A result on disk that is new to the ledger.

    Attributes:
        result: Its numbers.
        origin: What they were made of.
        is_new: Whether the numbers differ from the known ones.
    """

    result: Result
    origin: Origin
    is_new: bool


def is_news(entry: Entry, found: Optional[Stamp]) -> bool:
    """Return whether a file exists and has changed since its result was taken.

    A file that could not be read is read again. A failed evaluation does not make the result that was there
    before it new.
    """
    is_unread = entry.failure is not None and entry.failure.is_unread_result
    return found is not None and (is_unread or entry.result is None or entry.result.stamp != found)


def take_in(
    entry: Entry, path: Union[str, Path], origin_of: Callable[[Result], Optional[Origin]]
) -> Optional[Intake]:
    """Read a result that `is_news`.

    Args:
        entry: What the ledger knows of the checkpoint.
        path: Its ``metrics.json``.
        origin_of: Returns the origin of a result; None if it is not of this checkpoint.

    Returns:
        None if the file is now missing, or its numbers are not of this checkpoint.

    Raises:
        ResultError: if it cannot be read.
    """
    try:
        result = read_result(path)
    except MissingResultError:
        return None
    origin = origin_of(result)
    return None if origin is None else Intake(result, origin, not entry.has_numbers_of(result))
