"""What is known of one model's checkpoints: seen, evaluated, failed, delivered. Pure transitions.

A `Ledger` is a value; every transition returns a new one. `eval_sidecar.store` keeps it in a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from eval_sidecar.types import Point, Result

PENDING = "pending"  # to be sent
SENT = "sent"  # the intent is on disk; what arrived is not known
CONFIRMED = "confirmed"  # read back from the server

#: `Delivery.via` of what an older script's state file calls processed: taken as delivered.
CARRIED = "the state file of an older version"


@dataclass(frozen=True)
class Delivery:
    """Where a point stands on its way to the tracker.

    Attributes:
        status: `PENDING`, `SENT` or `CONFIRMED`.
        revision: Revision of the point that this is about.
        digest: `Result.digest` of what was sent; None before.
        index: Index of the row on the server.
        sent_at: Seconds since the epoch.
        via: What is known about how it went: where an offline session lies, or who says that it is there.
    """

    status: str = PENDING
    revision: int = 0
    digest: Optional[str] = None
    index: Optional[int] = None
    sent_at: Optional[float] = None
    via: Optional[str] = None


@dataclass(frozen=True)
class Failure:
    """Why a checkpoint has no result.

    Attributes:
        time: ISO 8601, UTC.
        error: One line.
        log: The evaluation's log, or None where it did not come to that.
        final: Whether it is not tried again until somebody clears it.
    """

    time: str
    error: str
    log: Optional[str] = None
    final: bool = False


@dataclass(frozen=True)
class Running:
    """An evaluation under way: enough to find it again after a restart.

    Attributes:
        handle: The launcher's own words for the job.
        started_at: Seconds since the epoch.
        log: File that gets its output, as other attempts' have before.
        path: The folder that is evaluated.
        fingerprint: Name, size and mtime (ns) of each file in it at the start.
        before: Size and mtime (ns) of the ``metrics.json`` that was there before, if any.
        metrics: Where the evaluation is to leave its ``metrics.json``.
        state: Where the job stood when it was last looked at, in the launcher's words.
        ending: Why the sidecar ends it; None where it does not. Saved first: what is seen of the job
            afterwards looks like anybody's cancellation.
        evicted: Whether that is because the machine has taken it away, which costs no attempt.
        log_size: Bytes that were in the log before it.
    """

    handle: dict[str, Any]
    started_at: float
    log: str
    path: str
    fingerprint: tuple[tuple[str, int, int], ...]
    before: Optional[tuple[int, int]] = None
    metrics: Optional[str] = None
    state: Optional[str] = None
    ending: Optional[str] = None
    evicted: bool = False
    log_size: int = 0


@dataclass(frozen=True)
class Entry:
    """Everything about one checkpoint.

    Attributes:
        step: Training step.
        verdict: The last verdict on its completeness, or None where it was never looked at.
        evidence: What that verdict rests on.
        first_seen: ISO 8601, UTC.
        pinned: Whether hard links keep it alive.
        attempts: Evaluations that have failed since it was last cleared.
        evictions: Why evaluations were taken away by the machine since then, one text each.
        running: The evaluation under way.
        failure: Why the last evaluation failed.
        result: Its numbers.
        delivery: How far its point has come.
        listed: An older script's state file lists the step as processed, without its numbers.
    """

    step: int
    verdict: Optional[str] = None
    evidence: tuple[str, ...] = ()
    first_seen: Optional[str] = None
    pinned: bool = False
    attempts: int = 0
    evictions: tuple[str, ...] = ()
    running: Optional[Running] = None
    failure: Optional[Failure] = None
    result: Optional[Result] = None
    delivery: Optional[Delivery] = None
    listed: bool = False

    @property
    def name(self) -> str:
        """``checkpoint-<step>``."""
        return f"checkpoint-{self.step}"

    @property
    def processed(self) -> bool:
        """Whether the checkpoint needs no evaluation any more."""
        return self.result is not None or self.listed

    @property
    def has_failed(self) -> bool:
        """Whether it is not tried again until somebody clears its failure."""
        return self.failure is not None and self.failure.final

    @property
    def is_pending(self) -> bool:
        """Whether an evaluation is still to come, or under way."""
        lost = self.verdict in ("gone", "abandoned")
        return self.running is not None or not (self.processed or self.has_failed or lost)

    def due(self) -> Optional[Delivery]:
        """What of this checkpoint has to be sent or looked up; None where nothing has.

        A result that is not the one that was confirmed is due as the next revision.
        """
        if self.result is None or self.delivery is None:
            return None
        if self.delivery.status != CONFIRMED:
            return self.delivery
        if self.delivery.digest in (None, self.result.digest):
            return None
        return Delivery(PENDING, self.delivery.revision + 1)

    @property
    def is_unsent(self) -> bool:
        """Whether the result, as it is now, has not been sent."""
        due = self.due()
        return due is not None and (
            due.status == PENDING or (self.result is not None and due.digest != self.result.digest)
        )

    def evaluated(self, result: Result) -> Entry:
        """The entry with a result; the same numbers again change nothing about their delivery."""
        delivery = self.delivery or Delivery()
        if delivery.via == CARRIED and (self.result is None or _agree(self.result.metrics, result.metrics)):
            # Older scripts kept eight metrics of a file that holds more: that is no new result.
            delivery = replace(delivery, digest=result.digest)
        return replace(
            self, running=None, attempts=0, evictions=(), failure=None, result=result, delivery=delivery
        )

    def point(self, revision: int = 0) -> Point:
        """The point that stands for this checkpoint's result; it must have one."""
        assert self.result is not None
        return Point(self.step, self.name, self.result.metrics, self.result.path, revision)


@dataclass(frozen=True)
class Ledger:
    """One model's checkpoints.

    Attributes:
        model_dir: The model's name.
        run_id: The run that its points belong to.
        run_name: That run's name.
        entries: By step.
        provable: Whether a checkpoint of this model has been proved complete: its trainer then writes
            ``trainer_state.json`` each time.
        session_open: A delivery session began and was not seen to end.
        table_due: The run may not show the table and the summary that belong to its points.
        problem: Why the last delivery did not do everything, or None.
        busy: Why no evaluation could be started at the last look, or None.
        where: Address of the run, or the folder of the last offline session.
        writer: The process that works on this ledger: pid, start time, host, instance.
        updated: ISO 8601, UTC, of the last change.
        extra: Keys in the file that this version does not know; they are kept.
    """

    model_dir: str
    run_id: str
    run_name: str
    entries: Mapping[int, Entry] = field(default_factory=dict)
    provable: bool = False
    session_open: bool = False
    table_due: bool = False
    problem: Optional[str] = None
    busy: Optional[str] = None
    where: Optional[str] = None
    writer: Optional[Mapping[str, Any]] = None
    updated: Optional[str] = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, step: int) -> Entry:
        """What is known of a step; an empty entry where nothing is."""
        return self.entries.get(step) or Entry(step)

    def steps(self) -> list[Entry]:
        """All entries by step."""
        return [self.entries[step] for step in sorted(self.entries)]

    def points(self) -> tuple[Point, ...]:
        """Every result as a point, by step."""
        return tuple(
            entry.point(entry.delivery.revision if entry.delivery else 0)
            for entry in self.steps()
            if entry.result is not None
        )

    def with_entry(self, step: int, **changes: Any) -> Ledger:  # noqa: ANN401 - the fields of Entry
        """Change fields of one step's entry."""
        return self.with_entries([replace(self.entry(step), **changes)])

    def with_entries(self, changed: Iterable[Entry]) -> Ledger:
        """Replace whole entries."""
        return replace(self, entries={**self.entries, **{entry.step: entry for entry in changed}})

    # -- evaluation ---------------------------------------------------------------------------------

    def started(self, step: int, running: Running) -> Ledger:
        """An evaluation was started."""
        return self.with_entry(step, running=running)

    def interrupted(self, step: int) -> Ledger:
        """An evaluation ended for a reason that is not its own; the checkpoint is as if never tried."""
        return self.with_entry(step, running=None)

    def evicted(self, step: int, reason: str) -> Ledger:
        """The machine took an evaluation away: no attempt of the checkpoint's, but remembered."""
        return self.with_entry(step, running=None, evictions=(*self.entry(step).evictions, reason))

    def failed(self, step: int, failure: Failure) -> Ledger:
        """An evaluation failed by its own doing."""
        attempts = self.entry(step).attempts + 1
        return self.with_entry(step, running=None, attempts=attempts, failure=failure)

    def evaluated(self, step: int, result: Result) -> Ledger:
        """A result is there. The same numbers again change nothing about their delivery."""
        return self.with_entries([self.entry(step).evaluated(result)])

    def cleared(self, steps: Optional[Iterable[int]] = None) -> Ledger:
        """Forget failures, of these steps or of all, so that they are tried again."""
        chosen = self.entries if steps is None else set(steps)
        return self.with_entries(
            replace(
                entry,
                attempts=0,
                evictions=(),
                failure=None,
                verdict=None if entry.verdict == "gone" else entry.verdict,
            )
            for entry in self.steps()
            if entry.step in chosen
        )

    def without_failures(self, steps: Iterable[int]) -> Ledger:
        """Forget failures of these steps, and steps of which nothing else is known."""
        entries = dict(self.entries)
        for step in steps:
            entry = replace(entries.pop(step), failure=None)
            if entry != Entry(step):
                entries[step] = entry
        return replace(self, entries=entries)

    # -- delivery -----------------------------------------------------------------------------------

    def due(self) -> list[Entry]:
        """Entries whose point has to be sent or looked up, by step."""
        return [entry for entry in self.steps() if entry.due() is not None]

    def undelivered(self) -> list[Entry]:
        """Entries whose result, as it is now, has not been sent, by step."""
        return [entry for entry in self.due() if entry.is_unsent]

    def unconfirmed(self) -> list[Entry]:
        """Entries whose result was sent and has not been seen on the server, by step."""
        return [entry for entry in self.due() if not entry.is_unsent]

    @property
    def is_due(self) -> bool:
        """Whether anything has to be sent or looked up."""
        return self.table_due or any(entry.due() is not None for entry in self.entries.values())


def _agree(old: Mapping[str, float], new: Mapping[str, float]) -> bool:
    return all(new.get(key, value) == value for key, value in old.items())
