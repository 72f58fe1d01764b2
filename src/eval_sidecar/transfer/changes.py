"""Which results a receipt does not confirm, at the cost of one look at each file's size and time.

The hash of a result's numbers is kept from one packing to the next in ``.pack_cache.json``, with the
size and times of the file as it was read. Without the cache everything is read again; nothing else depends
on it.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

from eval_sidecar.errors import ResultError, StateError
from eval_sidecar.ledger.metrics import parse_metrics
from eval_sidecar.ledger.stamps import may_change_unseen
from eval_sidecar.manifest.receipt import Confirmed, Receipt
from eval_sidecar.paths import METRICS
from eval_sidecar.system.files import write_text
from eval_sidecar.transfer.scan import LeftOut, Read, read_whole
from eval_sidecar.types import digest, step_of

log = logging.getLogger(__name__)

_LARGEST = 1 << 30
_CACHE_VERSION = 2


class Digests:
    """The hash of every result's numbers, from the cache if its file has not changed.

    Args:
        path: The cache.
        clock: Nanoseconds since the epoch.
    """

    def __init__(self, path: Path, clock: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._clock = clock
        self._known = _load(path)
        self._seen: dict[str, dict[str, list[Any]]] = {}
        self._changed = False

    def of_read(self, model: str, step: str, read: Read) -> Optional[str]:
        """Return the hash of a result that was just read; None if it is not a result."""
        stamp = [len(read.data), read.mtime_ns, read.ctime_ns]
        entry = self._seen.get(model, {}).get(step) or self._known.get(model, {}).get(step)
        if entry is None or entry[:3] != stamp:
            entry = [*stamp, digest_of(read.data)]
            self._changed = True
        if not may_change_unseen(max(read.mtime_ns, read.ctime_ns), self._clock()):
            self._seen.setdefault(model, {})[step] = entry
        return entry[3]  # type: ignore[no-any-return]

    def of_file(self, model: str, step: str, path: str) -> Optional[str]:
        """Return the hash of a result; None if it is not a result, or is being written.

        Raises:
            FileNotFoundError: if there is none.
        """
        status = os.lstat(path)
        entry = self._known.get(model, {}).get(step)
        if entry is not None and entry[:3] == [status.st_size, status.st_mtime_ns, status.st_ctime_ns]:
            self._seen.setdefault(model, {})[step] = entry
            return entry[3]  # type: ignore[no-any-return]
        read = read_whole(path, _LARGEST)
        return None if read is None else self.of_read(model, step, read)

    def save(self) -> None:
        """Keep what was seen; a folder that cannot be written costs the next packing time, nothing else."""
        if not self._changed and self._seen.keys() == self._known.keys():
            return
        value = {"version": _CACHE_VERSION, "models": self._seen}
        try:
            write_text(self._path, json.dumps(value, separators=(",", ":")))
        except StateError as error:
            log.warning("%s", error)


def _load(path: Path) -> dict[str, dict[str, list[Any]]]:
    try:
        value = json.loads(path.read_bytes())
        if value["version"] != _CACHE_VERSION:
            return {}
        models = value["models"]
        sound = all(len(entry) == 4 for steps in models.values() for entry in steps.values())
        return models if sound else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return {}


def digest_of(data: bytes) -> Optional[str]:
    """Return the hash that `results.read_result` gives a file of this content; None if it would refuse it."""
    try:
        return digest(parse_metrics(data).metrics)
    except ResultError:
        return None


def is_result(name: str) -> Optional[tuple[str, str]]:
    """Return model dir and step of ``<model dir>/checkpoint-<step>/metrics.json``; None for other names."""
    parts = name.split("/")
    if len(parts) != 3 or parts[2] != METRICS:
        return None
    step = step_of(parts[1])
    return None if step is None else (parts[0], str(step))


class Change(NamedTuple):
    """One checkpoint that is not confirmed: its folder, ending in ``/``, and whether its result is usable."""

    folder: str
    usable: bool


def list_changes(root: Path, receipt: Receipt, digests: Digests, left_out: LeftOut) -> Iterator[Change]:
    """Yield the checkpoints whose result a receipt does not confirm, in no order.

    Raises:
        OSError: if the root cannot be listed.
    """
    nothing = Confirmed(None, {})
    for model in os.scandir(root):
        if model.name.startswith("."):
            continue
        if not model.is_dir(follow_symlinks=False):
            if model.is_symlink():
                left_out.note(model.name, model.path, "link")
            continue
        confirmed = receipt.models.get(model.name, nothing).digests
        try:
            checkpoints = list(os.scandir(model.path))
        except OSError as error:
            left_out.unreadable[f"{model.name}/"] = error.strerror or str(error)
            continue
        for checkpoint in checkpoints:
            step = step_of(checkpoint.name)
            if step is None or not checkpoint.is_dir(follow_symlinks=False):
                if step is not None and checkpoint.is_symlink():
                    left_out.note(f"{model.name}/{checkpoint.name}", checkpoint.path, "link")
                continue
            try:
                found = digests.of_file(model.name, str(step), f"{checkpoint.path}/{METRICS}")
            except FileNotFoundError:
                continue  # not evaluated yet
            except OSError:
                found = None
            name = f"{model.name}/{checkpoint.name}/{METRICS}"
            if found is None and os.path.islink(f"{checkpoint.path}/{METRICS}"):  # noqa: PTH114 - as above
                left_out.note(name, f"{checkpoint.path}/{METRICS}", "link")
            elif found is None or confirmed.get(str(step)) != found:
                yield Change(f"{model.name}/{checkpoint.name}/", found is not None)
