"""What people see: live progress, the table of results, and the lines under it. Plain text in a file."""

from __future__ import annotations

import contextlib
import logging
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Optional

from eval_sidecar.cli.terminal import LogFormatter, clean, say
from eval_sidecar.diagnosis.base import Finding, Mark
from eval_sidecar.ledger.ledger import Entry, Ledger
from eval_sidecar.ledger.status import delivery_state, describe, other_settings
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.system.logs import last_line
from eval_sidecar.types import HEADLINE, best_step

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from eval_sidecar.delivery.uploading import ModelUpload


def set_up_logging() -> None:
    """Log to the screen in colours if there is one, else as plain lines with the time."""
    handler: logging.Handler
    if sys.stderr.isatty():
        from rich.logging import RichHandler

        handler = RichHandler(
            console=_console(), show_path=False, markup=False, highlighter=None, log_time_format="%H:%M:%S"
        )
        handler.setFormatter(LogFormatter("%(message)s"))
    else:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(LogFormatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S"))
    logger = logging.getLogger("eval_sidecar")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.INFO)
    logger.propagate = False


_shared_console: Optional[Console] = None


def _console() -> Console:
    """Return the one console for log lines and for progress, so that they do not write over each other."""
    global _shared_console  # noqa: PLW0603 - a screen there is only one of
    if _shared_console is None:
        from rich.console import Console

        # Not stderr=True, which looks it up each time: a library's output may be caught for a moment.
        _shared_console = Console(file=sys.stderr)
    return _shared_console


@contextlib.contextmanager
def progress(store: LedgerStore) -> Iterator[None]:
    """Show what is going on, at the bottom of a terminal; in a log file, show nothing."""
    if not sys.stderr.isatty():
        yield
        return
    from rich.live import Live

    with Live(
        get_renderable=lambda: _progress(store.ledger, store.path),
        console=_console(),
        refresh_per_second=4,
        transient=True,
    ):
        yield


def _progress(ledger: Ledger, path: Path) -> RenderableType:
    from rich.table import Table
    from rich.text import Text

    state = describe(ledger, path)
    grid = Table.grid(padding=(0, 2))
    head = Text(clean(state["model"]), "bold")
    head.append(f"  {counts_line(state)}", "default")
    grid.add_row(head)
    for job in state["running"]:
        line = Text(f"  {job['checkpoint']} ", "cyan")
        line.append(f"{max(0, time.time() - job['started_at']):.0f} s  ", "default")
        line.append(f"{clean(job['state'])}  " if job["state"] else "", "default")
        line.append(clean(last_line(Path(job["log"]), 80)), "dim")
        grid.add_row(line)
    return grid


def counts_line(state: dict[str, Any]) -> str:
    """Return the numbers of a model in one line; those that are zero and expected to be are left out."""
    parts = [f"{state['evaluated']} evaluated"]
    parts += [f"{len(state['running'])} running"] if state["running"] else []
    waiting = state["pending"] - len(state["running"])
    parts += [f"{waiting} pending"] if waiting else []
    for key, words in (
        ("failed", "failed"),
        ("gone", "deleted before evaluation"),
        ("abandoned", "never completed"),
        ("undelivered", "to be delivered"),
        ("unconfirmed", "unconfirmed"),
    ):
        parts += [f"{state[key]} {words}"] if state[key] else []
    parts += [
        f"best {metric} {best['value']:.4f} at {best['step']}" for metric, best in state["best"].items()
    ]
    return " · ".join(parts)


#: Marks of results that are not what a reader would take them for, and what each means.
_LEGEND = {
    "!": "of weights that were there before; those that are there now are not evaluated yet",
    "*": "made with other settings than those of now",
    "?": "made with unknown settings: found in results, or by an earlier version",
}


def _mark(ledger: Ledger, entry: Entry, others: Collection[int]) -> str:
    if entry.is_superseded:
        return "!"
    if entry.step in others:
        return "*"
    return "?" if entry.origin.settings is None and ledger.settings else ""


def results_table(ledger: Ledger) -> None:
    """Print one row a checkpoint, the best marked; nothing if there are no results."""
    results = {entry.step: entry.result.metrics for entry in ledger.steps() if entry.result}
    if not results:
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    shown = [metric for metric in HEADLINE if any(metric in metrics for metrics in results.values())]
    shown = shown or sorted({name for metrics in results.values() for name in metrics})[:4]
    current = {step: found for step, found in results.items() if not ledger.entry(step).is_superseded}
    best = {metric: best_step(current, metric) for metric in shown}
    table = Table(title=Text(clean(ledger.model_dir)), title_justify="left")
    table.add_column("step", justify="right")
    for metric in shown:
        table.add_column(Text(clean(metric)), justify="right")
    table.add_column("delivered")
    table.add_column("")
    others = {step for steps in other_settings(ledger).values() for step in steps}
    marks = {step: _mark(ledger, ledger.entry(step), others) for step in results}
    for step, metrics in results.items():
        is_best = step == best[shown[0]]
        numbers = [f"{metrics[metric]:.4f}" if metric in metrics else "" for metric in shown]
        mark = f"{marks[step]} {'<- best' if is_best else ''}".strip()
        table.add_row(
            *(str(step), *numbers, delivery_state(ledger.entry(step)), mark),
            style="bold green" if is_best else None,
        )
    Console().print(table)
    for mark, meaning in _LEGEND.items():
        if mark in marks.values():
            say(f"{mark} {meaning}")


def places(ledger: Ledger, results: Path, state_file: Path, logs: Path, mode: Optional[str]) -> None:
    """Print where everything is."""
    say(f"results      {results}")
    say(f"ledger       {state_file}")
    say(f"logs         {logs / ledger.model_dir}")
    if mode is None:
        say("W&B          off: nothing was delivered; a pass without --disable-wandb delivers it")
    else:
        say(f"W&B          {ledger.where or '(no session yet)'} (run {ledger.run_id}, {mode})")


def waiting(lines: Sequence[str]) -> None:
    """Print which checkpoints still have no result, and why."""
    for line in lines:
        say(f"WAITING      {line}")


def problems(lines: Sequence[str]) -> None:
    """Print what is not done, last, so that it is what remains on the screen."""
    for line in lines:
        say(f"NOT DONE     {line}", fg="red", err=True)


@contextlib.contextmanager
def working(what: str) -> Iterator[None]:
    """Show that something is being done, for as long as it takes, if there is a screen."""
    if not what or not sys.stderr.isatty():
        yield
        return
    from rich.markup import escape

    with _console().status(escape(clean(what))):
        yield


#: How a check came out, in a sign and a colour; the sign is a word if there is no screen.
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
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.description}", markup=False),
    )
    with Progress(*columns, console=_console(), transient=True) as bar:
        task = bar.add_task("", total=total)
        yield lambda name: bar.update(task, advance=1, description=clean(name))


def upload(done: ModelUpload) -> None:
    """Print what became of one model, in one line."""
    report, left = done.report, done.left
    counts = (
        (report.sent, "sent"),
        (report.confirmed, "confirmed"),
        (report.already, "already there"),
        (report.unconfirmed, "unconfirmed"),
        (report.undelivered, "not delivered"),
    )
    said = ", ".join(f"{count} {words}" for count, words in counts if count)
    if not said and report.sent_table:
        said = "table sent"
    elif not said and done.taken:
        said = f"new results: {done.taken}"
    failed = f"; failed: {report.problem or left[0]}" if left else ""
    say(f"{done.spec.model_dir}: {said or 'nothing new'}{failed}", fg="red" if left else None)
