"""What each model looked like when it had nothing to do, so that a pass opens only what has changed since.

A cache: if its file is missing, old or unreadable, all ledgers and results are opened, and it is rebuilt.
"""

from __future__ import annotations

import hashlib
import json
import logging
import queue
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.errors import SidecarError, StateError
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.stamps import (
    CLOSE_LOOK_SECONDS,
    OwnStamp,
    list_stamps,
    own_stamp,
    settled_mtime,
    stamp,
)
from eval_sidecar.paths import METRICS
from eval_sidecar.system.files import write_json
from eval_sidecar.types import Stamp

log = logging.getLogger(__name__)

VERSION = 2


@dataclass(frozen=True)
class ResultStamps:
    """What can be seen of a model's results without opening one.

    Attributes:
        folder: Mtime (ns) of the folder with its results; None if it is missing or has just
            changed.
        results: A hash over every checkpoint's step, and over the stamp of its ``metrics.json``.
        waiting: Steps of checkpoints that have none yet.
    """

    folder: Optional[int]
    results: str
    waiting: tuple[int, ...]


@dataclass(frozen=True)
class InOrder:
    """A model that had nothing wrong with it.

    Attributes:
        look: What its results looked like, before they were read.
        ledger: Its state file; None if there is none.
        undelivered: Points that were not sent, because delivery was off.
        unconfirmed: Points that were sent and cannot be read back.
        table_due: As in `Ledger`.
        where: As in `Ledger`.
    """

    look: ResultStamps
    ledger: Optional[OwnStamp]
    undelivered: int = 0
    unconfirmed: int = 0
    table_due: bool = False
    where: Optional[str] = None


class UnchangedModels:
    """What every model looked like when it was in order, by the name of its state file.

    Args:
        path: The file that keeps it from one process to the next.
        monotonic: Seconds since some moment.
        clock: Nanoseconds since the epoch.
    """

    def __init__(
        self,
        path: Path,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], int] = time.time_ns,
    ) -> None:
        self._path = path
        self._monotonic = monotonic
        self._clock = clock
        self._in_order, self._receipt = _load(path)
        self._looked_closely: Optional[float] = None
        self._is_close = True
        self._touched: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._touched_before: set[str] = set()
        self._has_changed = False

    def begin_pass(self) -> None:
        """Decide whether this pass looks at every result: the first one, and then one every ten minutes."""
        now = self._monotonic()
        self._is_close = self._looked_closely is None or now - self._looked_closely >= CLOSE_LOOK_SECONDS
        if self._is_close:
            self._looked_closely = now
        self._touched_before = {self._touched.get() for _ in range(self._touched.qsize())}

    def touch(self, model_dir: str) -> None:
        """Look closely at a model in the next pass: something in it was reported to have changed."""
        self._touched.put(model_dir)

    def knows_receipt(self, path: Path) -> bool:
        """Return whether a receipt is the one that was written after the last pass that was saved."""
        return self._receipt is not None and self._receipt == own_stamp(str(path))

    def save(self, receipt: Optional[Path]) -> None:
        """Save what was remembered, after a pass and after its receipt was written, if possible."""
        written = own_stamp(str(receipt)) if receipt else None
        if self._has_changed or written != self._receipt:
            models = {name: asdict(known) for name, known in self._in_order.items()}
            try:
                write_json(self._path, {"version": VERSION, "receipt": written, "models": models})
                self._has_changed, self._receipt = False, written
            except StateError as error:
                log.warning("%s; the next upload reads everything again", error)

    def unchanged(self, state_file: Path, folder: Path) -> Optional[InOrder]:
        """Return what is known of a model that looks as it did; None if it must be opened."""
        known = self._in_order.get(state_file.name)
        if known is None:
            return None
        then = known.look
        try:
            if own_stamp(str(state_file)) != known.ledger:
                is_same = False
            elif self._is_close or then.folder is None or folder.name in self._touched_before:
                now, _ = self.look(folder)
                is_same = now.results == then.results
                if is_same and now.folder != then.folder:
                    self._in_order[state_file.name] = known = replace(known, look=now)
                    self._has_changed = True
            else:
                is_same = folder.stat().st_mtime_ns == then.folder and not any(
                    stamp(f"{folder}/checkpoint-{step}/{METRICS}") for step in then.waiting
                )
        except (OSError, SidecarError):
            is_same = False  # reported when it is opened
        if not is_same:
            self._forget(state_file)
            return None
        return known

    def look(self, folder: Path) -> tuple[ResultStamps, dict[int, Optional[Stamp]]]:
        """Look at every result of a model; the second value is as from `list_stamps`.

        Raises:
            CheckpointError: if the folder cannot be listed.
        """
        changed = settled_mtime(str(folder), self._clock())
        stamps = list_stamps(folder)
        digest = hashlib.sha256(repr(stamps).encode()).hexdigest()
        waiting = tuple(step for step, found in stamps.items() if found is None)
        return ResultStamps(changed, digest, waiting), stamps

    def waiting(self, state_file: Path, folder: Path) -> Iterable[int]:
        """Return the steps of a model's checkpoints without a result, as the last pass found them.

        Raises:
            CheckpointError: if the folder cannot be listed.
        """
        known = self._in_order.get(state_file.name)
        if known is not None:
            return known.look.waiting
        return [step for step, found in list_stamps(folder).items() if found is None]

    @property
    def is_close(self) -> bool:
        """Whether this pass looks at every result."""
        return self._is_close

    def _forget(self, state_file: Path) -> None:
        # Remembered again only after a pass that opened it without an error: a failed pass changes neither
        # ledger nor results, so the next pass would find both unchanged.
        if self._in_order.pop(state_file.name, None):
            self._has_changed = True

    def remember(self, state_file: Path, look: ResultStamps, ledger: Ledger) -> None:
        """Remember a model that has nothing wrong with it; its ledger has just been saved."""
        self._in_order[state_file.name] = InOrder(
            look,
            own_stamp(str(state_file)),
            len(ledger.undelivered()),
            len(ledger.unconfirmed()),
            ledger.table_due,
            ledger.where,
        )
        self._has_changed = True


def _load(path: Path) -> tuple[dict[str, InOrder], Optional[OwnStamp]]:
    try:
        value = json.loads(path.read_bytes())
        if value["version"] != VERSION:
            return {}, None
        receipt = value["receipt"]
        in_order = {name: _read_model(record) for name, record in value["models"].items()}
        return in_order, tuple(receipt) if receipt else None
    except FileNotFoundError:
        return {}, None
    except (OSError, ValueError, TypeError, LookupError, AttributeError) as error:
        log.warning("%s: cannot be used (%s); everything is read again", path, error)
        return {}, None


def _read_model(record: dict) -> InOrder:  # type: ignore[type-arg]
    look, ledger = record["look"], record["ledger"]
    stamps = ResultStamps(look["folder"], look["results"], tuple(look["waiting"]))
    return InOrder(**{**record, "look": stamps, "ledger": tuple(ledger) if ledger else None})
