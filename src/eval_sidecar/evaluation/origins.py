"""Which weights a model's results are of: notices a step that was saved again, and checks results on disk.

An unchanged folder costs one stat in a pass; weights are read if something may have changed.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.checkpoints.identity import look_at_weights, read_content, read_identity
from eval_sidecar.errors import CheckpointError, ResultError, StateError
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.ledger.intake import is_news, take_in
from eval_sidecar.ledger.ledger import Entry, Ledger
from eval_sidecar.ledger.provenance import Provenance, are_one, find_provenance, write_begun, write_provenance
from eval_sidecar.ledger.settings import key_of
from eval_sidecar.ledger.stamps import FolderStamp, folder_stamp, may_change_unseen, stamp
from eval_sidecar.ledger.status import settings_line
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.manifest.model_places import place_of, second_model, settle_place
from eval_sidecar.system.logs import WarnOnce
from eval_sidecar.types import Checkpoint, Content, Origin, Result, now_text

log = logging.getLogger(__name__)

#: Files that are written in place change no folder: each is looked at this often, in seconds.
_FILES_SECONDS = 60.0
#: A time further ahead than this is of another clock, in ns; it does not make weights be read in each pass.
_SKEW = 60 * 10**9


class Origins:
    """What each checkpoint's weights are now, and what its result is of.

    Args:
        config: What is evaluated, and how.
        store: The model's ledger.
        is_ready: Whether a checkpoint may be evaluated: only then its weights are read.
        warn_once: Logs what a user should read once.
        monotonic: Seconds since some moment, never set back.
        clock: Nanoseconds since the epoch, as the file system has it.
    """

    def __init__(
        self,
        config: WatchConfig,
        store: LedgerStore,
        *,
        is_ready: Callable[[Checkpoint], bool],
        warn_once: WarnOnce,
        monotonic: Callable[[], float],
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._config = config
        self._store = store
        self._is_ready = is_ready
        self._warn_once = warn_once
        self._monotonic = monotonic
        self._clock = clock
        self._has_begun = False
        self._inode: Optional[int] = None
        self._looked: dict[int, tuple[FolderStamp, str, float]] = {}  # step: folder, weights, when

    def look(self, step: int, present: Optional[Checkpoint]) -> Entry:
        """Bring the ledger up to date with what a step's weights are now.

        Args:
            step: A step with a result, a failure or an evaluation.
            present: The trainer's folder, if it is there.

        Returns:
            Its entry as it stands.
        """
        entry = self._store.ledger.entry(step)
        if present is None or self._is_unchanged(entry, present):
            return entry
        content = self._read(present)
        if content is None:
            return entry
        before = entry.known_identity
        if before in (None, content.identity):
            # Weights that have just been written are read once more; until then nothing more is known.
            if before is None or (self._is_settled(step) and content != entry.content):
                return self._store.note(lambda ledger: ledger.holding(step, content)).entry(step)
            return entry
        entry = self._store.update(lambda ledger: ledger.holding(step, content)).entry(step)
        if not entry.processed:
            self._say_other(entry, content)
        return entry

    def origin_now(self, checkpoint: Checkpoint) -> Origin:
        """Return the origin of a result whose evaluation begins now; put its settings into the ledger."""
        key = self._settings_now()
        try:
            identity: Optional[str] = read_identity(checkpoint.path)
        except OSError as error:
            self._warn_once(f"{checkpoint.name}: {error.strerror}: its weights cannot be identified")
            identity = None
        return Origin(identity, key, now_text())

    def _settings_now(self) -> Optional[str]:
        """Return the key of the current settings; log what has changed since the last evaluation."""
        settings = self._config.settings.now()
        key = key_of(settings)
        before = (self._store.ledger.writer or {}).get("settings")
        ledger = self._store.note(lambda known: known.with_settings(key, settings).written_with(key))
        if before not in (None, key) and (changed := settings_line(ledger, force=self._config.force)):
            log.warning("%s: %s", ledger.model_dir, changed)
        return key

    def begin(self, step: int, origin: Origin, metrics: Path) -> None:
        """Write the provenance of an evaluation that is about to start."""
        try:
            write_begun(metrics, self._provenance(step, origin))
        except StateError as error:
            self._warn_once(f"{error}: if this sidecar's state is lost, its numbers belong to no weights")

    def _provenance(self, step: int, origin: Origin) -> Provenance:
        ledger = self._store.ledger
        settings = ledger.settings.get(origin.settings or "", {})
        return Provenance(ledger.model_dir, step, origin, ledger.places, settings)

    def write_down(self, entry: Entry, origin: Origin, metrics: Path) -> None:
        """Write the provenance of a result beside it."""
        try:
            write_provenance(metrics, self._provenance(entry.step, origin))
        except (OSError, StateError) as error:
            self._warn_once(f"{error}: other machines cannot tell which weights the results are of")

    @property
    def folder(self) -> Path:
        """The model dir, with links resolved at the start: changing a link later has no effect."""
        places = self._store.ledger.places
        return Path(places[0].path) if places else self._config.model_dir

    def require_place(self) -> None:
        """Refuse to go on in another model's folder: a link may have been changed since the start.

        Raises:
            CheckpointError: naming both places.
            UsageError: as of `settle_place`, if the folder was not there before.
        """
        ledger, model_dir = self._store.ledger, self._config.model_dir
        places, stamp = ledger.places, folder_stamp(model_dir)
        if not places or stamp is None or stamp[0] == self._inode:
            return
        if os.path.realpath(model_dir) != places[0].path:
            if not ledger.entries:  # it has just appeared
                settle_place(self._store, model_dir, self._config.results_root, moved=ledger.moved)
                return
            place = place_of(model_dir)
            raise CheckpointError(second_model(self._config.model, places[0], place))
        self._inode = stamp[0]

    def begin_round(self, list_steps: Callable[[], set[int]]) -> None:
        """In the first pass, request one more evaluation of everything, if --force-eval asks for it.

        Args:
            list_steps: Returns the steps that can be evaluated; called once at most.
        """
        if self._has_begun:
            return
        self._has_begun = True
        config, ledger = self._config, self._store.ledger
        if not config.force:
            self._store.update(Ledger.not_forcing)
            return
        is_through = all(ledger.entry(step).round >= ledger.forced.round for step in list_steps())
        anew = config.force_anew and is_through
        key = key_of(config.settings.now())
        now = self._store.update(lambda known: known.forcing(key, anew=anew))
        if now.forced.round == ledger.forced.round and is_through:
            log.info("--force-eval: an earlier start has evaluated everything with the same settings")

    def is_wanted_again(self, entry: Entry) -> bool:
        """Return whether --force-eval asks for a checkpoint that this request has not evaluated yet."""
        return self._config.force and entry.round < self._store.ledger.forced.round

    def take(
        self,
        entry: Entry,
        path: Path,
        present: Optional[Checkpoint],
        pinned: Optional[Checkpoint],
        accept: Callable[[Entry, Result, Origin], None],
    ) -> bool:
        """Take the numbers that are in the results folder.

        Args:
            entry: What the ledger knows of the checkpoint.
            path: Its ``metrics.json``.
            present: The trainer's folder, if it is there.
            pinned: The pinned one, if it is there.
            accept: Gets numbers that are new.

        Returns:
            Whether the checkpoint needs no evaluation.
        """
        checkpoint = present or pinned
        try:
            if not is_news(entry, stamp(path)):
                return entry.processed
            intake = take_in(entry, path, lambda result: self._of_result(entry, result, checkpoint))
        except ResultError as error:
            return self._keep_without(entry, str(error), can_be_evaluated=checkpoint is not None)
        if intake is None:
            return entry.processed
        if intake.is_new:
            accept(entry, intake.result, intake.origin)
        else:
            self._store.update(lambda ledger: ledger.evaluated(entry.step, intake.result, intake.origin))
        return True

    def _keep_without(self, entry: Entry, problem: str, *, can_be_evaluated: bool) -> bool:
        """Note that a result cannot be read; return whether its checkpoint needs no evaluation."""
        if can_be_evaluated and not entry.processed:
            self._warn_once(f"{entry.name}: {problem}; will evaluate it again")
            return False
        self._warn_once(f"{entry.name}: {problem}; what was known before is kept")
        if not entry.processed and entry.failure is None:
            now = now_text()
            self._store.note(lambda ledger: ledger.with_unreadable_result(entry.step, problem, now))
        return True

    def _of_result(self, entry: Entry, result: Result, checkpoint: Optional[Checkpoint]) -> Optional[Origin]:
        """Return the origin of numbers on disk; None if they are not of this checkpoint and model.

        A result without provenance counts as this checkpoint's.
        """
        path = Path(result.path)
        written = find_provenance(path)
        if written is None:
            if entry.is_superseded and entry.result is not None and entry.result.digest == result.digest:
                return None  # unchanged: of the weights from before
            return Origin(self._identity(entry, checkpoint))  # now: the next pass may find other weights
        if (reason := self._why_foreign(entry, written, checkpoint)) is not None:
            self._warn_once(f"{entry.name}: its result in {path.parent} is of {reason}; not taken")
            return None
        key, settings = written.origin.settings, written.settings
        self._store.note(lambda ledger: ledger.with_settings(key, settings))
        return written.origin

    def _why_foreign(
        self, entry: Entry, written: Provenance, checkpoint: Optional[Checkpoint]
    ) -> Optional[str]:
        ours = self._config.settings.values
        for name in ("dataset", "eval_split"):
            theirs = written.settings.get(name)
            if None not in (theirs, ours.get(name)) and theirs != ours[name]:
                return f"{name} {theirs}, not {ours[name]}"
        identity = written.origin.identity
        known = self._identity(entry, checkpoint)
        if None not in (known, identity):
            return None if known == identity else "other weights"
        places = self._store.ledger.places
        if places and written.places and not are_one(places, written.places):
            return f"another model with this name, {written.places[0]}"
        return None

    def _identity(self, entry: Entry, checkpoint: Optional[Checkpoint]) -> Optional[str]:
        """Return the identity of a step's weights, as last read, or read now."""
        if entry.content is not None:
            return entry.content.identity
        content = self._read(checkpoint) if checkpoint is not None else None
        if content is not None and checkpoint is not None and checkpoint.path.parent == self.folder:
            known = content
            self._store.note(lambda ledger: ledger.holding(entry.step, known))
        return content.identity if content else None

    def _is_unchanged(self, entry: Entry, present: Checkpoint) -> bool:
        """Return whether a folder is unchanged since its weights were read."""
        folder, now = folder_stamp(present.path), self._monotonic()
        seen = self._looked.get(entry.step)
        if seen is not None and seen[0] == folder and now - seen[2] < _FILES_SECONDS:
            return self._is_settled(entry.step)
        known = seen[1] if seen is not None else entry.content.weights if entry.content else ""
        try:
            weights, newest = look_at_weights(present.path)
        except OSError:
            return True  # being deleted, or not readable: its verdict says so
        if folder is None or weights != known:
            return False
        self._looked[entry.step] = (folder, weights if self._is_old(newest) else "", now)
        return True

    def _read(self, checkpoint: Checkpoint) -> Optional[Content]:
        """Return the content of a checkpoint's weights; None if not ready yet, or not readable."""
        if not self._is_ready(checkpoint):
            return None
        try:
            content = read_content(checkpoint.path)
            newest = look_at_weights(checkpoint.path)[1]
        except OSError:
            return None
        if content is not None:
            weights = content.weights if self._is_old(newest) else ""
            self._looked[checkpoint.step] = (content.folder, weights, self._monotonic())
        return content

    def _is_old(self, changed: int) -> bool:
        now = self._clock()
        return changed > now + _SKEW or not may_change_unseen(changed, now)

    def _is_settled(self, step: int) -> bool:
        return bool(self._looked[step][1])

    def _say_other(self, entry: Entry, content: Content) -> None:
        evaluated = entry.result is not None or entry.listed or entry.running is not None
        was_sent = entry.delivery is not None and not entry.delivery.is_pending
        revision = f" as revision {entry.delivery.revision + 1}" if was_sent and entry.delivery else ""
        log.warning(
            "%s: saved again at %s with other weights than those that %s; will evaluate it again%s",
            entry.name,
            content.since,
            "were evaluated" if evaluated else "failed",
            revision,
        )
