"""What an evaluation leaves that is over or given up: numbers, or why none of them count, and a pause."""

from __future__ import annotations

import contextlib
import logging
import re
from collections.abc import Collection, Sequence
from functools import partial
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.errors import ResultError
from eval_sidecar.launchers.base import ELSEWHERE, JobState, Launcher
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

#: Seconds that a checkpoint waits after its second eviction, and at most.
_SHORTEST_PAUSE, _LONGEST_PAUSE = 10.0, 600.0
#: ``my_eval.sh: line 5:  4242 Killed  python eval.py``
_SHELLS_WORD = re.compile(
    r"line \d+: +\d+ (?:Killed|Terminated|Aborted|Segmentation fault|Bus error|Hangup)\b"
)


class Pauses:
    """How long checkpoints wait after the machine took their evaluations away: twice as long each time.

    Once may happen to any job. But a node that ends every job at once would use up the evictions of every
    checkpoint in minutes.

    Args:
        monotonic: Seconds since some moment, never set back.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._ends: dict[int, float] = {}

    def begin(self, step: int, times: int) -> str:
        """Let a step wait that was evicted so many times; return when it goes on, in words."""
        seconds: float = min(_LONGEST_PAUSE, _SHORTEST_PAUSE * 2 ** (times - 2)) if times > 1 else 0.0
        self._ends[step] = self._monotonic() + seconds
        return f"again in {seconds:.0f} s" if seconds else "again"

    def is_over(self, step: int) -> bool:
        """Whether a step need not wait, or not any more."""
        return self._monotonic() >= self._ends.get(step, 0.0)

    def end(self, steps: Optional[Sequence[int]]) -> None:
        """Let these steps, or all, wait no more."""
        for step in list(self._ends) if steps is None else steps:
            self._ends.pop(step, None)


def is_elsewhere(entry: Entry, launcher: Launcher) -> bool:
    """Whether a step's evaluation is on a machine that cannot be asked from here."""
    return entry.running is not None and launcher.poll(entry.running.handle).phase == ELSEWHERE


def interrupt(store: LedgerStore, entry: Entry) -> None:
    """Take an evaluation for one that was never tried."""
    set_aside_unfinished(entry.running, "interrupted")
    store.update(partial(Ledger.interrupted, step=entry.step))


def give_up_elsewhere(store: LedgerStore, launcher: Launcher, steps: Collection[int]) -> None:
    """Forget evaluations of these steps that are on machines that cannot be asked from here."""
    for entry in store.ledger.steps():
        if entry.step in steps and is_elsewhere(entry, launcher):
            interrupt(store, entry)


def why_ended(state: JobState) -> str:
    """Why an evaluation has ended without success, in words."""
    killed = describe_exit(state.exit_code)
    if state.reason or not killed:
        return state.reason or f"the evaluation script ended with exit code {state.exit_code}"
    return f"the evaluation was {killed}"


def last_words(running: Running) -> str:
    """The last line that an evaluation has printed; nothing where that is only a shell's word for its end."""
    path = Path(running.log)
    said = last_line(path) if log_size(path) != running.log_size else ""
    return "" if _SHELLS_WORD.search(said) else said


def log_size(path: Path) -> int:
    """Bytes of a file; 0 where there is none."""
    try:
        with path.open("rb") as file:  # unlike a stat, NFS answers that anew
            return file.seek(0, 2)
    except OSError:
        return 0


def stamp_before(path: Path) -> Optional[tuple[int, int]]:
    """Size and mtime (ns) of numbers that are there before an evaluation; unreadable ones are set aside."""
    try:
        before = _written(path)
        if before is not None:
            read_result(path)
        return before
    except ResultError:
        set_aside(path, "unreadable")
        return None


def _written(path: Path) -> Optional[tuple[int, int]]:
    """Size and mtime (ns) of a file: not its ctime, which changes without anybody writing into it."""
    found = stamp(path)
    return found and found[:2]


def read_new_result(running: Running, path: Path) -> Result:
    """The numbers that an evaluation has written.

    Raises:
        ResultError: where there are none, or none that were not there before.
    """
    _look_anew(path)
    if _written(path) in (None, running.before):
        others = names_like_results(path.parent)
        instead = f" (there is {', '.join(others)}: the name must be metrics.json)" if others else ""
        raise ResultError(f"the evaluation script ended with exit code 0, but wrote no {path}{instead}")
    return read_result(path)


def _look_anew(path: Path) -> None:
    """Open the folders above a file that another machine may have written: until then, NFS goes on for a
    while showing what was there before.
    """
    for folder in reversed(list(path.parents)[:3]):
        # A folder that cannot be opened is no news: reading the file says what is wrong.
        with contextlib.suppress(OSError):
            any(folder.iterdir())


def set_aside_unfinished(running: Optional[Running], reason: str) -> None:
    """Put numbers aside that an evaluation has written which did not end well: else they would be taken."""
    if running is None or running.metrics is None:
        return
    metrics = Path(running.metrics)
    try:
        if _written(metrics) in (None, running.before):
            return
    except ResultError:
        return  # no file that could be taken
    log.warning(
        "what an evaluation had written that did not end well is kept as %s", set_aside(metrics, reason)
    )
