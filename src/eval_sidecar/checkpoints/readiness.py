"""From a checkpoint on disk to one that may be evaluated: judged, noted in the ledger, and pinned."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.checkpoints.completeness import (
    INCOMPLETE,
    INCOMPLETE_MARKER,
    Verdict,
    awaits_more,
    changed_at,
    companions,
    fingerprint,
    judge,
    unreadable,
)
from eval_sidecar.checkpoints.linking import list_files
from eval_sidecar.checkpoints.pinning import Need, Pins
from eval_sidecar.checkpoints.weights import CONTAINERS
from eval_sidecar.errors import CheckpointError
from eval_sidecar.ledger.ledger import Entry, Running
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.types import Checkpoint, Completeness, now_text

log = logging.getLogger(__name__)

#: How many other checkpoints are listed to learn which files all have, and how many lists are kept.
_SAMPLE, _MOST_NAMES = 3, 16


_DELETED = "the folder has been deleted"


def need_of(entry: Entry, *, force: bool) -> Need:
    """Return what is still to be done with a checkpoint; `force`: evaluate it in any case."""
    if entry.running is not None:
        return Need.RUNNING
    if force:
        return Need.EVALUATION
    if entry.processed:
        return Need.NOTHING
    return Need.RETRY if entry.has_failed else Need.EVALUATION


class Readiness:
    """Judges the checkpoints of one model dir, by their pins if they have one.

    Args:
        store: The model's ledger.
        pins: Keeps them alive.
        ready_seconds: Quiet period of a checkpoint that cannot be proved complete.
        clock: Seconds since the epoch.
        monotonic: Seconds since some moment, never set back.
        warn_once: Logs what a user should read once.
    """

    def __init__(
        self,
        store: LedgerStore,
        pins: Pins,
        *,
        ready_seconds: float,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        warn_once: WarnOnce,
    ) -> None:
        self._store = store
        self._pins = pins
        self._ready_seconds = ready_seconds
        self._clock = clock
        self._monotonic = monotonic
        self._warn_once = warn_once
        self._quiet_since: dict[int, tuple[float, float]] = {}  # step: (newest mtime, since when)
        self._due: dict[int, float] = {}  # step: when it may be evaluated if nothing happens
        self._names: dict[int, frozenset[str]] = {}  # step: all names that were seen in it

    # -- a pass -------------------------------------------------------------------------------------

    def begin_pass(self, present: Iterable[Checkpoint]) -> None:
        """Note which pins were given up, and list a few checkpoints, to learn which files all have."""
        self._due.clear()
        here = {checkpoint.step: checkpoint for checkpoint in present}
        for step, why in self._pins.take_given_up().items():
            entry = self._store.ledger.entry(step)
            if not entry.processed:
                facts = (*entry.evidence, f"pin given up: {why}")
                name = Completeness.GONE if step not in here else entry.verdict or Completeness.COMPLETE
                self._note(entry, Verdict(name, facts), pinned=False)
        if notice := self._pins.take_notice():
            self._warn_once(notice)
        for step in sorted(here, reverse=True)[: _SAMPLE if len(self._names) < _SAMPLE else 0]:
            if step not in self._names:
                self._see(here[step])

    def seconds_to_wait(self) -> float:
        """Return how long until the first quiet period ends; infinite if nothing settles."""
        return max(0.0, min(self._due.values(), default=float("inf")) - self._monotonic())

    def prepare(
        self, entry: Entry, present: Optional[Checkpoint], held: Optional[Checkpoint]
    ) -> Optional[Checkpoint]:
        """Judge a checkpoint that has no result.

        Args:
            entry: What the ledger knows of it.
            present: The trainer's folder, if it is there.
            held: The links that keep it alive, if there are any.

        Returns:
            The checkpoint to evaluate, or None if it may not be evaluated yet, or is gone.
        """
        subject = held or present
        if subject is None:
            if entry.first_seen is not None:
                self._note_gone(entry, entry.evidence)
            return None
        verdict = self._judge(subject, present)
        if verdict.name == Completeness.PARTIAL and held is not None and present is not None:
            verdict = self._judge_anew(held, present) or verdict
        if present is not None:  # a user should look at the trainer's folder
            shown = (fact.replace(str(subject.path), str(present.path)) for fact in verdict.evidence)
            verdict = replace(verdict, evidence=tuple(shown))
        if not verdict.ready:
            if present is not None or (
                verdict.name == Completeness.SETTLING and not self._is_unfinished(subject)
            ):
                # Part of a checkpoint is pinned too, but that is useless.
                self._note(entry, verdict, pinned=held is not None and verdict.name == Completeness.SETTLING)
            else:
                self.unpin(entry.step)
                self._note_gone(entry, entry.evidence or verdict.evidence)
            return None
        checkpoint, note = self._as_kept(subject, present, is_held=held is not None)
        if checkpoint is not None:
            evidence = (*verdict.evidence, note)
            self._note(entry, replace(verdict, evidence=evidence), pinned=held is not None)
        return checkpoint

    def is_ready(self, checkpoint: Checkpoint) -> bool:
        """Return whether a folder of the trainer's may be evaluated as it is now."""
        return self._judge(checkpoint, checkpoint).ready

    def _as_kept(
        self, subject: Checkpoint, present: Optional[Checkpoint], *, is_held: bool
    ) -> tuple[Optional[Checkpoint], str]:
        """Return the checkpoint to evaluate, None if its pin has just been given up; and what was done."""
        if is_held:
            try:
                return self._pins.prepare(subject.step), "pinned"
            except CheckpointError as error:
                self._warn_once(str(error))
                return present, "not pinned"
        if lack := self._pins.lack:
            self._warn_once(f"{lack}: checkpoints are not pinned until there is more")
            return subject, "not pinned: too little free space"
        reason = self._pins.why_not(subject.step)
        if reason:
            self._warn_once(
                f"{reason}: checkpoints are evaluated where they are, and rotation may delete them first"
            )
            return subject, "not pinned: no hard links here"
        return subject, "not pinned: there was too little free space a moment ago"

    def _is_unfinished(self, checkpoint: Checkpoint) -> bool:
        """Return whether it was deleted before it was completely written, as far as is known."""
        names = {path.name for path in checkpoint.path.iterdir()}
        return awaits_more(checkpoint.path, names, self._store.ledger.provable)

    def _note_gone(self, entry: Entry, evidence: tuple[str, ...]) -> None:
        if not entry.processed and entry.verdict != Completeness.GONE:
            log.error("%s: was deleted before it could be evaluated", entry.name)
            known = tuple(fact for fact in evidence if fact != _DELETED)
            self._note(entry, Verdict(Completeness.GONE, (*known, _DELETED)), pinned=False)

    # -- judging ------------------------------------------------------------------------------------

    def _judge(self, subject: Checkpoint, present: Optional[Checkpoint]) -> Verdict:
        try:
            changed = self._changed_at(subject, present)
        except OSError as error:  # permission denied: say so
            return Verdict(Completeness.PARTIAL, (unreadable(subject.path, error),))
        self._see(subject)
        known = self._quiet_since.get(subject.step)
        if known is None or known[0] != changed:
            known = self._quiet_since[subject.step] = (changed, self._monotonic())
        # By the files' times, or, if the clocks differ, by how long it was seen unchanged.
        unchanged = max(self._clock() - changed, self._monotonic() - known[1])
        verdict = judge(
            subject,
            quiet_seconds=self._ready_seconds,
            unchanged_seconds=unchanged,
            trainer_state_expected=self._store.ledger.provable,
            usual=self._usual(subject.step),
        )
        if verdict.ready and present is not None and (present.path / INCOMPLETE_MARKER).exists():
            return Verdict(Completeness.PARTIAL, (INCOMPLETE,))
        if verdict.ready_in is not None:
            self._due[subject.step] = self._monotonic() + verdict.ready_in
        return verdict

    def _judge_anew(self, held: Checkpoint, present: Checkpoint) -> Optional[Verdict]:
        """Judge the trainer's folder if its pin is partial; return None if it is no better.

        If it is, the trainer has removed something on purpose.
        """
        try:
            names = list_files(present.path).keys()
        except OSError:
            return None
        verdict = self._judge(present, present)
        if verdict.name in (Completeness.PARTIAL, Completeness.ABANDONED, Completeness.GONE):
            return None
        self._pins.forget_others(held.step, names)
        return verdict

    @staticmethod
    def _changed_at(subject: Checkpoint, present: Optional[Checkpoint]) -> float:
        """Return when the trainer last changed anything; our own folders of links are newer."""
        files = list_files(subject.path).values() if subject.path.is_dir() else ()
        times = [file.status.st_mtime for file in files if file.status]
        if present is not None:
            with contextlib.suppress(FileNotFoundError):
                times.append(changed_at(present.path))
        return max(times, default=0.0)

    def _see(self, checkpoint: Checkpoint) -> None:
        try:
            names = frozenset(path.name for path in checkpoint.path.iterdir())
        except OSError:
            return
        self._names[checkpoint.step] = self._names.pop(checkpoint.step, frozenset()) | names
        if len(self._names) > _MOST_NAMES:
            del self._names[next(iter(self._names))]

    def _usual(self, step: int) -> Optional[frozenset[str]]:
        """Return the files that all other finished checkpoints have; None if there are none."""
        others = [
            found
            for other, names in self._names.items()
            if other != step and (found := companions(names)) is not None
        ]
        return frozenset.intersection(*others) if others else None

    # -- evaluations --------------------------------------------------------------------------------

    def check_out(self, checkpoint: Checkpoint) -> Optional[Checkpoint]:
        """Make the copy of a pinned checkpoint that its evaluation gets; of any other, return it.

        Returns:
            None if it is not ready any more: its trainer has begun to rewrite it, or there is no space.
        """
        step, present = checkpoint.step, self._pins.original(checkpoint.step)
        self._pins.look([step])
        held = self._pins.held().get(step)
        if held is None:
            return present if present.path.is_dir() else None
        if not judge(held, quiet_seconds=0.0, unchanged_seconds=0.0).ready:
            return None
        self._forget_others(held, present)
        try:
            return self._pins.check_out(step)
        except CheckpointError as error:
            self._warn_once(f"{error}; will retry")
            return None

    def _forget_others(self, held: Checkpoint, present: Checkpoint) -> None:
        """Drop from a pin what the trainer has removed, unless it is deleting the checkpoint."""
        try:
            names = list_files(present.path).keys()
            usual = companions({path.name for path in held.path.iterdir()})
        except OSError:
            return
        if (
            judge(present, quiet_seconds=0.0, unchanged_seconds=0.0, usual=usual).name
            == Completeness.COMPLETE
        ):
            self._pins.forget_others(held.step, names)

    def fingerprint(self, checkpoint: Checkpoint) -> tuple[tuple[str, int, int], ...]:
        """Return name, size and mtime of the trainer's files, not of a script's copies."""
        held = self._pins.held().get(checkpoint.step)
        return fingerprint((held or checkpoint).path)

    def was_rewritten(self, step: int, running: Running) -> bool:
        """Return whether the trainer has changed a file of the checkpoint that an evaluation has read.

        Deleted and added files do not count. Nor do replaced weights if those that were read are intact: they
        are another checkpoint with the same step.
        """
        self._pins.look([step])
        checkpoint = Checkpoint(step, Path(running.path))
        known = {name: (size, mtime) for name, size, mtime in running.fingerprint}
        held = self._pins.held().get(step)
        if held is not None and _are_others(checkpoint, held, known):
            return False
        now = {name: (size, mtime) for name, size, mtime in self.fingerprint(checkpoint)}
        return any(now.get(name, stamp) != stamp for name, stamp in known.items())

    # -- the ledger ---------------------------------------------------------------------------------

    def _note(self, entry: Entry, verdict: Verdict, *, pinned: bool) -> None:
        if entry.verdict != verdict.name:
            log.info("%s: %s (%s)", entry.name, verdict.name, "; ".join(verdict.evidence))
        step, facts, now = entry.step, verdict.evidence, now_text()
        self._store.note(lambda ledger: ledger.judged(step, verdict.name, facts, pinned=pinned, at=now))

    def unpin(self, step: int) -> None:
        """Remove a checkpoint's pin, if it has one."""
        try:
            self._pins.release(step)
        except CheckpointError as error:
            self._warn_once(str(error))
        if self._store.ledger.entry(step).pinned:
            self._store.note(lambda ledger: ledger.unpinned(step))

    def release_failed(self) -> None:
        """Give up pins of failed checkpoints that the trainer has deleted; only a retry would need them."""
        failed = [entry.step for entry in self._store.ledger.steps() if entry.has_failed]
        for step in self._pins.release_failed(failed):
            entry = self._store.ledger.entry(step)
            log.warning("%s: its evaluation failed; its pin, the last copy, is removed", entry.name)
            facts = (*entry.evidence, "pin given up: the sidecar was stopped after the evaluation failed")
            self._note(entry, Verdict(Completeness.GONE, facts), pinned=False)
        self._store.save()


def _are_others(evaluated: Checkpoint, held: Checkpoint, known: Mapping[str, tuple[int, int]]) -> bool:
    """Return whether the weights that an evaluation has read are intact, and the pin has others.

    Args:
        evaluated: What the evaluation has read; its weights are links.
        held: What is kept of the trainer's folder as it is now.
        known: Size and mtime (ns) of each file when the evaluation began.
    """
    now = list_files(held.path)
    weights = {
        name: file
        for name, file in (list_files(evaluated.path) if evaluated.path.is_dir() else {}).items()
        if name in known and file.status is not None and file.path.suffix in CONTAINERS
    }
    are_intact = all(
        file.status is not None and (file.size, file.status.st_mtime_ns) == known[name]
        for name, file in weights.items()
    )
    are_held = any(name in now and file.is_same(now[name]) for name, file in weights.items())
    return bool(weights) and are_intact and not are_held
