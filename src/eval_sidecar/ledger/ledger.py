"""What is known of one model's checkpoints: seen, evaluated, failed, delivered. Pure transitions.

A `Ledger` is a value; every transition returns a new one. `eval_sidecar.ledger.store` keeps it in a file.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Optional

from eval_sidecar.ledger.entry import CARRIED, Delivery, Entry, Failure, Running
from eval_sidecar.ledger.shared_failure import NO_FAILURE, SharedFailure
from eval_sidecar.types import (
    NEVER_FORCED,
    UNKNOWN,
    Completeness,
    Content,
    Forced,
    Handle,
    Origin,
    Place,
    Point,
    Result,
)

__all__ = [
    "CARRIED",
    "Delivery",
    "Entry",
    "Failure",
    "Ledger",
    "Running",
]


#: How a process reports, as `Ledger.writer` says: it has not reached the tracker yet, or has.
ASKING, ONLINE = "asking", "online"


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
        session_open: Whether a delivery session has begun and not ended.
        table_due: Whether the run may lack the table and the summary of its points.
        problem: Why the last delivery is incomplete, or None.
        busy: Why no evaluation could be started at the last look, or None.
        shared_failure: How evaluations fail for a cause that is not a checkpoint's own.
        places: Where the model lives, and before that lived; none if nobody has said so yet.
        moved: Whether a person says that whatever has this name is this training.
        settings: What evaluations were made with, by key.
        forced: The last request to evaluate everything once more.
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
    shared_failure: SharedFailure = NO_FAILURE
    places: tuple[Place, ...] = ()
    moved: bool = False
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    forced: Forced = NEVER_FORCED
    where: Optional[str] = None
    writer: Optional[Mapping[str, Any]] = None
    updated: Optional[str] = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def entry(self, step: int) -> Entry:
        """Return what is known of a step; an empty entry if nothing is."""
        return self.entries.get(step) or Entry(step)

    def steps(self) -> list[Entry]:
        """Return all entries by step."""
        return [self.entries[step] for step in sorted(self.entries)]

    def points(self) -> tuple[Point, ...]:
        """Return every result as a point, by step, but those that are not sent any more."""
        return tuple(
            entry.point(entry.delivery.revision if entry.delivery else 0)
            for entry in self.steps()
            if entry.result is not None and not entry.is_withheld
        )

    def with_entry(self, step: int, **changes: Any) -> Ledger:  # noqa: ANN401 - the fields of Entry
        """Return the ledger with changed fields of one step's entry."""
        return self.with_entries([replace(self.entry(step), **changes)])

    def with_entries(self, changed: Iterable[Entry]) -> Ledger:
        """Return the ledger with these entries in place of theirs."""
        return replace(self, entries={**self.entries, **{entry.step: entry for entry in changed}})

    # -- the model ----------------------------------------------------------------------------------

    def placed(self, *places: Place) -> Ledger:
        """Record that the model has lived in these places, now in the last one.

        Not all are kept: a container has a new name at each start.
        """
        known = self.places
        for place in places:
            known = (place, *(one for one in known if not one.is_same(place)))[:20]
        return replace(self, places=known)

    def with_moved(self, moved: bool) -> Ledger:
        """Record whether the user says that whatever has this name is this training."""
        return replace(self, moved=moved)

    def with_reporting(self, reporting: str) -> Ledger:
        """Record how the process that works on this reports: `ASKING`, `ONLINE`, or why it does not."""
        return replace(self, writer={**(self.writer or {}), "reporting": reporting})

    def written_by(self, writer: Mapping[str, Any]) -> Ledger:
        """Record that this process works on the ledger from now on."""
        return replace(self, writer=writer)

    def warned(self, warnings: Iterable[str]) -> Ledger:
        """Record what the process that works on this has found of its machine."""
        return replace(self, writer={**(self.writer or {}), "warnings": list(warnings)})

    # -- checkpoints --------------------------------------------------------------------------------

    def judged(
        self, step: int, verdict: Completeness, evidence: tuple[str, ...], *, pinned: bool, at: str
    ) -> Ledger:
        """Record a verdict on how completely a checkpoint is written, and whether it is pinned."""
        entry = self.entry(step).judged(verdict, evidence, pinned=pinned, at=at)
        provable = self.provable or verdict == Completeness.COMPLETE
        return replace(self.with_entries([entry]), provable=provable)

    def unpinned(self, step: int) -> Ledger:
        """Record that a step's checkpoint has no pin any more."""
        return self.with_entry(step, pinned=False)

    # -- evaluation ---------------------------------------------------------------------------------

    def forcing(self, settings: Optional[str], *, anew: bool) -> Ledger:
        """Request one more evaluation of everything; with the same settings, continue unless `anew`."""
        goes_on = self.forced.is_wanted and self.forced.settings == settings and not anew
        number = self.forced.round + (0 if goes_on else 1)
        return replace(self, forced=Forced(number, settings, True))

    def not_forcing(self) -> Ledger:
        """Record that this start requests no repeated evaluation."""
        return replace(self, forced=replace(self.forced, is_wanted=False)) if self.forced.is_wanted else self

    def with_settings(self, key: Optional[str], values: Mapping[str, Any]) -> Ledger:
        """Record the settings that a key stands for."""
        return (
            self
            if key is None or key in self.settings
            else replace(self, settings={**self.settings, key: values})
        )

    def written_with(self, key: Optional[str]) -> Ledger:
        """Record that the process that works on this ledger evaluates with these settings from now on."""
        return self if self.writer is None else replace(self, writer={**self.writer, "settings": key})

    def holding(self, step: int, content: Content) -> Ledger:
        """Record what a step's weights are now."""
        return self.with_entries([self.entry(step).holding(content)])

    def started(self, step: int, running: Running) -> Ledger:
        """Record that an evaluation was started, or what else is known of it."""
        return self.with_entries([self.entry(step).begun(running)])

    def submitted(self, step: int, handle: Handle) -> Ledger:
        """Record the handle of an evaluation that the launcher has accepted."""
        return self._with_running(step, handle=handle)

    def followed(self, step: int, *, started_at: float, state: Optional[str]) -> Ledger:
        """Record since when a running evaluation computes, and its state."""
        return self._with_running(step, started_at=started_at, state=state)

    def ending(self, step: int, why: str, *, evicted: bool = False) -> Ledger:
        """Record that the sidecar is about to end an evaluation. Saved before: later it looks cancelled.

        Args:
            step: Its step.
            why: The reason, which the failure will give.
            evicted: Whether the machine has taken it away, which costs no attempt.
        """
        return self._with_running(step, ending=why, evicted=evicted)

    def _with_running(self, step: int, **changes: Any) -> Ledger:  # noqa: ANN401 - the fields of Running
        entry = self.entry(step)
        assert entry.running is not None, f"{entry.name} is not being evaluated"
        return self.with_entry(step, running=replace(entry.running, **changes))

    def busy_with(self, reason: Optional[str]) -> Ledger:
        """Record why no evaluation can be started now; None if one can be."""
        return replace(self, busy=reason)

    def interrupted(self, step: int) -> Ledger:
        """Record that an evaluation was interrupted; it does not count as an attempt."""
        return self.with_entry(step, running=None)

    def evicted(self, step: int, reason: str) -> Ledger:
        """Record that an evaluation was evicted: not an attempt, but counted separately."""
        return self.with_entry(step, running=None, evictions=(*self.entry(step).evictions, reason))

    def failed(self, step: int, failure: Failure) -> Ledger:
        """Record a failed attempt."""
        entry = self.entry(step)
        number = self.forced.round if failure.final else entry.round
        return self.with_entry(step, running=None, attempts=entry.attempts + 1, failure=failure, round=number)

    def failed_with_other_weights(self, step: int, failure: Failure) -> Ledger:
        """Record a failure with weights that were replaced: not an attempt with the current ones."""
        return self.with_entry(step, running=None, failure=failure)

    def evaluated(self, step: int, result: Result, origin: Origin = UNKNOWN, number: int = 0) -> Ledger:
        """Record a result. The same numbers again do not change their delivery."""
        return self.with_entries([self.entry(step).evaluated(result, origin, number)])

    def found(self, step: int, result: Result, origin: Origin, settings: Mapping[str, Any]) -> Ledger:
        """Return the ledger with a result that is shown beside its own and never sent."""
        ledger = self.with_settings(origin.settings, settings)
        return ledger.with_entries([Entry(step, result=result, origin=origin)])

    def with_shared_failure(self, found: SharedFailure) -> Ledger:
        """Record that an evaluation failed or succeeded, or begins with another script."""
        return self if found == self.shared_failure else replace(self, shared_failure=found)

    def cleared(self, steps: Optional[Iterable[int]] = None) -> Ledger:
        """Forget failures, of these steps or of all, so that they are tried again; a pause ends."""
        chosen = self.entries if steps is None else set(steps)
        ledger = self.with_entries(
            replace(
                entry,
                attempts=0,
                evictions=(),
                failure=None,
                round=0 if entry.failure else entry.round,
                verdict=None if entry.verdict == Completeness.GONE else entry.verdict,
            )
            for entry in self.steps()
            if entry.step in chosen
        )
        busy = None if self.shared_failure.pauses else self.busy
        return replace(ledger, busy=busy, shared_failure=SharedFailure(self.shared_failure.key))

    def with_origins(self, origins: Mapping[int, Origin]) -> Ledger:
        """Record the origins of these steps' results."""
        return self.with_entries(replace(self.entry(step), origin=one) for step, one in origins.items())

    def taking(self, entries: Iterable[Entry], known: Ledger, *, unread: Iterable[int]) -> Ledger:
        """Record results that were taken from disk.

        Args:
            entries: Entries with their results.
            known: The ledger that has the model's places and settings.
            unread: Steps whose result could not be read, and is now gone.
        """
        ledger = self.without_failures(unread).with_entries(entries)
        return replace(ledger, places=known.places, settings=known.settings)

    def without_failures(self, steps: Iterable[int]) -> Ledger:
        """Forget failures of these steps, and steps of which nothing else is known."""
        entries = dict(self.entries)
        for step in steps:
            entry = replace(entries.pop(step), failure=None)
            if entry != Entry(step):
                entries[step] = entry
        return replace(self, entries=entries)

    def with_unreadable_result(self, step: int, error: str, at: str) -> Ledger:
        """Record that a result on disk cannot be read."""
        return self.with_entries([self.entry(step).unreadable(error, at)])

    # -- delivery -----------------------------------------------------------------------------------

    def with_deliveries(self, deliveries: Mapping[int, Delivery]) -> Ledger:
        """Record the deliveries of these steps' points."""
        return self.with_entries(
            replace(self.entry(step), delivery=delivery) for step, delivery in deliveries.items()
        )

    def sending(self, intents: Mapping[int, Delivery]) -> Ledger:
        """Record that a session is about to send these points, and the table. Saved before it does."""
        return replace(self.with_deliveries(intents), session_open=True, table_due=True)

    def not_sent(self, before: Ledger, steps: Iterable[int]) -> Ledger:
        """Record that the session sent nothing: these steps and the table are as before it."""
        undone = {step: before.entry(step).delivery or Delivery() for step in steps}
        ledger = self.with_deliveries(undone)
        return replace(ledger, session_open=before.session_open, table_due=before.table_due)

    def was_sent(self, where: str, *, via: Optional[str], steps: Iterable[int], table_due: bool) -> Ledger:
        """Record that the session has ended.

        Args:
            where: Address of the run, or folder of the offline session.
            via: The same, if it cannot be read back.
            steps: The points that it was to send.
            table_due: Whether the table must be sent again.
        """
        known = {step: self.entry(step).delivery or Delivery() for step in steps}
        ledger = self.with_deliveries({step: replace(one, via=via) for step, one in known.items()})
        return replace(ledger, session_open=False, where=where, table_due=table_due)

    def with_table_due(self, due: bool) -> Ledger:
        """Record whether the run's table and summary must be sent."""
        return replace(self, table_due=due)

    def with_address(self, where: Optional[str]) -> Ledger:
        """Record that the tracker was reached, and where points are found, if it can say."""
        is_asking = (self.writer or {}).get("reporting") == ASKING
        return replace(self.with_reporting(ONLINE) if is_asking else self, where=where or self.where)

    def with_problem(self, problem: Optional[str]) -> Ledger:
        """Record why a delivery is incomplete; None if it is complete."""
        return replace(self, problem=problem)

    def due(self) -> list[Entry]:
        """Return the entries whose point has to be sent or looked up, by step."""
        return [entry for entry in self.steps() if entry.due() is not None]

    def undelivered(self) -> list[Entry]:
        """Return the entries whose result, as it is now, has not been sent, by step."""
        return [entry for entry in self.due() if entry.is_unsent]

    def unconfirmed(self) -> list[Entry]:
        """Return the entries whose result was sent and not yet seen on the server, by step."""
        return [entry for entry in self.due() if not entry.is_unsent]

    @property
    def is_due(self) -> bool:
        """Whether anything has to be sent or looked up."""
        return self.table_due or any(entry.due() is not None for entry in self.entries.values())
