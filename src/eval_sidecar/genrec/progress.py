"""Shows how far an evaluation is: a bar on a terminal, a line for every tenth in a log file."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from eval_sidecar.genrec.errors import printable

log = logging.getLogger(__name__)


@contextmanager
def show_progress(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield a function that takes the number of rows finished since its last call.

    Args:
        title: What is being evaluated.
        total: Rows in all.
    """
    if sys.stderr.isatty():
        try:
            from rich.console import Console
            from rich.markup import escape
            from rich.progress import Progress
        except ImportError:  # it may be missing in a training's environment
            pass
        else:
            with Progress(console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task(escape(printable(title)), total=total)
                yield lambda rows: bar.advance(task, rows)
            return
    yield _Lines(title, total)


class _Lines:
    """Logs a line whenever another tenth is done."""

    def __init__(self, title: str, total: int) -> None:
        self._title = title
        self._total = total
        self._done = 0

    def __call__(self, rows: int) -> None:
        before = self._done * 10 // self._total
        self._done += rows
        if self._done * 10 // self._total > before:
            log.info(
                "%s: %d of %d rows (%d%%)",
                self._title,
                self._done,
                self._total,
                self._done * 100 // self._total,
            )
