"""Notices changes in folders as the system reports them.

Network file systems report none, and a folder may not be there yet: poll too, or ask to be called regularly.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Callable, Optional

log = logging.getLogger(__name__)

#: Seconds that the thread may take to end.
_LAST_LOOK = 5.0
#: Seconds between two looks without a change.
_TICK = 1.0


@contextlib.contextmanager
def watch_folders(
    folders: Sequence[Path],
    on_change: Callable[[Collection[Path]], None],
    *,
    collect_seconds: float = 0.2,
    is_regular: bool = False,
) -> Iterator[None]:
    """Call a function in another thread whenever something changes below these folders.

    Args:
        folders: They may be made, and replaced, later.
        on_change: Gets the paths that have changed; none at the beginning, or if they are not known.
        collect_seconds: How long changes are collected at most before the call.
        is_regular: Whether it is called once a second without a change too.

    A folder that cannot be watched (too many watches, a file system without notifications) is reported
    once in the log.
    """
    over = threading.Event()
    thread = threading.Thread(
        target=_watch,
        args=(list(folders), on_change, collect_seconds, is_regular, over),
        name="file-notifications",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        # Waited for: a thread that is in the library when the interpreter ends takes the process down.
        over.set()
        thread.join(_LAST_LOOK)


def _watch(
    folders: list[Path],
    on_change: Callable[[Collection[Path]], None],
    collect_seconds: float,
    is_regular: bool,
    over: threading.Event,
) -> None:
    problem = ""
    while not over.is_set():
        there = _identities(folders)
        is_first = True
        on_change(())
        try:
            for changed in _changes([folder for folder in folders if there[folder]], collect_seconds, over):
                if is_first:
                    on_change(())  # changes made while the watch was set up
                if changed or is_regular:
                    on_change(changed)
                is_first = False
                if _identities(folders) != there or any(folder in changed for folder in folders):
                    break  # the watch of a deleted folder does not see its successor
        except Exception as error:  # noqa: BLE001 - whatever it was, the poll goes on
            if str(error) != problem:
                problem = str(error)
                log.warning("no file notifications here (%s): new files are noticed by polling", error)
            if not is_regular:
                return
            over.wait(_TICK)


def _changes(
    folders: Sequence[Path], collect_seconds: float, over: threading.Event
) -> Iterator[Collection[Path]]:
    """Yield what has changed, and nothing once a second."""
    if not folders:
        while not over.wait(_TICK):
            yield ()
        return
    import watchfiles

    collect_ms = int(collect_seconds * 1000)
    for changes in watchfiles.watch(
        *folders,
        watch_filter=None,
        debounce=collect_ms,
        step=max(1, collect_ms // 4),
        stop_event=over,
        rust_timeout=int(_TICK * 1000),
        raise_interrupt=False,
        yield_on_timeout=True,
    ):
        yield {Path(path) for _, path in changes}


def _identities(folders: Sequence[Path]) -> dict[Path, Optional[tuple[int, int]]]:
    found: dict[Path, Optional[tuple[int, int]]] = {}
    for folder in folders:
        try:
            status = folder.stat()
            found[folder] = (status.st_dev, status.st_ino)
        except OSError:
            found[folder] = None
    return found
