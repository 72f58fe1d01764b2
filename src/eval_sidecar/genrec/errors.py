"""The one error of an evaluation; its text is the whole report."""

from __future__ import annotations


class EvaluationError(Exception):
    """An evaluation failed; the text is one line: what, where, why, and what to do."""


def printable(text: str) -> str:
    r"""Return a text with escapes (``\n``, ``\x1b``) for everything that is not printable."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def one_line(error: BaseException, limit: int = 300) -> str:
    """Return what another library's error says, as one line of at most ``limit`` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
