"""Facts about a model and its checkpoints, computed once for every screen. No I/O, nothing is printed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.best import HEADLINE, best_step
from eval_sidecar.ledger.ledger import Entry, Ledger
from eval_sidecar.ledger.settings import differences
from eval_sidecar.ledger.status import other_settings, settings_line, why_denied
from eval_sidecar.types import Completeness, DeliveryStatus

#: How many evaluations, the newest ones, the estimated duration is taken from.
_RECENT = 5

#: Why a complete checkpoint has no result yet.
READY = "complete, for the next pass of a running sidecar"


@dataclass(frozen=True)
class Problem:
    """Something that is wrong now.

    Attributes:
        kind: ``delivery``, ``evaluation`` or ``checkpoint``.
        text: What is wrong, on one line.
        checkpoints: The checkpoints that it concerns; none if it concerns the model.
        log: The newest log that tells more.
    """

    kind: str
    text: str
    checkpoints: tuple[str, ...] = ()
    log: Optional[str] = None

    def __str__(self) -> str:
        about = ", ".join(self.checkpoints) or self.kind
        return f"{about}: {self.text}"


@dataclass(frozen=True)
class CheckpointFacts:
    """One checkpoint.

    Attributes:
        entry: What the ledger says.
        stage: ``evaluated``, ``running``, ``failed``, ``waiting``, ``deleted`` or ``abandoned``.
        mark: ``!`` if the result is of weights that were replaced, ``*`` if it was made with other settings
            than the current ones, ``?`` if the settings are unknown; else empty.
        delivery: How far its point has come; None without a result.
        settings: What the result was made with; None if unknown.
        changes: How these differ from the current settings, in words.
        elapsed: Seconds since its evaluation began; None if none is running.
        estimated: Seconds that an evaluation of this model usually takes, if one is running.
        problem: Why there is no result, or not the requested one.
    """

    entry: Entry
    stage: str
    mark: str = ""
    delivery: Optional[str] = None
    settings: Optional[Mapping[str, Any]] = None
    changes: tuple[str, ...] = ()
    elapsed: Optional[float] = None
    estimated: Optional[float] = None
    problem: Optional[str] = None

    @property
    def metrics(self) -> Mapping[str, float]:
        """The numbers by name; empty without a result."""
        return self.entry.result.metrics if self.entry.result else {}


@dataclass(frozen=True)
class ModelFacts:
    """One model.

    Attributes:
        ledger: The ledger that the facts are from.
        state_file: Its file; None if the facts are from results alone.
        checkpoints: By step.
        best: Of each headline metric, the step with the highest value. Results of replaced weights do not
            count.
        problems: Everything that is wrong now: delivery first, then the newest failure.
        settings_changed: What differs between the settings of results, in one sentence; None if nothing.
    """

    ledger: Ledger
    state_file: Optional[Path]
    checkpoints: tuple[CheckpointFacts, ...]
    best: Mapping[str, int]
    problems: tuple[Problem, ...]
    settings_changed: Optional[str]

    @property
    def name(self) -> str:
        """The model's name."""
        return self.ledger.model_dir

    @property
    def warnings(self) -> Sequence[str]:
        """What evaluations on this machine lack, as found when the sidecar started."""
        found: Sequence[str] = (self.ledger.writer or {}).get("warnings", ())
        return found

    @property
    def running(self) -> list[CheckpointFacts]:
        """Checkpoints that are being evaluated, by step."""
        return [one for one in self.checkpoints if one.entry.running]

    @property
    def waiting(self) -> list[CheckpointFacts]:
        """Checkpoints that are still to be evaluated, by step."""
        return [one for one in self.checkpoints if one.entry.is_pending and not one.entry.running]

    @property
    def evaluated(self) -> int:
        """Number of checkpoints that need no evaluation any more."""
        return sum(one.entry.processed for one in self.checkpoints)

    @property
    def failed(self) -> int:
        """Number of checkpoints that are not retried until a user asks for it."""
        return sum(one.entry.has_failed for one in self.checkpoints)

    def lost(self, verdict: str) -> int:
        """Return how many checkpoints have this verdict and will never have a result."""
        return sum(one.entry.verdict == verdict and not one.entry.processed for one in self.checkpoints)

    @property
    def metric_names(self) -> list[str]:
        """Every metric of any checkpoint: the headline metrics first, then as the files have them."""
        names = dict.fromkeys(name for one in self.checkpoints for name in one.metrics)
        return [*(name for name in HEADLINE if name in names), *(n for n in names if n not in HEADLINE)]

    def best_value(self, metric: str) -> float:
        """Return the value of a metric at its best step."""
        return next(one for one in self.checkpoints if one.entry.step == self.best[metric]).metrics[metric]


def model_facts(ledger: Ledger, state_file: Optional[Path], now: float) -> ModelFacts:
    """Return the facts about one model.

    Args:
        ledger: What is known of it.
        state_file: The ledger's file, if it has one.
        now: Seconds since the epoch.
    """
    entries = ledger.steps()
    others = {step for steps in other_settings(ledger).values() for step in steps}
    usual = _usual_seconds(entries)
    current = {e.step: e.result.metrics for e in entries if e.result and not e.is_superseded}
    best = {metric: step for metric in HEADLINE if (step := best_step(current, metric)) is not None}
    return ModelFacts(
        ledger,
        state_file,
        tuple(_checkpoint_facts(ledger, entry, entry.step in others, usual, now) for entry in entries),
        best,
        tuple(_problems(ledger)),
        settings_line(ledger),
    )


def _checkpoint_facts(
    ledger: Ledger, entry: Entry, has_other_settings: bool, usual: Optional[float], now: float
) -> CheckpointFacts:
    settings = ledger.settings.get(entry.origin.settings or "")
    current = ledger.settings.get((ledger.writer or {}).get("settings", ""), settings)
    mark = ""
    if entry.result is not None:
        if entry.is_superseded:
            mark = "!"
        elif has_other_settings:
            mark = "*"
        elif entry.origin.settings is None and ledger.settings:
            mark = "?"
    return CheckpointFacts(
        entry,
        _stage(entry),
        mark,
        delivery_state(entry),
        settings,
        tuple(differences(settings, current)) if settings is not None and current is not None else (),
        max(0.0, now - entry.running.started_at) if entry.running else None,
        usual if entry.running and "PENDING" not in (entry.running.state or "") else None,
        _why_without_result(ledger, entry),
    )


def _stage(entry: Entry) -> str:
    if entry.running:
        return "running"
    if entry.has_failed:
        return "failed"
    if entry.processed:
        return "evaluated"
    if entry.verdict == Completeness.GONE:
        return "deleted"
    return "abandoned" if entry.verdict == Completeness.ABANDONED else "waiting"


def delivery_state(entry: Entry) -> Optional[str]:
    """Return how far the point of a result has come, in words; None without a result in a ledger."""
    if entry.result is None or entry.delivery is None:
        return None
    if (due := entry.due()) is not None:
        return due.status
    return "not sent" if entry.is_withheld else DeliveryStatus.CONFIRMED


def _why_without_result(ledger: Ledger, entry: Entry) -> Optional[str]:
    if entry.failure:
        return entry.failure.error
    if entry.processed or entry.running:
        return None
    if entry.verdict == Completeness.GONE:
        return "was deleted before it could be evaluated"
    if entry.is_pending and ledger.busy:
        return ledger.busy
    if entry.verdict == Completeness.COMPLETE:
        return READY
    return "; ".join(entry.evidence) or entry.verdict


def _usual_seconds(entries: Sequence[Entry]) -> Optional[float]:
    """Return the median of the newest evaluations' durations; None if none is known."""
    took = []
    for entry in reversed(entries):
        # The file of an unpacked result has the time of its arrival; such a result has no `first_seen`.
        began = seconds_of(entry.origin.at) if entry.first_seen and entry.result else None
        if began is not None and entry.result is not None and (end := entry.result.stamp[1] / 1e9) >= began:
            took.append(end - began)
    recent = sorted(took[:_RECENT])
    return recent[len(recent) // 2] if recent else None


def seconds_of(moment: Optional[str]) -> Optional[float]:
    """Return an ISO 8601 text as seconds since the epoch; None if it is not one."""
    try:
        found = datetime.fromisoformat(moment or "")
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


def _problems(ledger: Ledger) -> list[Problem]:
    """Return everything that is wrong now; checkpoints that fail for the same reason are one problem."""
    found = [Problem("delivery", ledger.problem)] if ledger.problem else []
    failures = [(entry.failure, entry) for entry in ledger.steps() if entry.failure]
    failures.sort(key=lambda pair: (pair[0].time, pair[1].step), reverse=True)
    by_text: dict[tuple[str, str], list[Entry]] = {}
    for failure, entry in failures:
        again = "" if failure.final else " (will retry)"
        by_text.setdefault(("evaluation", failure.error + again), []).append(entry)
    for entry in ledger.steps():
        if denied := why_denied(entry):
            by_text.setdefault(("checkpoint", denied), []).append(entry)
        elif entry.verdict == Completeness.GONE and not entry.processed and not entry.failure:
            by_text.setdefault(("checkpoint", "was deleted before it could be evaluated"), []).append(entry)
    for (kind, text), entries in by_text.items():
        log = entries[0].failure.log if entries[0].failure else None
        names = tuple(entry.name for entry in sorted(entries, key=lambda entry: entry.step))
        found.append(Problem(kind, text, names, log))
    return found
