"""Finds out whether files that this process has imported have changed since."""

from __future__ import annotations

import os
import sys
import time


class LoadedFiles:
    """The files of all modules of this process, as they were when they were imported."""

    def __init__(self) -> None:
        self._started = time.time()
        self._stamps: dict[str, tuple[int, ...] | None] = {}

    def note(self) -> None:
        """Record what has been imported since the last call."""
        for module in list(sys.modules.values()):
            path = getattr(module, "__file__", None)
            # Modules that a library creates in memory have names that are not paths.
            if isinstance(path, str) and path.startswith("/") and path not in self._stamps:
                self._stamps[path] = _stamp(path, self._started)

    def find_changed(self) -> str | None:
        """Return a file that has changed since it was imported, or None."""
        for path, stamp in self._stamps.items():
            if stamp is None or _stamp(path) != stamp:
                return path
        return None


def _stamp(path: str, before: float = float("inf")) -> tuple[int, ...] | None:
    """Return a file's stamp; None if it is missing or was changed after that time."""
    try:
        found = os.stat(path)  # noqa: PTH116  (thousands of files, at each evaluation)
    except OSError:
        return None
    return (found.st_mtime_ns, found.st_size, found.st_ino) if found.st_ctime <= before else None
