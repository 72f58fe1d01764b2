"""From a checkpoint on disk to one that may be evaluated: judged, noted in the ledger, and pinned."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.completeness import COMPLETE, GONE, PARTIAL, Verdict, changed_at, judge
from eval_sidecar.errors import CheckpointError
from eval_sidecar.ledger import Entry, Ledger
from eval_sidecar.pinning import Floor, PinsUnsupported, is_outdated, pin, space_is_short, unpin
from eval_sidecar.store import LedgerStore, now_text
from eval_sidecar.types import Checkpoint

log = logging.getLogger(__name__)


class WarnOnce:
    """Says each thing once in its life, however often it is noticed."""

    def __init__(self) -> None:
        self._said: set[str] = set()

    def __call__(self, text: str) -> None:
        """Log a warning, unless it was logged before."""
        if text not in self._said:
            self._said.add(text)
            log.warning("%s", text)


class Readiness:
    """Judges and pins the checkpoints of one model dir.

    Args:
        model_dir: The folder that holds them.
        name: The model's name.
        store: The model's ledger.
        ready_seconds: Quiet period of a checkpoint that cannot be proved complete.
        floor: Free space below which pins are given up.
        clock: Seconds since the epoch.
        monotonic: Seconds since some moment, never set back.
        warn_once: Takes what a person should read once.
    """

    def __init__(
        self,
        model_dir: Path,
        name: str,
        store: LedgerStore,
        *,
        ready_seconds: float,
        floor: Floor,
        clock: Callable[[], float],
        monotonic: Callable[[], float],
        warn_once: WarnOnce,
    ) -> None:
        self._model_dir = model_dir
        self._name = name
        self._store = store
        self._ready_seconds = ready_seconds
        self._floor = floor
        self._clock = clock
        self._monotonic = monotonic
        self._warn_once = warn_once
        self._quiet_since: dict[int, tuple[float, float]] = {}  # step: (newest mtime, since when)

    def prepare(
        self, entry: Entry, present: Optional[Checkpoint], pinned: Optional[Checkpoint]
    ) -> Optional[Checkpoint]:
        """Judge a checkpoint that has no result and, where it may be evaluated, pin it.

        Args:
            entry: What the ledger knows of it.
            present: The trainer's folder, if it is there.
            pinned: The pinned one, if it is there.

        Returns:
            The checkpoint to evaluate, or None where it may not be evaluated yet, or is gone.
        """
        if pinned is not None and not (present is not None and is_outdated(pinned, present)):
            # Judged each time: a trainer that writes into its files in place writes into the pin too.
            verdict = judge(pinned, quiet_seconds=0.0, unchanged_seconds=0.0)
            if verdict.ready:
                if not entry.pinned:  # the ledger was lost
                    self._note(entry, verdict, pinned=True)
                return pinned
        if pinned is not None:
            log.info("%s: was written anew since it was pinned", entry.name)
            self.unpin(entry.step)
        if present is None:
            if entry.first_seen is not None and not entry.processed and entry.verdict != GONE:
                log.error("%s: was deleted before it could be evaluated", entry.name)
                self._note(
                    entry, Verdict(GONE, (*entry.evidence, "the folder has been deleted")), pinned=False
                )
            return None
        verdict = self._judge(present)
        if not verdict.ready:
            self._note(entry, verdict, pinned=False)
            return None
        checkpoint, note = self._pin(present)
        if checkpoint is not None:
            is_pinned = checkpoint is not present
            self._note(entry, replace(verdict, evidence=(*verdict.evidence, note)), pinned=is_pinned)
        return checkpoint

    def is_ready(self, checkpoint: Checkpoint) -> bool:
        """Whether a checkpoint may be evaluated as it is now."""
        return self._judge(checkpoint).ready

    def _judge(self, checkpoint: Checkpoint) -> Verdict:
        try:
            changed = changed_at(checkpoint.path)
        except FileNotFoundError:
            return Verdict(GONE, ("the folder has been deleted",))
        known = self._quiet_since.get(checkpoint.step)
        if known is None or known[0] != changed:
            known = self._quiet_since[checkpoint.step] = (changed, self._monotonic())
        # By the files' own times, or by what was seen here, where the clocks do not agree.
        unchanged = max(self._clock() - changed, self._monotonic() - known[1])
        return judge(
            checkpoint,
            quiet_seconds=self._ready_seconds,
            unchanged_seconds=unchanged,
            trainer_state_expected=self._store.ledger.provable,
        )

    def _note(self, entry: Entry, verdict: Verdict, *, pinned: bool) -> None:
        # How long it has been quiet changes with every look, and is not worth a write.
        is_news = (
            entry.verdict != verdict.name
            or entry.pinned
            or pinned
            or (verdict.name == PARTIAL and entry.evidence != verdict.evidence)
        )

        def transition(ledger: Ledger) -> Ledger:
            known = ledger.entry(entry.step)
            changed = replace(
                known,
                verdict=verdict.name,
                evidence=verdict.evidence if is_news else known.evidence,
                first_seen=known.first_seen or now_text(),
                pinned=pinned,
            )
            provable = ledger.provable or verdict.name == COMPLETE
            return replace(ledger.with_entries([changed]), provable=provable)

        if entry.verdict != verdict.name:
            log.info("%s: %s (%s)", entry.name, verdict.name, "; ".join(verdict.evidence))
        self._store.update(transition)

    def _pin(self, checkpoint: Checkpoint) -> tuple[Optional[Checkpoint], str]:
        """Pin a ready checkpoint; where that cannot be, say why and use it where it is.

        Returns:
            The checkpoint to evaluate, None where it has just been deleted; and what was done.
        """
        if space_is_short(self._model_dir, self._floor):
            self._warn_once(
                "free space is below --min-free-space: checkpoints are not pinned until there is more"
            )
            return checkpoint, "not pinned: too little free space"
        try:
            pinned = pin(
                self._model_dir, checkpoint, lambda copy: self._judge_copy(copy, checkpoint), self._name
            )
        except PinsUnsupported as error:
            self._warn_once(
                f"{error}: checkpoints are evaluated where they are, and rotation may delete them first"
            )
            return checkpoint, "not pinned: no hard links here"
        except CheckpointError as error:
            log.info("%s", error)
            return None, ""
        return pinned, "pinned"

    def _judge_copy(self, copy: Checkpoint, original: Checkpoint) -> bool:
        """Whether a linked copy is as good as the original was a moment ago."""
        verdict = judge(copy, quiet_seconds=0.0, unchanged_seconds=0.0)
        # A proved copy is whole, even if rotation has begun to delete the original meanwhile.
        return verdict.name == COMPLETE or (verdict.ready and self._judge(original).ready)

    def keep_space_free(
        self, ready: Mapping[int, Checkpoint], present: Mapping[int, Checkpoint]
    ) -> dict[int, Checkpoint]:
        """Give up the pins of waiting checkpoints, oldest first, while the disk is nearly full.

        Returns:
            What is still ready: checkpoints that lost their pin where the trainer's folder is there.
        """
        kept = dict(ready)
        for step in sorted(ready):
            entry = self._store.ledger.entry(step)
            if not entry.pinned or not space_is_short(self._model_dir, self._floor):
                continue
            self.unpin(step)
            evidence = (*entry.evidence, "pin given up: too little free space")
            log.warning("%s: its pin is given up, free space is below --min-free-space", entry.name)
            if step in present:
                kept[step] = present[step]
                self._note(entry, Verdict(entry.verdict or COMPLETE, evidence), pinned=False)
            else:
                del kept[step]
                self._note(entry, Verdict(GONE, evidence), pinned=False)
        return kept

    def unpin(self, step: int) -> None:
        """Remove a checkpoint's pin, if it has one."""
        try:
            unpin(self._model_dir, step, self._name)
        except CheckpointError as error:
            self._warn_once(str(error))
        self._store.update(
            lambda ledger: ledger.with_entry(step, pinned=False) if step in ledger.entries else ledger
        )
