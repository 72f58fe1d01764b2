"""What an upload prints: a line for each model with news, totals, addresses, and a line for each cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Optional

from eval_sidecar.cli.formats import runs_by_project, several
from eval_sidecar.cli.terminal import say
from eval_sidecar.delivery.delivery import Report
from eval_sidecar.delivery.uploading import ModelUpload


def print_news(uploads: Iterable[ModelUpload]) -> None:
    """Print a line for each model about which there is something to say, apart from its problem."""
    for done in uploads:
        if (said := _said(done)) is not None:
            say(f"{done.spec.model_dir}: {said}")


def print_pass(uploads: Sequence[ModelUpload]) -> None:
    """Print what became of every model, and the totals."""
    print_news(uploads)
    quiet = [done.spec.model_dir for done in uploads if _said(done) is None and not done.left]
    if quiet:
        say(f"{quiet[0] if len(quiet) == 1 else f'{len(quiet)} models'}: nothing new")
    if len(uploads) > 1 and any(_said(done) is not None for done in uploads):
        total: Counter[str] = Counter()
        for done in uploads:
            total.update(_counts(done.report))
        say(f"total        {len(uploads)} models: {_in_words(total)}")
    delivered = [done for done in uploads if done.report.where]
    if len(uploads) == 1 and delivered:
        say(f"W&B          run {delivered[0].spec.run_id}: {delivered[0].report.where}")
    else:
        for line in runs_by_project(done.report.where for done in delivered):
            say(f"W&B          {line}")


def problem_lines(uploads: Sequence[ModelUpload]) -> list[str]:
    """Return what is not done, one line for each model and problem; models with one cause share a line."""
    by_cause: dict[str, list[tuple[ModelUpload, str]]] = {}
    for done in uploads:
        for line in done.left:
            cause = done.report.problem
            key = cause if cause and line.endswith(cause) else f"{done.spec.model_dir}: {line}"
            by_cause.setdefault(key, []).append((done, line))
    lines = []
    for cause, found in by_cause.items():
        models = {done.spec.model_dir: done.report for done, _ in found}
        if len(models) == 1:
            lines += [f"{done.spec.model_dir}: {line}" for done, line in found]
            continue
        counts = (
            (sum(report.undelivered for report in models.values()), "not delivered"),
            (sum(report.unconfirmed for report in models.values()), "sent, but not confirmed"),
        )
        points = ", ".join(f"{count} points {words}" for count, words in counts if count)
        about = several(list(models), len(uploads))
        lines.append(f"{about}: {points + ': ' if points else ''}{cause}")
    return lines


def _said(done: ModelUpload) -> Optional[str]:
    counts = _counts(done.report)
    if done.report.sent_table and not counts:
        return "table sent"
    if done.taken and not counts:
        return f"new results: {done.taken}"
    if set(counts) <= {"not delivered"}:
        return None  # its problem says so
    return _in_words(counts)


def _counts(report: Report) -> dict[str, int]:
    counts = {
        "sent": report.sent,
        "confirmed": report.confirmed,
        "already there": report.already,
        "unconfirmed": report.unconfirmed,
        "not delivered": report.undelivered,
    }
    return {words: count for words, count in counts.items() if count}


def _in_words(counts: dict[str, int]) -> str:
    return ", ".join(f"{count} {words}" for words, count in counts.items())
