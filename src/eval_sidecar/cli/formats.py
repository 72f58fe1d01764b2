"""Text that fits a screen: durations and times in plain form, and names shortened in the middle."""

from __future__ import annotations

import os
import re
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Optional, TextIO

#: A name is not shortened below this many columns.
_SHORTEST = 12
#: Columns of the time before a log line.
_TIME = 9
#: Nor a name or a path in a log line below this many.
_SHORTEST_IN_LOG = 20
#: A word that is too long for any line stays beside a label of up to this many columns.
_LABEL = 16
#: Models that are named if there are more.
_NAMED = 3
#: Units of a duration, each with its size in seconds and the smaller unit that is shown beside it.
_UNITS = ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s"))
#: Between the columns of a table.
_GAP = "  "


def screen_width(stream: Optional[TextIO] = None) -> Optional[int]:
    """Return the columns of the terminal that a stream (default: standard output) leads to.

    None if it is a file or a pipe, which has no width.
    """
    stream = stream or sys.stdout
    return max(20, shutil.get_terminal_size().columns) if stream.isatty() else None


def duration(seconds: float) -> str:
    """Return a duration for people: ``45 s``, ``3 min 20 s``, ``2 h 5 min``, ``3 d 4 h``."""
    whole = max(0, round(seconds))
    for size, unit, smaller, smaller_unit in _UNITS:
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {unit}" + (f" {rest} {smaller_unit}" if rest else "")
    return f"{whole} s"


def local_time(seconds: float) -> str:
    """Return seconds since the epoch as local time with its zone."""
    return time.strftime("%Y-%m-%d %H:%M:%S %Z", time.localtime(seconds)).rstrip()


def job_time(elapsed: Optional[float], estimated: Optional[float]) -> str:
    """Return how long an evaluation has taken, and how long one usually takes if that is known."""
    return duration(elapsed or 0) + (f" (usually {duration(estimated)})" if estimated is not None else "")


def number(value: float) -> str:
    """Return a metric's value with four significant digits."""
    return f"{value:.4f}" if value == 0 or 0.001 <= abs(value) < 10_000 else f"{value:.4g}"


def text_width(text: str) -> int:
    """Return the columns that a text takes on a terminal: Chinese characters take two."""
    if text.isascii():
        return len(text)
    return sum(
        0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1
        for char in text
    )


def shorten(text: str, width: int) -> str:
    """Cut a text in the middle to a number of columns: names differ at their beginning and their end."""
    if text_width(text) <= width:
        return text
    head = _prefix(text, width // 2)
    tail = _prefix(text[::-1], width - 1 - text_width(head))[::-1]
    return f"{head}…{tail}"


def cut(text: str, width: int) -> str:
    """Cut a text at its end to a number of columns."""
    return text if text_width(text) <= width else f"{_prefix(text, width - 1)}…"


def _prefix(text: str, width: int) -> str:
    end, used = 0, 0
    for char in text:
        used += text_width(char)
        if used > width:
            break
        end += 1
    return text[:end]


def wrap(text: str, width: Optional[int], indent: int = 0) -> list[str]:
    """Break a text between words into lines of a width, the later ones indented; one line in a pipe.

    A word that is longer than a line, such as a path, stays whole, so that it can be copied.
    """
    if width is None or text_width(text) <= width:
        return [text]
    lines, line = [], ""
    for word in re.findall(r"\s*\S+", text):
        fits = text_width(line) + text_width(word) <= width
        is_label = text_width(line) <= max(indent, _LABEL) and text_width(word.lstrip()) > width - indent
        if fits or is_label or not line.strip():
            line += word
        else:
            lines.append(line)
            line = " " * indent + word.lstrip()
    return [*lines, line]


def fit_log_line(text: str, width: int) -> list[str]:
    """Return a log line on one line: names and paths in it are shortened, then its end is cut.

    A line with an address is broken instead, so that the address can be opened.
    """
    words = text.split(" ")
    while (excess := text_width(" ".join(words)) - width) > 0:
        longest = max((word for word in words if "://" not in word), key=text_width, default="")
        if text_width(longest) <= _SHORTEST_IN_LOG:
            return wrap(text, width, _TIME) if "://" in text else [cut(" ".join(words), width)]
        size = max(_SHORTEST_IN_LOG, text_width(longest) - excess)
        words[words.index(longest)] = shorten(longest, size)
    return [" ".join(words)]


def relative_paths(text: str) -> str:
    """Return a text in which paths below the working folder begin there."""
    try:
        base = re.escape(os.path.join(str(Path.cwd()), ""))  # noqa: PTH118 - with a slash at its end
    except OSError:
        return text  # the working folder was deleted
    return text if base == "/" else re.sub(rf"(?<![\w/.-]){base}(?=\S)", "", text)


def several(names: Sequence[str], total: int) -> str:
    """Return some of ``total`` models in words: the first of them by name, or all of them by number."""
    if len(names) == total > 1:
        return f"all {total} models"
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return f"{', '.join(map(short, names[:_NAMED]))}{more}"


def short(name: str) -> str:
    """Return a model's name as short as a screen needs it; whole in a pipe."""
    return shorten(name, 30) if screen_width() else name


def runs_by_project(places: Iterable[Optional[str]]) -> list[str]:
    """Return how many runs each W&B project or offline folder has, a line each."""
    runs: dict[str, int] = {}
    for where in places:
        if where and "://" in where:
            found = where.partition("/runs/")[0]
        else:
            found = str(Path(where).parent) if where else "no session yet"
        runs[found] = runs.get(found, 0) + 1
    return [f"{count} run{'s' if count > 1 else ''}: {where}" for where, count in runs.items()]


def table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], kinds: str, width: Optional[int]
) -> list[str]:
    """Return the lines of a table that fits a width; numbers are never cut.

    Args:
        headings: One per column.
        rows: Cells, one per column.
        kinds: A letter per column: ``n`` for names, which are shortened in the middle, ``r`` for numbers,
            which are aligned to the right, ``l`` for words, ``t`` for a text, which is cut at its end.
        width: Columns of the screen; None for a pipe: nothing is shortened.
    """
    widths = [max(map(text_width, cells)) for cells in zip(headings, *rows)]
    if width is not None:
        _narrow(widths, headings, rows, kinds, width)
    return [
        _GAP.join(_cell(*column) for column in zip(row, widths, kinds)).rstrip() for row in (headings, *rows)
    ]


def _narrow(
    widths: list[int], headings: Sequence[str], rows: Sequence[Sequence[str]], kinds: str, width: int
) -> None:
    """Make columns narrower until a table fits: texts first, then names, then headings of numbers."""
    smallest = {"t": max(_SHORTEST, text_width(headings[-1])), "n": _SHORTEST}
    excess = sum(widths) + len(_GAP) * (len(widths) - 1) - width
    for kind in "tnr":
        for column, _ in enumerate(widths):
            if kinds[column] == kind and excess > 0:
                least = smallest.get(kind) or max((text_width(row[column]) for row in rows), default=0)
                less = max(0, min(excess, widths[column] - max(least, 4)))
                widths[column] -= less
                excess -= less


def _cell(text: str, width: int, kind: str) -> str:
    text = shorten(text, width) if kind == "n" else cut(text, width)
    padding = " " * (width - text_width(text))
    return padding + text if kind == "r" else text + padding
