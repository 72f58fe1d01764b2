"""The words of the project as frozen dataclasses. No I/O and no behaviour beyond what is derived."""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from pathlib import Path
from typing import Any, Optional


class Word(str, Enum):
    """One of a closed set of words. In messages, JSON and comparisons it is that word, as text."""

    # Else an f-string would show ``gone`` up to Python 3.11, and ``Completeness.GONE`` from then on.
    __str__ = str.__str__
    __format__ = str.__format__  # type: ignore[assignment]


class Completeness(Word):
    """How completely a checkpoint is written."""

    COMPLETE = "complete"
    """Proved."""

    SETTLING = "settling"
    """Not proved, and still inside the quiet period."""

    QUIET = "quiet"
    """Cannot be proved, and unchanged for long enough."""

    PARTIAL = "partial"
    """Proved to be incomplete."""

    ABANDONED = "abandoned"
    """Incomplete, and unchanged for hours."""

    GONE = "gone"
    """Deleted by the trainer before it could be evaluated."""

    @property
    def is_ready(self) -> bool:
        """Whether such a checkpoint may be evaluated."""
        return self in (Completeness.COMPLETE, Completeness.QUIET)


class DeliveryStatus(Word):
    """How far a point has come on its way to the tracker."""

    PENDING = "pending"
    """To be sent."""

    SENT = "sent"
    """The intent is on disk; whether it arrived is not known."""

    CONFIRMED = "confirmed"
    """Read back from the server."""


class JobPhase(Word):
    """Where a job stands at its launcher."""

    QUEUED = "queued"
    """Accepted, not known to be computing: waiting for a machine, or the scheduler does not answer."""

    RUNNING = "running"
    """It is computing."""

    ENDED = "ended"
    """It ended on its own: with an exit code, or over its time or memory."""

    EVICTED = "evicted"
    """Taken away by the machine: preempted, or its node failed."""

    CANCELLED = "cancelled"
    """Cancelled by a user."""

    ELSEWHERE = "elsewhere"
    """On another machine, which cannot be asked from here; it may have ended."""

    LOST = "lost"
    """Gone without a trace: killed from outside, or the machine restarted."""


@dataclass(frozen=True)
class Checkpoint:
    """One ``checkpoint-<step>`` folder.

    Attributes:
        step: Training step, from the folder's name.
        path: Absolute path of the folder.
    """

    step: int
    path: Path

    @property
    def name(self) -> str:
        """The folder's name, ``checkpoint-<step>``."""
        return self.path.name


@dataclass(frozen=True)
class ModelSpec:
    """One model and the run that its points belong to.

    Attributes:
        model_dir: Name of the folder that holds the checkpoints; the model's name everywhere.
        dataset: Data set that the model is evaluated on.
        cb_setting: Codebook setting, such as ``cb256``, or ``none``.
        eval_split: Split that is evaluated, such as ``test``.
        seed: Seed of the evaluation.
        num_beams: Beams of the evaluation.
        sid_levels: Levels of a semantic ID that are used; ``<= 0`` means all.
        project: W&B project.
        entity: W&B entity, or None for the key's default.
        run_id: W&B run id; the run with this id is always resumed.
        run_name: W&B run name.
        group: W&B group, or None.
        num_train_epochs: Epochs of the training; None if they are not known.
    """

    model_dir: str
    dataset: str
    cb_setting: str
    eval_split: str
    seed: int
    num_beams: int
    sid_levels: int
    project: str
    entity: Optional[str]
    run_id: str
    run_name: str
    group: Optional[str] = None
    num_train_epochs: Optional[float] = None


#: Size in bytes, mtime and ctime in ns of a file. If a copy keeps the mtime of its original,
#: only the ctime distinguishes two files of the same size.
Stamp = tuple[int, int, int]


@dataclass(frozen=True)
class Place:
    """Where a model lives.

    Attributes:
        host: The machine that saw it there.
        path: The model dir, links resolved.
        mark: Random text in our own folder there, the same on every machine that mounts it. None if unknown.
    """

    host: str
    path: str
    mark: Optional[str] = None

    def __str__(self) -> str:
        return f"{self.host}:{self.path}"

    def is_same(self, other: Place) -> bool:
        """Return whether both are one folder, as far as that can be told without looking into it."""
        return self.path == other.path and (self.host == other.host or None is not self.mark == other.mark)


@dataclass(frozen=True)
class Content:
    """What the weights of a checkpoint's folder were when they were last read.

    Attributes:
        identity: Hash of their content; the same for a copy anywhere.
        folder: Inode, mtime and ctime (ns) of the folder.
        weights: Hash over name, size, times and inode of each of its weights files.
        since: ISO 8601, UTC: when the newest of these files was written.
    """

    identity: str
    folder: tuple[int, int, int]
    weights: str
    since: str


@dataclass(frozen=True)
class Origin:
    """What a result was made of. What is not known is None.

    Attributes:
        identity: Of the weights that were evaluated.
        settings: Key of the settings, among those that the ledger has.
        at: ISO 8601, UTC: when the evaluation began.
    """

    identity: Optional[str] = None
    settings: Optional[str] = None
    at: Optional[str] = None


#: Origin of a result without provenance.
UNKNOWN = Origin()


@dataclass(frozen=True)
class Forced:
    """A request to evaluate everything once more.

    Attributes:
        round: Number of the request; an entry keeps the last one in which it was evaluated.
        settings: Key of the settings that were asked for.
        is_wanted: Whether the last start asked for it.
    """

    round: int = 0
    settings: Optional[str] = None
    is_wanted: bool = False


NEVER_FORCED = Forced()


@dataclass(frozen=True)
class Result:
    """What one ``metrics.json`` says.

    Attributes:
        metrics: Every number in the file, by its name (``HR@10``, …).
        path: The file.
        digest: Hash of ``metrics`` alone: rewriting the same numbers does not change it.
        stamp: Of the file as it was read.
        left_out: What else is in the file, each as ``name (reason)``.
    """

    metrics: Mapping[str, float]
    path: str
    digest: str
    stamp: Stamp
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class Point:
    """One checkpoint's metrics as a tracker gets them.

    Attributes:
        step: The checkpoint's training step.
        checkpoint_name: ``checkpoint-<step>``.
        metrics: Metric name (``HR@10``, without a prefix) to value.
        metrics_path: Where the numbers come from.
        revision: 0 for the first delivery, then 1, 2, … each time the result has changed.
        checkpoint_index: Rank of the checkpoint among the model's, from 1; None if not computed.
        epoch_progress: Epochs trained so far, if the last checkpoint is the end of the training; None if not
            computed.
    """

    step: int
    checkpoint_name: str
    metrics: Mapping[str, float]
    metrics_path: str
    revision: int = 0
    checkpoint_index: Optional[int] = None
    epoch_progress: Optional[float] = None


@dataclass(frozen=True)
class Job:
    """One evaluation to be started.

    Attributes:
        step: The checkpoint's training step.
        token: Names the job before it has a handle, so that it can be found if its start was interrupted.
        argv: Command and arguments.
        env: Variables set on top of the sidecar's own environment.
        cwd: Working directory.
        log: File that gets everything the command prints.
    """

    step: int
    token: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    cwd: Path
    log: Path


#: What a launcher needs to find a job again after a restart: plain JSON.
Handle = dict[str, Any]


#: Columns of the table of results, as the first document lists them, and its metrics.
TABLE_METRICS = ("HR@1", "HR@3", "HR@5", "HR@10", "NDCG@1", "NDCG@3", "NDCG@5", "NDCG@10")
TABLE_COLUMNS = ("checkpoint_step", "checkpoint_name", *TABLE_METRICS, "metrics_path")

#: Names that a point's row on a tracker has for something else, whatever a metrics.json calls its numbers.
RESERVED = frozenset({"checkpoint_step", "revision", "checkpoint_name", "metrics_path", "checkpoint_table"})

_canonical = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode


def digest(metrics: Mapping[str, float]) -> str:
    """Return a hash of a result's numbers, independent of their order and formatting."""
    return hashlib.sha256(_canonical(dict(metrics)).encode()).hexdigest()[:16]


_NAME = re.compile(r"checkpoint-(\d+)", re.ASCII)


@functools.lru_cache(maxsize=65_536)  # the same names in every model's folder
def step_of(name: str) -> Optional[int]:
    """Return the step in a folder name of the form ``checkpoint-<digits>``, else None.

    ``checkpoint-007`` is not a name that a trainer writes, and would count as a second step 7.
    """
    match = _NAME.fullmatch(name)
    return int(match[1]) if match and name == f"checkpoint-{int(match[1])}" else None


#: Begins each fact about something that this user cannot read.
DENIED = "permission denied"


def stable_hash(value: Mapping[str, Any]) -> str:
    """Return the SHA-1, in hex, over a JSON object with sorted keys, no blanks, and ASCII only."""
    text = json.dumps(dict(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha1(text.encode("ascii"), usedforsecurity=False).hexdigest()


def now_text() -> str:
    """Return the time now, ISO 8601 in UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")
