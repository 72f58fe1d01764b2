"""Pauses evaluations that fail for a cause that is not the checkpoint's own, until that may be fixed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from eval_sidecar.checkpoints.weights import container_names
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.ledger.ledger import Running
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.types import Checkpoint

log = logging.getLogger(__name__)

#: Sources that a script may name; not what it writes (logs, results), which changes with each attempt.
_NAMED_FILE = re.compile(r"[\w./~-]+\.(?:py|sh|ya?ml|toml)\b")
_MOST_NAMED = 100
#: What a checkpoint's model is, the same in each checkpoint of a training.
_DESCRIPTIONS = ("config.json", "adapter_config.json", "tokenizer_config.json")


@dataclass
class CircuitBreaker:
    """Says whether evaluations are paused, and notes in the ledger what decides that.

    Attributes:
        config: What is evaluated, and how.
        store: The model's ledger.
    """

    config: WatchConfig
    store: LedgerStore
    _begun: dict[int, tuple[str, str]] = field(default_factory=dict, init=False)  # step: key, format

    @property
    def reason(self) -> Optional[str]:
        """Why evaluations are paused; None if they are not."""
        return self.store.ledger.shared_failure.reason

    def refresh(self) -> None:
        """End a pause if the script or its environment has changed: failed checkpoints are tried again."""
        known = self.store.ledger.shared_failure
        if not known.pauses or known.key == (key := self._key()):
            return
        log.info("the evaluation script or its environment has changed: evaluations go on")
        self.store.update(lambda ledger: ledger.cleared(known.steps).with_shared_failure(known.with_key(key)))

    def admits(self, checkpoint: Checkpoint) -> bool:
        """Return whether a checkpoint may be evaluated now: in a pause, only one of another format."""
        known = self.store.ledger.shared_failure
        return not known.pauses or _format_of(checkpoint.path) not in known.formats

    def note_start(self, checkpoint: Checkpoint) -> None:
        """Note with what a checkpoint is about to be evaluated."""
        key = self._key()
        self._begun[checkpoint.step] = key, _format_of(checkpoint.path)
        known = self.store.ledger.shared_failure.with_key(key)
        self.store.note(lambda ledger: ledger.with_shared_failure(known))

    def note_failure(self, step: int, running: Running, error: str) -> None:
        """Note an evaluation that failed by its own doing."""
        current = self.store.ledger.shared_failure
        begun = self._begun.pop(step, None)
        key, form = begun or (current.key, _format_of(Path(running.path)))
        if key == current.key:  # else the script has been changed since it began
            known = current.failed(step, form, error, running.log)
            self.store.note(lambda ledger: ledger.with_shared_failure(known))

    def note_success(self, step: int) -> None:
        """Note an evaluation that succeeded: a pause ends."""
        current = self.store.ledger.shared_failure
        if self._begun.pop(step, (current.key,))[0] == current.key:
            self.store.note(lambda ledger: ledger.with_shared_failure(current.succeeded()))

    def _key(self) -> str:
        """Return a short name for what evaluates: script, files that it names, flags, installed packages."""
        config = self.config
        python = (config.environment.get(name, "") for name in ("PYTHON_BIN", "EVAL_SIDECAR_PYTHON"))
        known = {
            "files": sorted(_sources(config)),
            # A folder of another name at each start.
            "environment": {k: v for k, v in config.environment.items() if k != "EVAL_SIDECAR_WARM"},
            "settings": config.settings.now(),
            "placement": dict(config.placement),
            "packages": sorted(set(_packages(python))),
        }
        return hashlib.sha256(json.dumps(known, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _sources(config: WatchConfig) -> Iterator[str]:
    """Yield a hash of the script, and name, size and time of the files that it names."""
    with contextlib.suppress(OSError):
        content = config.eval_script.read_bytes()
        yield hashlib.sha256(content).hexdigest()
        names = dict.fromkeys(_NAMED_FILE.findall(content.decode("utf-8", "replace")))
        for name in list(names)[:_MOST_NAMED]:
            folders = (config.repo_root, config.eval_script.parent)
            places = [folder / name for folder in folders] + [folder / Path(name).name for folder in folders]
            yield from filter(None, (_stamp(place) for place in dict.fromkeys(places) if place.is_file()))


def _packages(pythons: Iterator[str]) -> Iterator[str]:
    """Yield name and time of the folders of installed packages: installing one changes them."""
    for python in pythons:
        found = shutil.which(python) if python else None
        if found:
            for kind in ("site", "dist"):
                pattern = f"lib/python3*/{kind}-packages"
                yield from filter(None, map(_stamp, Path(found).parent.parent.glob(pattern)))


def _stamp(path: Path) -> Optional[str]:
    try:
        status = path.stat()
    except OSError:
        return None
    return f"{path} {status.st_size if path.is_file() else ''} {status.st_mtime_ns}"


def _format_of(folder: Path) -> str:
    """Return a short name for what kind of checkpoint a folder holds; empty if it cannot be read."""
    try:
        names = {re.sub(r"\d+", "#", name) for name in container_names(folder)}
        hashed = hashlib.sha256("\0".join(sorted(names)).encode("utf-8", "surrogateescape"))
        for name in _DESCRIPTIONS:
            if (folder / name).is_file():
                hashed.update(b"\0" + (folder / name).read_bytes())
    except OSError:
        return ""
    return hashed.hexdigest()[:16]
