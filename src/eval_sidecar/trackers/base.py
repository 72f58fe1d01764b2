"""The contract between delivery and a tracker: read what the server holds, send rows, close.

A tracker never decides what has to be sent; `eval_sidecar.delivery.delivery` does, from the ledger and from
what `Tracker.read` shows. A tracker never says that something arrived: only a later `read` does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Optional, Protocol

from eval_sidecar.types import ModelSpec, Point, Result


@dataclass(frozen=True)
class ServerRow:
    """One history row that is a point, as the server shows it.

    Attributes:
        index: The row's own place on the server (W&B ``_step``).
        step: Checkpoint step.
        revision: As in `Point`.
        metrics: Metric name, without prefix, to value; only finite numbers.
        digest: `Result.digest` of the metrics, if the server shows that instead of them.
    """

    index: int
    step: int
    revision: int
    metrics: Mapping[str, float]
    digest: Optional[str] = None

    def lacks_metrics_of(self, result: Result) -> bool:
        """Return whether the result has a metric that the row, as shown, has not."""
        return self.digest is None and not result.metrics.keys() <= self.metrics.keys()

    def shows(self, result: Result) -> bool:
        """Return whether the row has a result's numbers, as far as both have them."""
        if self.digest is not None:
            return self.digest == result.digest
        return same_numbers(result.metrics, self.metrics)


@dataclass(frozen=True)
class ServerView:
    """What a look-up found.

    Attributes:
        exists: Whether the server knows the run.
        last_index: The highest index of *any* row shown, points or not; -1 if there is none.
        rows: The rows that are points, in the order of their indices.
        writer: Who seems to be writing the run now, in words; None if nobody does
            (a run that the server calls running, with a fresh heartbeat).
        knows_end: Whether a session must find the run standing at ``last_index + 1``; False if the
            rows are known from somewhere else than the run's history.
        summary_rows: The points, without their numbers, that the run's summary and table show; none if
            the table is not stored. None if the run does not say.
        home: What the run says of the model whose points it holds, as `Session.home` said it last; None
            if it does not say.
    """

    exists: bool
    last_index: int
    rows: tuple[ServerRow, ...]
    writer: Optional[str] = None
    knows_end: bool = True
    summary_rows: Optional[tuple[ServerRow, ...]] = None
    home: Optional[str] = None

    def newest_rows(self) -> dict[int, ServerRow]:
        """Return the row that counts of each step: that of the highest revision, the last of several."""
        return {row.step: row for row in sorted(self.rows, key=lambda row: (row.revision, row.index))}


@dataclass(frozen=True)
class Session:
    """One delivery: rows to append to a run, and what the run then shows.

    Attributes:
        spec: The model and its run.
        start: Index at which the run must stand for the rows to be appended; None if the
            tracker cannot know (offline).
        rows: Pairs of index and point, indices strictly ascending. The indices were computed from a
            look-up, so that a row lands on its checkpoint's step wherever that moves forward. Empty
            if only the table and the summary are sent.
        table: Every point of the model by step, from the ledger: what the run's table and summary show.
        row_by_step: Index of the row of each step that the run has, or gets with this session, if known.
        home: What the run is to say of the model whose points it holds, as text; None for nothing.
    """

    spec: ModelSpec
    start: Optional[int]
    rows: tuple[tuple[int, Point], ...]
    table: tuple[Point, ...]
    row_by_step: Mapping[int, int] = field(default_factory=dict)
    home: Optional[str] = None


@dataclass(frozen=True)
class Sent:
    """What a finished session left behind, for a person to find it again.

    Attributes:
        where: Address of the run, or the folder that an offline session wrote.
        table_problem: Why the table was not stored, if the client knows that.
    """

    where: str
    table_problem: Optional[str] = None


class Tracker(Protocol):
    """A service that keeps points. Every method may be called from any thread."""

    def read(self, spec: ModelSpec) -> ServerView:
        """Look up what the server holds of a run.

        Raises:
            ReadBackUnsupported: if the service cannot show its rows.
            TrackerError: if the look-up failed.
        """
        ...

    def send(self, session: Session) -> Sent:
        """Append the session's rows, show its table, and return once the client says that it is done.

        Returning does not prove arrival, and raising does not prove the opposite, with one exception:

        Raises:
            StaleView: the run does not stand at ``session.start``; nothing was sent.
            TrackerError: anything else; what arrived is unknown until the next `read`.
        """
        ...

    def address(self, spec: ModelSpec) -> Optional[str]:
        """Return where a person finds a run, written or not yet; None if nobody can know.

        Raises:
            TrackerError: if the service does not answer, or does not accept the account.
        """
        ...

    def close(self) -> None:
        """End whatever the tracker keeps running. Idempotent; any later call starts it again."""
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


def same_numbers(ours: Mapping[str, float], theirs: Mapping[str, float]) -> bool:
    """Return whether two sets of metrics agree wherever both have a number, and have one in common."""
    common = ours.keys() & theirs.keys()
    return bool(common) and all(
        math.isclose(ours[key], theirs[key], rel_tol=1e-9, abs_tol=1e-12) for key in common
    )
