"""What people see: log lines, live progress, and the lines at the end. Plain text in a file."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Callable, Optional

from eval_sidecar.cli.formats import (
    cut,
    fit_log_line,
    job_time,
    number,
    relative_paths,
    screen_width,
    shorten,
    text_width,
    wrap,
)
from eval_sidecar.cli.terminal import LogFormatter, clean, say, say_lines
from eval_sidecar.diagnosis.base import Finding, Mark
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.report.facts import ModelFacts, model_facts
from eval_sidecar.system.logs import last_line
from eval_sidecar.types import Completeness

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

#: Columns that the head of the progress keeps for the model's name.
_SHORTEST_HEAD = 16
#: Columns that progress leaves free: a terminal writes ^C there, and does not erase a line that it breaks.
_INTERRUPT = 4
#: From this width on, progress shows the estimated time beside the elapsed one.
_WIDE = 100


def set_up_logging() -> None:
    """Log in lines that fit the terminal if there is one, else as plain lines with the time."""
    handler: logging.Handler
    if sys.stderr.isatty():
        handler = _ScreenHandler()
        handler.setFormatter(LogFormatter("%(asctime)s %(message)s", "%H:%M:%S"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("eval_sidecar")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


class _ScreenHandler(logging.Handler):
    """Logs lines above the progress: info on one line, with names and paths shortened; warnings in full."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        from rich.text import Text

        try:
            console, is_news = _console(), record.levelno < logging.WARNING
            style = "" if is_news else "yellow" if record.levelno < logging.ERROR else "bold red"
            for text in relative_paths(self.format(record)).split("\n"):
                for line in fit_log_line(text, console.width) if is_news else wrap(text, console.width, 9):
                    console.print(Text(line, style), soft_wrap=True)
        except Exception:  # noqa: BLE001 - as logging's own handlers: a log line ends nothing
            self.handleError(record)


def log_lines(text: str) -> None:
    """Print a part of a log file: as `_ScreenHandler` shows its lines if there is a screen, else as it is."""
    width = screen_width()
    for line in text.splitlines(keepends=True):
        if width is None or not line.endswith("\n"):
            say_lines(line)
            continue
        fitting, is_news, rest = relative_paths(clean(line[:-1], "\t")).partition(" INFO ")
        for part in fit_log_line(f"{fitting} {rest}", width) if is_news else wrap(fitting, width, 9):
            say_lines(f"{part}\n")


_shared_console: Optional[Console] = None


def _console() -> Console:
    """Return the one console for log lines and progress, so that they do not overwrite each other."""
    global _shared_console  # noqa: PLW0603 - a screen there is only one of
    if _shared_console is None:
        from rich.console import Console

        # Not stderr=True, which looks it up each time: a library's output may be captured at that time.
        _shared_console = Console(file=sys.stderr)
    return _shared_console


@contextlib.contextmanager
def progress(store: LedgerStore) -> Iterator[None]:
    """Show what is going on, at the bottom of a terminal; in a log file, show nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.live import Live

    console = _console()
    with Live(
        get_renderable=lambda: _progress(store.ledger, store.path, console.width),
        console=console,
        refresh_per_second=4,
        transient=True,
    ):
        yield


def _progress(ledger: Ledger, path: Path, width: int) -> RenderableType:
    from rich.text import Text

    is_wide = width >= _WIDE
    width -= _INTERRUPT
    facts = model_facts(ledger, path, time.time())
    counts = _counts(facts)
    while len(counts) > 1 and text_width(" · ".join(counts)) > width - _SHORTEST_HEAD:
        counts.pop()
    told = " · ".join(counts)
    name = shorten(clean(facts.name), max(_SHORTEST_HEAD - 2, width - text_width(told) - 2))
    lines = [Text.assemble((name, "bold"), f"  {told}")]
    for one in facts.running:
        running = one.entry.running
        assert running is not None
        head = f"  {one.entry.name} {job_time(one.elapsed, one.estimated if is_wide else None)}"
        rest = [clean(running.state)] if running.state else []
        rest.append(clean(last_line(Path(running.log), width)))
        tail = cut("  ".join(rest), max(1, width - text_width(head) - 2))
        lines.append(Text.assemble((head, "cyan"), "  ", (tail, "dim")))
    return Text("\n").join(lines)


def _counts(facts: ModelFacts) -> list[str]:
    """Return the counts of a model, the most important first, without those that are zero."""
    ledger = facts.ledger
    parts = [f"{facts.evaluated}/{len(facts.checkpoints)} done"]
    for count, words in (
        (len(facts.running), "running"),
        (facts.failed, "failed"),
        (len(ledger.undelivered()), "undelivered"),
        (len(ledger.unconfirmed()), "unconfirmed"),
        (facts.lost(Completeness.GONE), "deleted before evaluation"),
        (facts.lost(Completeness.ABANDONED), "never completed"),
    ):
        parts += [f"{count} {words}"] if count else []
    return parts + [
        f"best {metric} {number(facts.best_value(metric))} at {step}" for metric, step in facts.best.items()
    ]


def places(ledger: Ledger, results: Path, state_file: Path, logs: Path, mode: Optional[str]) -> None:
    """Print where everything is."""
    _row("results", str(results))
    _row("ledger", str(state_file))
    _row("logs", str(logs / ledger.model_dir))
    if mode is None:
        _row("W&B", "off: nothing was delivered; a pass without --disable-wandb delivers it")
    else:
        _row("W&B", f"{ledger.where or '(no session yet)'} (run {ledger.run_id}, {mode})")


def waiting(lines: Sequence[str]) -> None:
    """Print which checkpoints still have no result, and why."""
    for line in lines:
        _row("WAITING", line)


def problems(lines: Sequence[str]) -> None:
    """Print what is not done, at the end, so that it stays on the screen."""
    for line in lines:
        _row("NOT DONE", line, fg="red", err=True)


def _row(label: str, text: str, *, fg: Optional[str] = None, err: bool = False) -> None:
    has_screen = screen_width(sys.stderr if err else sys.stdout) is not None
    say(f"{label:<13}{relative_paths(text) if has_screen else text}", fg=fg, err=err, indent=13)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show that something is being done, for as long as it takes, if there is a screen."""
    if not what or not sys.stderr.isatty():
        yield
        return
    from rich.markup import escape

    with _console().status(escape(clean(what))):
        yield


#: Sign and colour of a check's result; without a screen, a word replaces the sign.
_MARKS = {
    Mark.WORKS: ("✓", "green"),
    Mark.ABSENT: ("-", "dim"),
    Mark.LIMITED: ("!", "yellow"),
    Mark.BROKEN: ("✗", "bold red"),
}


def finding(found: Finding) -> None:
    """Print what a check has found, and what to do: a line, or a row that fits the screen."""
    advice = f"; {found.advice}" if found.advice else ""
    if not sys.stdout.isatty():
        say(f"{found.mark.value:8} {found.name}: {found.found}{advice}")
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    sign, style = _MARKS[found.mark]
    if console.options.ascii_only:
        sign = sign if sign.isascii() else found.mark.value[0]
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=1)
    grid.add_column(width=14)
    grid.add_column(overflow="fold")
    text = Text(clean(found.found))
    if found.advice:
        text.append(f"\n-> {clean(found.advice)}", "bold")
    grid.add_row(Text(sign, style), Text(clean(found.name)), text)
    console.print(grid)


@contextlib.contextmanager
def counting(what: str, total: int) -> Iterator[Callable[[str], None]]:
    """Show a bar while something is done `total` times; yield what to call with each name done."""
    if not sys.stderr.isatty():
        yield lambda name: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn(what),
        BarColumn(bar_width=20),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    room = max(12, _console().width - len(what) - 48)
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda name: bar.update(task, advance=1, description=shorten(clean(name), room))
