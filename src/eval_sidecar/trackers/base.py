"""The contract between delivery and a tracker: read what the server holds, send rows, close.

A tracker never decides what has to be sent; `eval_sidecar.delivery` does, from the ledger and from
what `Tracker.read` shows. A tracker never says that something arrived: only a later `read` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Optional, Protocol

from eval_sidecar.types import ModelSpec, Point


@dataclass(frozen=True)
class ServerRow:
    """One history row that is a point, as the server shows it.

    Attributes:
        index: The row's own place on the server (W&B ``_step``).
        step: Checkpoint step.
        revision: As in `Point`.
        metrics: Metric name, without prefix, to value; only finite numbers.
    """

    index: int
    step: int
    revision: int
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class ServerView:
    """What a look-up found.

    Attributes:
        exists: Whether the server knows the run.
        last_index: The highest index of *any* row shown, points or not; -1 where there is none.
        rows: The rows that are points, in the order of their indices.
        writer: None, or in words who seems to be writing the run at this moment
            (a run that the server calls running, with a fresh heartbeat).
    """

    exists: bool
    last_index: int
    rows: tuple[ServerRow, ...]
    writer: Optional[str] = None


@dataclass(frozen=True)
class Session:
    """One delivery: rows to append to a run, and what the run then shows.

    Attributes:
        spec: The model and its run.
        start: Index at which the run must stand for the rows to be appended; None where the
            tracker cannot know (offline).
        rows: Pairs of index and point, indices strictly ascending. The indices were computed from a
            look-up, so that a row lands on its checkpoint's step wherever that moves forward.
        table: Every point of the model by step, from the ledger: what the run's table and summary show.
    """

    spec: ModelSpec
    start: Optional[int]
    rows: tuple[tuple[int, Point], ...]
    table: tuple[Point, ...]


@dataclass(frozen=True)
class Receipt:
    """What a finished session left behind, for a person to find it again.

    Attributes:
        where: Address of the run, or the folder that an offline session wrote.
    """

    where: str


class Tracker(Protocol):
    """A service that keeps points. Every method may be called from any thread."""

    def read(self, spec: ModelSpec) -> ServerView:
        """Look up what the server holds of a run.

        Raises:
            ReadBackUnsupported: where the service cannot show its rows.
            TrackerError: where the look-up failed.
        """
        ...

    def send(self, session: Session) -> Receipt:
        """Append the session's rows and return once the client says that it is done.

        Returning is no proof of arrival, and raising no proof of the opposite, with one exception:

        Raises:
            StaleView: the run does not stand at ``session.start``; nothing was sent.
            TrackerError: anything else; what arrived is unknown until the next `read`.
        """
        ...

    def close(self) -> None:
        """End whatever the tracker keeps running. Idempotent."""
        ...


def plan_rows(points: Sequence[Point], last_index: int) -> tuple[tuple[int, Point], ...]:
    """Give each point its index: its step wherever that moves forward, else the next free index.

    Args:
        points: Points to append, in any order.
        last_index: Highest index in use; -1 for an empty run.
    """
    rows = []
    for point in sorted(points, key=lambda p: (p.step, p.revision)):
        last_index = max(last_index + 1, point.step)
        rows.append((last_index, point))
    return tuple(rows)
