"""Stand-ins for the contracts: a tracker in memory that can lose, hide and refuse on request.

They keep the contract and nothing more; `test_trackers_contract.py` holds `FakeTracker` to what the
real W&B client does against `wandb_server`.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Optional

from eval_sidecar.errors import ReadBackUnsupported, StaleView, TrackerError
from eval_sidecar.trackers.base import Sent, ServerRow, ServerView, Session
from eval_sidecar.types import ModelSpec, Point, digest

#: A line of a run: its index, and the point in it (None for a row that is no point).
Line = tuple[int, Optional[ServerRow]]


@dataclass
class FakeRun:
    """What the pretended server holds of one run.

    Attributes:
        lines: History lines in the order of their offsets.
        table: Points of the last table logged.
        summary_rows: What the summary that came with it says.
        writer: What `read` says about somebody who is writing.
        late: Newest lines that `read` does not show, for the next `late_reads` look-ups.
        late_reads: How many look-ups that goes on for.
        stale: Newest lines that a session's start does not know of, for the next `stale_starts` sessions.
        stale_starts: How many sessions that goes on for.
    """

    lines: list[Line] = field(default_factory=list)
    table: tuple[Point, ...] = ()
    summary_rows: Optional[tuple[ServerRow, ...]] = None
    writer: Optional[str] = None
    late: int = 0
    late_reads: int = 0
    stale: int = 0
    stale_starts: int = 0

    @property
    def steps(self) -> list[int]:
        """Checkpoint steps of all points, in the order of their offsets."""
        return [row.step for _, row in self.lines if row is not None]


@dataclass(frozen=True)
class Fault:
    """What happens to one `send`.

    Attributes:
        error: Raised at the end; None where the client says that all is well.
        stored: How many of the session's rows the server keeps; None means all.
        table: Whether it keeps the table and the summary, where it keeps all rows.
        table_problem: What the client says of the table.
    """

    error: Optional[BaseException] = None
    stored: Optional[int] = None
    table: bool = True
    table_problem: Optional[str] = None


class FakeTracker:
    """A tracker in memory.

    Attributes:
        runs: What the server holds, by run id. Reading an unknown id makes no entry.
        sessions: Every session handed to `send`, refused and failed ones too.
        reads: Run ids looked up, in order.
        read_back: False where the pretended service cannot show its rows.
        read_faults: Errors for the next look-ups, one each.
        faults: Fates of the next sends, one each; see `fail_before` and `fail_after`.
        on_send: Called with each session before anything is stored, outside the lock.
        closed: Whether `close` was called.
    """

    def __init__(self, *, read_back: bool = True, late_reads: int = 0) -> None:
        self.runs: dict[str, FakeRun] = {}
        self.sessions: list[Session] = []
        self.reads: list[str] = []
        self.read_back = read_back
        self.late_reads = late_reads
        self.read_faults: deque[BaseException] = deque()
        self.faults: deque[Fault] = deque()
        self.on_send: Callable[[Session], None] = lambda session: None
        self.closed = False
        self._lock = threading.Lock()

    def run(self, run_id: str) -> FakeRun:
        """The run of that id, made where there is none."""
        return self.runs.setdefault(run_id, FakeRun())

    def fail_before(self, error: Optional[BaseException] = None) -> None:
        """Let the next send (in the queue) fail with nothing stored."""
        self.faults.append(Fault(error or TrackerError("no connection"), stored=0))

    def fail_after(self, error: Optional[BaseException] = None, *, stored: Optional[int] = None) -> None:
        """Let the next send fail although its rows, or the first few, were stored."""
        self.faults.append(Fault(error or TrackerError("connection lost"), stored=stored))

    def lose(self, stored: int = 0) -> None:
        """Let the next send return as if all were well, although rows were lost."""
        self.faults.append(Fault(None, stored=stored))

    def lose_table(self, problem: Optional[str] = None) -> None:
        """Let the next send store its rows and not its table, with what the client says of that."""
        self.faults.append(Fault(table=False, table_problem=problem))

    def write_as_somebody_else(self, run_id: str, index: int, step: Optional[int] = None) -> None:
        """Append a row that no session sent; without a step it is no point."""
        row = None if step is None else ServerRow(index, step, 0, {})
        self.run(run_id).lines.append((index, row))

    def address(self, spec: ModelSpec) -> str:
        return f"memory://{spec.project}/{spec.run_id}"

    def read(self, spec: ModelSpec) -> ServerView:
        with self._lock:
            self.reads.append(spec.run_id)
            if not self.read_back:
                raise ReadBackUnsupported("this service cannot show its rows")
            if self.read_faults:
                raise self.read_faults.popleft()
            run = self.runs.get(spec.run_id)
            if run is None:
                return ServerView(exists=False, last_index=-1, rows=())
            lines = run.lines
            if run.late_reads > 0:
                run.late_reads -= 1
                lines = lines[: len(lines) - run.late]
            return ServerView(
                exists=True,
                last_index=max((index for index, _ in lines), default=-1),
                rows=tuple(sorted((row for _, row in lines if row), key=lambda row: row.index)),
                writer=run.writer,
                summary_rows=run.summary_rows,
            )

    def send(self, session: Session) -> Sent:
        self.on_send(session)
        with self._lock:
            self.sessions.append(session)
            fault = self.faults.popleft() if self.faults else Fault()
            if fault.error is not None and fault.stored == 0:
                raise fault.error
            run = self.run(session.spec.run_id)
            offset = self._offset(run)
            index = max((index for index, _ in run.lines[:offset]), default=-1)
            if session.start is not None and session.start != index + 1:
                raise StaleView(f"the run stands at {index + 1}, the look-up said {session.start}")
            rows = session.rows if fault.stored is None else session.rows[: fault.stored]
            self._store(run, offset, index, rows)
            if fault.stored is None and fault.table:
                run.table, run.summary_rows = session.table, _described(session)
            if self.late_reads:
                run.late, run.late_reads = len(rows), self.late_reads
            if fault.error is not None:
                raise fault.error
            return Sent(self.address(session.spec), fault.table_problem)

    def close(self) -> None:
        self.closed = True

    def _offset(self, run: FakeRun) -> int:
        """The line that a session starts at: too low where the server's answer to a resume is stale."""
        if run.stale_starts <= 0:
            return len(run.lines)
        run.stale_starts -= 1
        return len(run.lines) - run.stale

    @staticmethod
    def _store(run: FakeRun, offset: int, index: int, rows: tuple[tuple[int, Point], ...]) -> None:
        """Put rows at their offsets, over whatever is there, as W&B does; drop what does not ascend."""
        for place, point in rows:
            if place <= index:
                continue
            index = place
            row = ServerRow(place, point.step, point.revision, dict(point.metrics))
            run.lines[offset : offset + 1] = [(place, row)]
            offset += 1


def _described(session: Session) -> tuple[ServerRow, ...]:
    """What a summary says of a session's points."""
    return tuple(
        ServerRow(session.row_by_step[point.step], point.step, point.revision, {}, digest(point.metrics))
        for point in session.table
        if point.step in session.row_by_step
    )
