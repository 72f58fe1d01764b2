"""Logs that stay small: the writer sets one aside when it is full, and a reader follows.

``x.log`` becomes ``x.log.1``, that one ``x.log.2``, and so on; the oldest goes.
"""

from __future__ import annotations

import contextlib
import logging
import os
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Optional, TextIO, Union

from eval_sidecar.system.redaction import without_secrets

log = logging.getLogger(__name__)

#: Size in bytes at which a log is full.
FULL = 10 * 2**20
#: How many full ones are kept.
KEPT = 3

#: Begins each line of ours in an evaluation's log.
OUR_MARK = "=== eval-sidecar: "

#: Device and inode, which a file keeps under any name.
_Identity = tuple[int, int]


def is_full(path: Path) -> bool:
    """Return whether a log should be set aside; one that is missing or cannot be looked at should not."""
    try:
        return path.stat().st_size >= FULL
    except OSError:
        return False


def shift(path: Path) -> None:
    """Rename a log to ``.1``, the ``.1`` before it to ``.2``, and so on; afterwards there is no such log.

    A process that holds it open keeps writing to the same file, under its new name.

    Raises:
        OSError: if a file cannot be renamed.
    """
    names = [path, *_older(path)]
    for older, newer in zip(reversed(names), reversed(names[:-1])):
        if newer.exists():
            newer.replace(older)


class SmallLog(RotatingFileHandler):
    """A log that this process alone writes, of lines that come from another program."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        super().__init__(path, maxBytes=FULL, backupCount=KEPT, encoding="utf-8", errors="backslashreplace")

    def write(self, line: str) -> None:
        """Write one line, without secrets."""
        self.handle(logging.makeLogRecord({"msg": without_secrets(line.rstrip("\n"))}))

    def doRollover(self) -> None:
        """Set the log aside; if that fails, it keeps growing."""
        try:
            super().doRollover()
        except OSError as error:
            self.maxBytes = 0
            log.warning("%s: cannot be renamed (%s), so it keeps growing", self.baseFilename, error.strerror)

    def handleError(self, record: logging.LogRecord) -> None:
        """Drop a line that a full disk does not take; the other program must not wait for space."""

    def close(self) -> None:
        """Close the file, even if what is left to be written finds no space."""
        with contextlib.suppress(OSError):
            super().close()


def rotate_output(path: Path) -> bool:
    """Continue in a new file if this process's standard output and error have filled a log.

    Not with a handler of logging: tracebacks, libraries and children write to the same two descriptors.
    Nothing is lost: until the new file takes over, output goes to the one that is set aside; children that
    inherited it keep writing to it.

    Returns:
        Whether a new file was begun; False if the log is not full or is not where output goes.

    Raises:
        OSError: if that cannot be done; output then still goes to the old file.
    """
    if not is_full(path):
        return False
    full = path.stat()
    ours = [number for number in (1, 2) if os.path.samestat(os.fstat(number), full)]
    if not ours:
        return False
    fresh = path.with_name(f".{path.name}.fresh")
    with fresh.open("ab") as file:
        shift(path)
        # Output moves before the name is taken: a reader that finds the new file has all of the old one.
        for number in ours:
            os.dup2(file.fileno(), number)
        fresh.rename(path)
    return True


class LogReader:
    """Reads a log piece by piece, across rotations; begins with the file that was set aside last.

    Raises:
        FileNotFoundError: if there is no log.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        file = _open(path)
        self._file: TextIO = file
        try:
            self._file = _open(_older(path)[0])
        except FileNotFoundError:
            return
        file.close()

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self,
        kind: Optional[type[BaseException]],
        error: Optional[BaseException],
        trace: Optional[TracebackType],
    ) -> None:
        self._file.close()

    def read(self) -> str:
        """Return what was added since the last call; empty if nothing was."""
        added = self._file.read()
        while (file := self._next()) is not None:
            added += self._file.read() + file.read()
            self._file.close()
            self._file = file
        return added

    def _next(self) -> Optional[TextIO]:
        """Return the file that was begun after the one that is being read; None if that is the newest.

        If the current one is gone, return the newest.
        """
        own = _identity(self._file.fileno())
        while True:
            newer, own_is_there = self._newer(own)
            if (newer, own_is_there) != self._newer(own):
                continue  # in the middle of a rotation: names and files did not match
            if not newer:
                return None
            path, wanted = newer[-1] if own_is_there else newer[0]
            try:
                file = _open(path)
            except FileNotFoundError:
                continue  # just now, between two names
            if _identity(file.fileno()) == wanted:
                return file
            file.close()

    def _newer(self, own: _Identity) -> tuple[list[tuple[Path, _Identity]], bool]:
        """Return the files newer than our own, the newest first, and whether our own is still there."""
        found: list[tuple[Path, _Identity]] = []
        for path in (self._path, *_older(self._path)):
            try:
                identity = _identity(path)
            except FileNotFoundError:
                continue
            if identity == own:
                return found, True
            found.append((path, identity))
        return found, False


def _identity(file: Union[Path, int]) -> _Identity:
    status = os.stat(file)  # noqa: PTH116 - of an open file too
    return status.st_dev, status.st_ino


def _older(path: Path) -> list[Path]:
    return [path.with_name(f"{path.name}.{number}") for number in range(1, KEPT + 1)]


def _open(path: Path) -> TextIO:
    return path.open(encoding="utf-8", errors="replace")


class WarnOnce:
    """Logs each warning once, however often it is noticed."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, text: str) -> None:
        """Log a warning, unless it was logged before."""
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)

    def forget(self) -> None:
        """Log everything again if it returns: the earlier problems are over."""
        self._said.clear()


def last_line(path: Path, limit: int = 200, *, since: int = 0) -> str:
    """Return the last line of a log that is neither blank nor ours, without secrets.

    Args:
        path: The log; a missing one has no lines.
        limit: Characters to cut it to.
        since: Bytes at its beginning that do not count.
    """
    try:
        with path.open("rb") as file:
            file.seek(max(since, file.seek(0, 2) - 8192))
            lines = file.read().decode("utf-8", "replace").replace("\r", "\n").splitlines()
    except OSError:
        return ""
    said = (line.strip() for line in reversed(lines) if line.strip() and not line.startswith(OUR_MARK))
    return without_secrets(next(said, ""))[:limit]  # in this order: half a key is a secret too
