"""One attempt to evaluate a checkpoint, after its end: its numbers, or why none of them count."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Optional

from eval_sidecar.errors import MissingResultError, ResultError
from eval_sidecar.launchers.base import JobState
from eval_sidecar.ledger.ledger import Entry, Ledger, Running
from eval_sidecar.ledger.lookalikes import is_like_result, names_like_results
from eval_sidecar.ledger.results import read_result
from eval_sidecar.ledger.stamps import stamp
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.system.files import set_aside
from eval_sidecar.system.logs import OUR_MARK, last_line
from eval_sidecar.system.process import describe_exit
from eval_sidecar.system.redaction import printable, without_secrets
from eval_sidecar.types import Result

log = logging.getLogger(__name__)

#: ``my_eval.sh: line 5:  4242 Killed  python eval.py``
_SHELL_MESSAGE = re.compile(
    r"line \d+: +\d+ (?:Killed|Terminated|Aborted|Segmentation fault|Bus error|Hangup)\b"
)

#: Seconds by which the clock of a file server may be behind.
_CLOCK_TOLERANCE = 2.0
#: Files that are looked at in one place, and named.
_MOST_FILES, _MOST_NAMED = 10_000, 3


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
    """Return the last line that an attempt printed; nothing if that is only a shell's message on its end."""
    said = last_line(Path(running.log), since=running.log_size)
    return "" if _SHELL_MESSAGE.search(said) else said


def write_end(running: Running, how: str, now: float) -> None:
    """Add to an attempt's log how it ended; only for one that could not write that itself."""
    path = Path(running.log)
    when = datetime.fromtimestamp(now).astimezone().strftime("%Y-%m-%d %H:%M:%S %z")
    took = f"{max(0.0, now - running.started_at):.0f} s"
    with contextlib.suppress(OSError):  # the ledger and the sidecar's log say so too
        if path.is_file():
            with path.open("a", encoding="utf-8") as file:
                file.write(f"\n{OUR_MARK}ended after {took}, {when}: {without_secrets(printable(how))}\n")


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
        MissingResultError: if it has written none.
        ResultError: if they cannot be read.
    """
    _refresh(path)
    if _written(path) not in (None, running.before):
        return read_result(path)
    said = f"the evaluation script ended with exit code 0, but wrote no {path}"
    if others := names_like_results(path.parent):
        said += f" (there is {', '.join(others)}: the name must be metrics.json)"
    elif written := _written_elsewhere(running, path):
        said += f" (it wrote {', '.join(written)}: the path must be {path})"
    raise MissingResultError(said)


def _written_elsewhere(running: Running, path: Path) -> list[str]:
    """Return files like results that appeared during an attempt in other places, where scripts write them."""
    results, since = path.parents[2], running.started_at - _CLOCK_TOLERANCE
    places = ((path.parent, 2), (results / path.parents[1].name, 2), (Path(running.path), 2), (results, 2))
    found: dict[str, None] = {}
    for folder, depth in (*places, (results.parent, 1)):
        pattern = ("*", "*/*")[:depth]
        for file in itertools.islice(itertools.chain.from_iterable(map(folder.glob, pattern)), _MOST_FILES):
            if file != path and is_like_result(file.name):
                with contextlib.suppress(OSError):
                    if file.stat().st_mtime >= since:
                        found[str(file)] = None
    return list(found)[:_MOST_NAMED]


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
