"""Loads, changes and saves a model's ledger. The format of its file is in `eval_sidecar.ledger.codec`."""

from __future__ import annotations

import contextlib
import glob
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.errors import LockedError, StateError
from eval_sidecar.ledger.codec import VERSION, Encoded, from_json, to_text
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.paths import LedgerPaths, name_in_files
from eval_sidecar.system.files import set_aside, write_text
from eval_sidecar.system.locks import held_lock
from eval_sidecar.types import now_text


def find_ledgers(folder: Path, model: Optional[str] = None) -> list[Path]:
    """Return the files of the ledgers in a folder, of all models or of one."""
    names = "*" if model is None else glob.escape(name_in_files(model))
    return sorted(folder.glob(f"{names}_{'[0-9a-f]' * 12}.json"))


class LedgerStore:
    """One model's ledger and its file. Updates are atomic, on disk when they return, and thread-safe."""

    def __init__(self, path: Path, ledger: Ledger) -> None:
        self.path = path
        self._ledger = self._saved = ledger
        self._mutex = threading.Lock()
        self._encoded: Optional[Encoded] = None

    @property
    def ledger(self) -> Ledger:
        """The ledger as it stands."""
        return self._ledger

    def update(self, transition: Callable[[Ledger], Ledger]) -> Ledger:
        """Apply a transition and save it, with what was noted; write nothing if nothing has changed.

        Raises:
            StateError: if it cannot be saved; the ledger is then as before.
        """
        with self._mutex:
            changed = transition(self._ledger)
            if changed != self._saved:
                changed = replace(changed, updated=now_text())
                write_text(self.path, to_text(changed, self._encoded))
                self._encoded = {} if self._encoded is None else self._encoded
                self._saved = changed
            self._ledger = changed
            return self._ledger

    def note(self, transition: Callable[[Ledger], Ledger]) -> Ledger:
        """Apply a transition that the next `update` or `save` saves.

        For facts that can be found again if this process is killed before that.
        """
        with self._mutex:
            self._ledger = transition(self._ledger)
            return self._ledger

    def save(self) -> None:
        """Save what was noted.

        Raises:
            StateError: if it cannot be saved.
        """
        self.update(lambda ledger: ledger)


@contextlib.contextmanager
def open_store(path: Path, model_dir: str, run_id: str, run_name: str) -> Iterator[LedgerStore]:
    """Hold a model's ledger for one process.

    Raises:
        LockedError: if another process holds it.
        StateError: if the file is corrupt (it is then kept under another name), is from a newer
            version, or belongs to another model.
    """
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(held_lock(LedgerPaths(path).lock, ""))
        except LockedError:
            raise LockedError(_busy_message(path)) from None
        ledger = load(path) or Ledger(model_dir, run_id, run_name)
        if (ledger.model_dir, ledger.run_id) != (model_dir, run_id):
            raise StateError(
                f"{path}: is about {ledger.model_dir} ({ledger.run_id}), not {model_dir} ({run_id});"
                " was it copied? Move it away or use another folder for ledgers",
                setting="state_dir",
            )
        store = LedgerStore(path, replace(ledger, run_name=run_name))
        yield store
        store.save()


def _busy_message(path: Path) -> str:
    try:
        ledger = load(path, keep_corrupt=True)
    except StateError:
        ledger = None
    writer = ledger.writer if ledger else None
    who = f" (pid {writer.get('pid')} on {writer.get('host')}, {writer.get('command')})" if writer else ""
    return f"{path}: another process works on this model{who}; stop that one first, or let it do this"


def load(path: Path, *, keep_corrupt: bool = False) -> Optional[Ledger]:
    """Read a ledger; None if there is no file.

    Args:
        path: The state file.
        keep_corrupt: Leave a file that cannot be read where it is, for callers that only look.

    Raises:
        StateError: if the file is corrupt or from a newer version.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StateError(f"{path}: cannot be read ({error.strerror})") from error
    try:
        # The first scripts wrote what Python's json does: NaN and Infinity, which are not JSON.
        value = json.loads(content, parse_constant=lambda _name: None)
        if not isinstance(value, dict):
            raise TypeError(f"a JSON {type(value).__name__}, not an object")
        version = int(value.get("version", 1))
        if version <= VERSION:
            return from_json(value, path)
    except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError) as error:
        kept = path if keep_corrupt else set_aside(path, "corrupt")
        raise StateError(
            f"{path}: the state file is corrupt ({error}); it is kept as {kept.name}."
            " Start again: results on disk and points on the server are found again, nothing is sent twice"
        ) from error
    raise StateError(
        f"{path}: is of version {version}, this program supports up to {VERSION};"
        " update eval-sidecar, or use another folder for ledgers",
        setting="state_dir",
    )
