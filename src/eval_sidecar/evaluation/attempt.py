"""One attempt to evaluate a checkpoint, after its end: its numbers, or why none of them count."""

from __future__ import annotations

import contextlib
import logging
import re
from functools import partial
from pathlib import Path
from typing import Optional

from eval_sidecar.errors import ResultError
from eval_sidecar.launchers.base import JobState
from eval_sidecar.ledger.ledger import Entry, Ledger, Running
from eval_sidecar.ledger.lookalikes import names_like_results
from eval_sidecar.ledger.results import read_result
from eval_sidecar.ledger.stamps import stamp
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.system.files import set_aside
from eval_sidecar.system.logs import last_line
from eval_sidecar.system.process import describe_exit
from eval_sidecar.types import Result

log = logging.getLogger(__name__)

#: ``my_eval.sh: line 5:  4242 Killed  python eval.py``
_SHELL_MESSAGE = re.compile(
    r"line \d+: +\d+ (?:Killed|Terminated|Aborted|Segmentation fault|Bus error|Hangup)\b"
)


def interrupt(store: LedgerStore, entry: Entry) -> None:
    """Undo an attempt: it does not count."""
    set_aside_unfinished(entry.running, "interrupted")
    store.update(partial(Ledger.interrupted, step=entry.step))


def why_ended(state: JobState) -> str:
    """Return why an attempt has failed."""
    killed = describe_exit(state.exit_code)
    if state.reason or not killed:
        return state.reason or f"the evaluation script ended with exit code {state.exit_code}"
    return f"the evaluation was {killed}"


def last_output(running: Running) -> str:
    """Return the last line that an attempt printed; empty if that is only a shell's message about its end."""
    path = Path(running.log)
    said = last_line(path) if log_size(path) != running.log_size else ""
    return "" if _SHELL_MESSAGE.search(said) else said


def log_size(path: Path) -> int:
    """Return the bytes of a file; 0 if there is none."""
    try:
        with path.open("rb") as file:  # unlike for a stat, NFS asks the server again
            return file.seek(0, 2)
    except OSError:
        return 0


def stamp_before(path: Path) -> Optional[tuple[int, int]]:
    """Return size and mtime (ns) of a result from before an attempt; move an unreadable one away."""
    try:
        before = _written(path)
        if before is not None:
            read_result(path)
        return before
    except ResultError:
        set_aside(path, "unreadable")
        return None


def _written(path: Path) -> Optional[tuple[int, int]]:
    """Return size and mtime (ns) of a file: not its ctime, which also changes without a write."""
    found = stamp(path)
    return found and found[:2]


def read_new_result(running: Running, path: Path) -> Result:
    """Return the numbers that an attempt has written.

    Raises:
        ResultError: if there are none, or only older ones.
    """
    _refresh(path)
    if _written(path) in (None, running.before):
        others = names_like_results(path.parent)
        instead = f" (there is {', '.join(others)}: the name must be metrics.json)" if others else ""
        raise ResultError(f"the evaluation script ended with exit code 0, but wrote no {path}{instead}")
    return read_result(path)


def _refresh(path: Path) -> None:
    """Open the folders above a file that another machine may have written.

    Without that, NFS may still show their earlier content.
    """
    for folder in reversed(list(path.parents)[:3]):
        # A folder that cannot be opened does not matter: reading the file reports what is wrong.
        with contextlib.suppress(OSError):
            any(folder.iterdir())


def set_aside_unfinished(running: Optional[Running], reason: str) -> None:
    """Move away the numbers of an attempt that did not succeed; otherwise they would be taken."""
    if running is None or running.metrics is None:
        return
    metrics = Path(running.metrics)
    try:
        if _written(metrics) in (None, running.before):
            return
    except ResultError:
        return  # it cannot be taken anyway
    log.warning("moved partial results to %s", set_aside(metrics, reason))
