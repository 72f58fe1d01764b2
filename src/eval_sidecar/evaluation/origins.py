"""Which weights a model's results are of: notices a step that was saved again, and whose numbers lie on disk.

An unchanged folder costs one look in a pass; weights are read where something may have changed.
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
from eval_sidecar.system.text import now_text
from eval_sidecar.types import Checkpoint, Content, Origin, Result

log = logging.getLogger(__name__)

#: Files that are written in place change no folder: each is looked at this often, in seconds.
_FILES_SECONDS = 60.0
#: A time further ahead than this is of another clock, in ns: those weights are not read in each pass for it.
_SKEW = 60 * 10**9


class Origins:
    """What each checkpoint's weights are now, and what its result is of.

    Args:
        config: What is evaluated, and how.
        store: The model's ledger.
        is_ready: Whether a checkpoint may be evaluated: only then its weights say anything.
        warn_once: Takes what a person should read once.
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
            step: A step of which there is a result, a failure or an evaluation.
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
            # Weights that have just been written are read once more; until then there is no more to say.
            if before is None or (self._is_settled(step) and content != entry.content):
                return self._store.note(lambda ledger: ledger.holding(step, content)).entry(step)
            return entry
        entry = self._store.update(lambda ledger: ledger.holding(step, content)).entry(step)
        if not entry.processed:
            self._say_other(entry, content)
        return entry

    def origin_now(self, checkpoint: Checkpoint) -> Origin:
        """Return what an evaluation that begins now is made of; its settings are in the ledger then."""
        key = self._settings_now()
        try:
            identity: Optional[str] = read_identity(checkpoint.path)
        except OSError as error:
            self._warn_once(f"{checkpoint.name}: {error.strerror}: its weights cannot be told from others")
            identity = None
        return Origin(identity, key, now_text())

    def _settings_now(self) -> Optional[str]:
        """Return the key of the settings as they are now; says what has changed since the last evaluation."""
        settings = self._config.settings.now()
        key = key_of(settings)
        before = (self._store.ledger.writer or {}).get("settings")
        ledger = self._store.note(lambda known: known.with_settings(key, settings).written_with(key))
        if before not in (None, key) and (changed := settings_line(ledger, force=self._config.force)):
            log.warning("%s: %s", ledger.model_dir, changed)
        return key

    def begin(self, step: int, origin: Origin, metrics: Path) -> None:
        """Write down what an evaluation that is about to start will have read."""
        try:
            write_begun(metrics, self._provenance(step, origin))
        except StateError as error:
            self._warn_once(f"{error}: numbers that outlive this sidecar and its state belong to nothing")

    def _provenance(self, step: int, origin: Origin) -> Provenance:
        ledger = self._store.ledger
        settings = ledger.settings.get(origin.settings or "", {})
        return Provenance(ledger.model_dir, step, origin, ledger.places, settings)

    def write_down(self, entry: Entry, origin: Origin, metrics: Path) -> None:
        """Leave beside a result what it is of."""
        try:
            write_provenance(metrics, self._provenance(entry.step, origin))
        except (OSError, StateError) as error:
            self._warn_once(f"{error}: machines that get the results alone cannot tell what they are of")

    @property
    def folder(self) -> Path:
        """The model dir, links resolved as at the start: one that is turned meanwhile leads nowhere new."""
        places = self._store.ledger.places
        return Path(places[0].path) if places else self._config.model_dir

    def require_place(self) -> None:
        """Refuse to go on in another model's folder: a link may lead elsewhere since the start.

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
        """At the first pass: have everything evaluated once more, if that is asked for.

        Args:
            list_steps: Returns the steps that can be; called once at most.
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
            log.info("--force-eval: an earlier start has evaluated all of it, with the same settings")

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
        """Take the numbers that lie in results.

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
        """Return what numbers found on disk are of; None if they are not those of this checkpoint and model.

        A result that nobody has written anything down of is this checkpoint's: it was there before.
        """
        path = Path(result.path)
        written = find_provenance(path)
        if written is None:
            if entry.is_superseded and entry.result is not None and entry.result.digest == result.digest:
                return None  # as before: of the weights that were there before
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
            return f"another model of this name, {written.places[0]}"
        return None

    def _identity(self, entry: Entry, checkpoint: Optional[Checkpoint]) -> Optional[str]:
        """Return what the weights of a step are, as they were read last, or as they are."""
        if entry.content is not None:
            return entry.content.identity
        content = self._read(checkpoint) if checkpoint is not None else None
        if content is not None and checkpoint is not None and checkpoint.path.parent == self.folder:
            known = content
            self._store.note(lambda ledger: ledger.holding(entry.step, known))
        return content.identity if content else None

    def _is_unchanged(self, entry: Entry, present: Checkpoint) -> bool:
        """Return whether a folder looks as when its weights were read."""
        folder, now = folder_stamp(present.path), self._monotonic()
        seen = self._looked.get(entry.step)
        if seen is not None and seen[0] == folder and now - seen[2] < _FILES_SECONDS:
            return self._is_settled(entry.step)
        known = seen[1] if seen is not None else entry.content.weights if entry.content else ""
        try:
            weights, newest = look_at_weights(present.path)
        except OSError:
            return True  # being deleted, or not to be read: whoever judges it says so
        if folder is None or weights != known:
            return False
        self._looked[entry.step] = (folder, weights if self._is_old(newest) else "", now)
        return True

    def _read(self, checkpoint: Checkpoint) -> Optional[Content]:
        """Return what a checkpoint's weights are; None if they say nothing yet, or cannot be read."""
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
            "%s: other weights than those %s before (saved again at %s): evaluated again%s",
            *(entry.name, "evaluated" if evaluated else "that failed", content.since, revision),
        )
