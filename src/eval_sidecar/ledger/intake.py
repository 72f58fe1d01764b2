"""From a ``metrics.json`` on disk into the ledger: one way, for watching and for uploading.

It saves nothing; where a result comes from is for the caller to say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Callable, NamedTuple, Optional, Union

from eval_sidecar.errors import MissingResultError
from eval_sidecar.ledger.entry import Entry
from eval_sidecar.ledger.results import read_result
from eval_sidecar.types import Origin, Result, Stamp


class Intake(NamedTuple):
    """A result on disk that the ledger does not know as it is.

    Attributes:
        result: Its numbers.
        origin: What they are of.
        is_new: Whether they are other numbers than those that are known.
    """

    result: Result
    origin: Origin
    is_new: bool


def is_news(entry: Entry, found: Optional[Stamp]) -> bool:
    """Return whether a file is there and is not the one that is known.

    One that could not be read is read again: it may be another's now. A failed evaluation makes no news of
    the result that was there before it.
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
        origin_of: Says what numbers are of; None if not of this checkpoint.

    Returns:
        None if the file is missing by now, or its numbers are not of this checkpoint.

    Raises:
        ResultError: if it cannot be read.
    """
    try:
        result = read_result(path)
    except MissingResultError:
        return None
    origin = origin_of(result)
    return None if origin is None else Intake(result, origin, not entry.has_numbers_of(result))
