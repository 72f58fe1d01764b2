"""The one place that prints and formats log lines, with names and texts from anywhere.

A name or an error text can have line breaks, terminal sequences, invalid characters, or the W&B key. A line
stays one line and shows these as escapes; the key is masked.
"""

from __future__ import annotations

import io
import json
import logging
import os
import sys
from types import TracebackType
from typing import Any, Optional, Union

import click

from eval_sidecar.cli.formats import screen_width, wrap
from eval_sidecar.system.redaction import printable, without_secrets

_LINES = "\n\t"


def accept_any_text() -> None:
    """Let standard output take characters that its encoding lacks, as escapes."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


def clean(text: str, keep: str = "") -> str:
    """Return a text as it may be shown; see `printable`."""
    return printable(without_secrets(text), keep)


def say(text: str, *, fg: Optional[str] = None, err: bool = False, indent: Optional[int] = None) -> None:
    """Print one line, in a colour if there is a screen.

    Args:
        text: The line.
        fg: Its colour.
        err: Print to standard error.
        indent: Break a line that is too long for the screen, and indent what follows by these columns.
    """
    width = screen_width(sys.stderr if err else sys.stdout) if indent is not None else None
    for line in wrap(clean(text), width, indent or 0):
        click.secho(line, fg=fg, err=err, color=None if _may_colour() else False)


def _may_colour() -> bool:
    return not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def say_lines(text: str, *, err: bool = False) -> None:
    """Print a part of a log, with its line breaks."""
    click.echo(clean(text, _LINES), nl=False, err=err)


def say_json(value: Any) -> None:  # noqa: ANN401 - anything that JSON can hold
    """Print JSON for programs: whatever is not printable is an escape, which a JSON reader undoes."""
    text = without_secrets(json.dumps(value, indent=1, ensure_ascii=False))
    click.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


class LogFormatter(logging.Formatter):
    """Keeps a message on its line; only a traceback has several."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return clean(super().formatMessage(record))

    def formatException(
        self,
        ei: Union[
            tuple[type[BaseException], BaseException, Optional[TracebackType]], tuple[None, None, None]
        ],
    ) -> str:
        """See `logging.Formatter`."""
        return clean(super().formatException(ei), _LINES)
