"""Every path and file name that the sidecar writes: one frozen class for each folder that a user can choose.

README's table of files shows all of them. Not here: names of the evaluator, which is a program of its own
(`eval_sidecar.genrec`), archives and their parts, and temporary names of files that are being written.
"""

from __future__ import annotations

import functools
import hashlib
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from eval_sidecar.types import stable_hash

#: The name of our folders beside model dirs and in results.
OWN_FOLDER = ".eval-sidecar"
METRICS = "metrics.json"
PROVENANCE = "provenance.json"
MANIFEST = ".wandb_eval_manifest.json"
RECEIPT = ".wandb_eval_receipt.json"
#: Folder for files that ``unpack --mirror`` moved away.
MOVED_AWAY = ".before-unpack"
#: Longest model name in the name of a ledger, in bytes; a file's name has 255.
_LONGEST_NAME = 223


@dataclass(frozen=True)
class ResultPaths:
    """What is below ``--results-root``."""

    root: Path

    def metrics(self, model: str, step: int) -> Path:
        """Return the path of a checkpoint's numbers; the evaluation script writes them."""
        return Path(f"{self.root}/{model}/checkpoint-{step}/{METRICS}")

    def begun(self, model: str, checkpoint: str) -> Path:
        """Return the path of the provenance of numbers that a running evaluation will write."""
        # Not beside the numbers: a script may want to make that folder itself.
        return self.root / OWN_FOLDER / model / f"{checkpoint}.json"

    def lock(self, model: str) -> Path:
        """Held by the one sidecar that writes a model's results."""
        return self.root / OWN_FOLDER / f"{stable_hash({'model_dir': model})[:12]}.lock"

    @property
    def manifest(self) -> Path:
        """Which models there are, and which run each belongs to."""
        return self.root / MANIFEST

    @property
    def receipt(self) -> Path:
        """Which points are confirmed."""
        return self.root / RECEIPT

    @property
    def pack_history(self) -> Path:
        """The archives that were packed here, in their order."""
        return self.root / ".pack_history.json"

    @property
    def pack_cache(self) -> Path:
        """Hashes of the results, for the next ``pack --incremental``."""
        return self.root / ".pack_cache.json"

    @property
    def unpacked(self) -> Path:
        """Which archive each file here came from."""
        return self.root / ".unpacked.json"

    @property
    def unpack_lock(self) -> Path:
        """Held by a running ``unpack``."""
        return self.root / ".unpack.lock"

    @property
    def unpack_staging(self) -> Path:
        """Files of an archive that are not checked yet."""
        return self.root / ".unpack"

    @property
    def moved_away(self) -> Path:
        """Files that ``unpack --mirror`` moved away."""
        return self.root / MOVED_AWAY


@dataclass(frozen=True)
class StatePaths:
    """What is below ``--state-dir``."""

    folder: Path

    def ledger(self, model: str, run_id: str) -> Path:
        """Return the path of a model's ledger: ``<model>_<12 hex digits>.json``."""
        return _ledger(self.folder, model, run_id)

    @property
    def unchanged(self) -> Path:
        """What each model looked like when all of it was delivered; a cache."""
        return self.folder / ".seen"

    @property
    def client_log(self) -> Path:
        """What the W&B client of an upload printed."""
        return self.folder / "wandb.log"


@functools.lru_cache(maxsize=16_384)  # a pass asks for each model's several times
def _ledger(folder: Path, model: str, run_id: str) -> Path:
    mark = stable_hash({"model_dir": model, "run_id": run_id})[:12]
    return folder / f"{name_in_files(model)}_{mark}.json"


def name_in_files(model: str) -> str:
    """Return a model's name as its file names begin: shortened if too long for a file system.

    The hash after it is of the whole name.
    """
    encoded = os.fsencode(model)
    if len(encoded) <= _LONGEST_NAME:
        return model
    return encoded[:_LONGEST_NAME].decode("utf-8", "ignore")


@dataclass(frozen=True)
class LedgerPaths:
    """What is beside a ledger."""

    ledger: Path

    @property
    def lock(self) -> Path:
        """Held by the one process that writes the ledger."""
        return self.ledger.with_suffix(".lock")

    @property
    def retry_request(self) -> Path:
        """A request by ``retry`` to the sidecar that holds the ledger."""
        return self.ledger.with_suffix(".retry")

    @property
    def client_log(self) -> Path:
        """What the W&B client of a watcher printed."""
        return self.ledger.with_suffix(".wandb.log")


@dataclass(frozen=True)
class ManagerPaths:
    """What is below ``MANAGER_DIR``."""

    folder: Path

    def log(self, instance: str) -> Path:
        """Everything that an instance printed."""
        return self.folder / f"{instance}.log"

    def pid(self, instance: str) -> Path:
        """Return the path of a running instance's pid file."""
        return self.folder / f"{instance}.pid"

    def record(self, instance: str) -> Path:
        """Return the path of an instance's record: its process, and what it works on."""
        return self.folder / f"{instance}.json"

    @property
    def evaluations(self) -> Path:
        """The folder for `EvaluationPaths`."""
        return self.folder / "evaluations"


@dataclass(frozen=True)
class EvaluationPaths:
    """What evaluations leave, below ``MANAGER_DIR/evaluations``."""

    folder: Path

    def log(self, model: str, checkpoint: str) -> Path:
        """Everything that the evaluations of a checkpoint printed."""
        return self.folder / model / f"{checkpoint}.log"

    @property
    def links(self) -> Path:
        """Links to checkpoints that are evaluated where they are, below folders of the model's name."""
        return self.folder / ".links"


@dataclass(frozen=True)
class JobPaths:
    """What is beside the log of an evaluation while its job is under way."""

    log: Path

    def exit_code(self, token: str) -> Path:
        """Return the path of a local job's exit code."""
        return self.log.with_name(f"{self.log.name}.{token}.exit")

    def slurm(self, job: str) -> Path:
        """Return the folder for a Slurm job's files and submitit's."""
        return self.log.parent / "slurm" / job


@dataclass(frozen=True)
class PinPaths:
    """What is in one of our folders beside a model dir."""

    folder: Path

    @classmethod
    def beside(cls, model_dir: Path) -> PinPaths:
        """Return the paths beside a model dir; nothing of ours is in the folder that a trainer writes."""
        return cls(model_dir.parent / OWN_FOLDER)

    def pins(self, model: str) -> Path:
        """Return the folder of the pinned checkpoints that evaluations get."""
        # Evaluation scripts take this folder's name for the model's when they choose where results go.
        return self.folder / model

    def held(self, model_dir: str) -> Path:
        """Links to what the trainer has written and is not evaluated yet; no script sees them."""
        return self.folder / ".held" / model_dir

    def lock(self, model_dir: Path) -> Path:
        """Held by the one sidecar that watches a model dir."""
        return self.folder / f".lock-{short_key(model_dir)}"

    @property
    def mark(self) -> Path:
        """A random text by which other machines recognize this folder."""
        return self.folder / "place"


@dataclass(frozen=True)
class TemporaryPaths:
    """What is below ``TMPDIR``, of one user on one machine."""

    root: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    @property
    def private(self) -> Path:
        """The folder of this user's locks."""
        return self.root / f"eval-sidecar-{os.getuid()}"

    def run_lock(self, run: str) -> Path:
        """Held by the one process that delivers to a run."""
        return self.private / f"run-{hashlib.sha256(run.encode()).hexdigest()[:20]}.lock"

    def watch_lock(self, model_dir: Path) -> Path:
        """Replaces `PinPaths.lock` if that cannot be created."""
        return self.private / f"{short_key(model_dir)}.lock"


@dataclass(frozen=True)
class UserPaths:
    """What is below ``$XDG_STATE_HOME/eval-sidecar``, of one user on every machine with that home."""

    root: Path

    @classmethod
    def of_environment(cls) -> Optional[UserPaths]:
        """Return the paths of this user; None if there is no home folder."""
        given = Path(os.environ.get("XDG_STATE_HOME", ""))
        # The specification: a path that is not absolute is ignored. Not Path.home(), which raises an error.
        state = given if given.is_absolute() else Path(os.path.expanduser("~/.local/state"))  # noqa: PTH111
        return cls(state / "eval-sidecar") if state.is_absolute() else None

    def instance(self, folder: Path, instance: str) -> Path:
        """Return the file that says where an instance's files are."""
        key = {"manager_dir": os.path.realpath(folder), "instance": instance}
        return self.root / "instances" / f"{stable_hash(key)[:12]}.json"


def short_key(model_dir: Path) -> str:
    """Return 12 hex digits for a model dir, the same for any link to it."""
    return hashlib.sha256(os.fsencode(os.path.realpath(model_dir))).hexdigest()[:12]
