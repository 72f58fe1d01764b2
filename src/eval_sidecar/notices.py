"""Notices changes in folders as the system reports them. Network file systems report none: poll too."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

log = logging.getLogger(__name__)


def watch_folders(
    folders: Sequence[Path], is_ours: Callable[[Path], bool], wake: threading.Event, stop: threading.Event
) -> threading.Thread:
    """Set an event whenever something changes below these folders, until told to stop.

    ``is_ours`` tells the paths that this program itself writes, which wake nobody.

    A folder that cannot be watched (too many watches, a file system without notifications) is said
    once in the log; the poll finds what changes in it.

    Returns:
        The running thread.
    """
    thread = threading.Thread(
        target=_watch, args=(list(folders), is_ours, wake, stop), name="notices", daemon=True
    )
    thread.start()
    return thread


def _watch(
    folders: list[Path], is_ours: Callable[[Path], bool], wake: threading.Event, stop: threading.Event
) -> None:
    import watchfiles

    def is_foreign(_change: watchfiles.Change, path: str) -> bool:
        return not is_ours(Path(path))

    is_first = True
    try:
        for changes in watchfiles.watch(
            *folders,
            watch_filter=is_foreign,
            debounce=200,
            step=50,
            stop_event=stop,
            rust_timeout=1000,
            raise_interrupt=False,
            yield_on_timeout=True,
        ):
            # The first time also where nothing is reported: what came while the watch was being set up.
            if changes or is_first:
                wake.set()
            is_first = False
    except Exception as error:  # noqa: BLE001 - whatever it was, the poll goes on
        log.warning("no file notifications here (%s): new checkpoints are noticed by polling", error)
