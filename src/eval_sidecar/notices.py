"""Notices changes in folders as the system reports them. Network file systems report none: poll too."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable

log = logging.getLogger(__name__)


#: Seconds that the thread may take to see that it is over; it looks twenty times a second.
_LAST_LOOK = 5.0


@contextlib.contextmanager
def watch_folders(
    folders: Sequence[Path], is_ours: Callable[[Path], bool], wake: threading.Event
) -> Iterator[None]:
    """Set an event whenever something changes below these folders, for the length of a ``with`` block.

    ``is_ours`` tells the paths that this program itself writes, which wake nobody.

    A folder that cannot be watched (too many watches, a file system without notifications) is said
    once in the log; the poll finds what changes in it.
    """
    over = threading.Event()
    thread = threading.Thread(
        target=_watch, args=(list(folders), is_ours, wake, over), name="notices", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        # Waited for: a thread that is in the library when the interpreter ends takes the process down.
        over.set()
        thread.join(_LAST_LOOK)


def _watch(
    folders: list[Path], is_ours: Callable[[Path], bool], wake: threading.Event, over: threading.Event
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
            stop_event=over,
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
