"""Tells whether a file or folder has changed, at the cost of one stat."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Callable, Optional, Union

from eval_sidecar.errors import CheckpointError, ResultError
from eval_sidecar.paths import METRICS
from eval_sidecar.types import Stamp, step_of

#: Of a folder: inode, mtime and ctime in ns.
FolderStamp = tuple[int, int, int]


def folder_stamp(folder: Path) -> Optional[FolderStamp]:
    """Return the stamp of a folder, which changes if it is replaced or names in it change.

    None if it is missing or cannot be checked.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116 - one for each checkpoint in each pass
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def stamp(path: Union[str, Path]) -> Optional[Stamp]:
    """Return the stamp of a file, or None if it is missing.

    Raises:
        ResultError: if it cannot be checked.
    """
    try:
        status = os.stat(path)  # noqa: PTH116 - a Path costs more than the stat, and there are many
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise ResultError(f"{path}: cannot be checked ({error.strerror})") from error
    return _stamp_of(status)


def _stamp_of(status: os.stat_result) -> Stamp:
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


#: A pass looks at every metrics.json this often, in seconds. Rewriting one in place does not change its
#: folder; a result of a new checkpoint does.
CLOSE_LOOK_SECONDS = 600.0
#: Stamp of a file that cannot be checked, for any reason; no file has it.
UNKNOWN: Stamp = (-1, -1, -1)


#: Inode, size and mtime (ns) of a file of our own.
OwnStamp = tuple[int, int, int]


#: Time resolution of the coarsest file systems, in ns.
_COARSEST_CLOCK = 2 * 10**9


def may_change_unseen(changed: int, now: int) -> bool:
    """Return whether a file has changed so recently that another change may leave its time the same.

    Args:
        changed: Its mtime or ctime in ns.
        now: The time in ns.
    """
    return changed > now - _COARSEST_CLOCK


def list_stamps(folder: Path) -> dict[int, Optional[Stamp]]:
    """Return the stamps of a model's results, without opening them.

    Args:
        folder: The results of one model; it may be missing.

    Returns:
        By step, for every checkpoint that has a folder there: the stamp of its ``metrics.json``, None
        if there is none yet, `UNKNOWN` if it cannot be checked.

    Raises:
        CheckpointError: if the folder cannot be listed.
    """
    try:
        names = os.listdir(folder)  # noqa: PTH208 - names alone, of many folders
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed ({error.strerror})") from error
    prefix, found = f"{folder}/", {}
    for name in names:
        step = step_of(name)
        if step is not None:
            try:
                found[step] = stamp(f"{prefix}{name}/{METRICS}")
            except ResultError:
                found[step] = UNKNOWN
    return dict(sorted(found.items()))


def own_stamp(path: str) -> Optional[OwnStamp]:
    """Return inode, size and mtime (ns) of a file or folder; None if it is missing or cannot be checked."""
    try:
        status = os.stat(path)  # noqa: PTH116 - thousands a pass
    except OSError:
        return None  # opening it later reports what is wrong
    return status.st_ino, status.st_size, status.st_mtime_ns


def settled_mtime(folder: str, now: int) -> Optional[int]:
    """Return a folder's mtime in ns; None if it cannot be checked, or has just changed."""
    found = own_stamp(folder)
    return found[2] if found and not may_change_unseen(found[2], now) else None


class CloseLooks:
    """Tells when to look at every result in a folder: when the folder has changed, and every ten minutes.

    Args:
        folder: The results of one model.
        monotonic: Seconds since some moment.
        clock: Nanoseconds since the epoch, as the file system has it.
    """

    def __init__(
        self,
        folder: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._folder = folder
        self._monotonic = monotonic
        self._clock = clock
        self._last: Optional[float] = None
        self._changed: Optional[int] = None

    def is_due(self) -> bool:
        """Return whether to look now; the caller then looks."""
        now, changed = self._monotonic(), settled_mtime(str(self._folder), self._clock())
        is_old = self._last is None or now - self._last >= CLOSE_LOOK_SECONDS
        if not is_old and changed is not None and changed == self._changed:
            return False
        self._last, self._changed = now, changed
        return True
