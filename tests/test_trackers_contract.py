"""What every tracker does, asked of the fake and of the real W&B client alike."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Callable, Protocol

import pytest

from eval_sidecar.errors import ReadBackUnsupported, StaleView, TrackerError
from eval_sidecar.trackers.base import Tracker
from eval_sidecar.types import ModelSpec
from fakes import FakeTracker
from tracking import deliver, point_of, points_of, session_of, spec_of, wandb_on
from wandb_server import WandbServer


class Bench(Protocol):
    """A tracker, and a way to make the service behind it misbehave."""

    tracker: Tracker

    def show_late(self, run_id: str, rows: int, lookups: int) -> None: ...
    def answer_stale(self, run_id: str, rows: int) -> None: ...
    def write_as_somebody_else(self, run_id: str, index: int) -> None: ...
    def be_written(self, run_id: str) -> None: ...
    def lose_next(self, run_id: str) -> None: ...
    def store_next_without_answer(self, run_id: str) -> None: ...
    def refuse_read_back(self) -> None: ...


class FakeBench:
    def __init__(self) -> None:
        self.tracker = FakeTracker()

    def show_late(self, run_id: str, rows: int, lookups: int) -> None:
        run = self.tracker.run(run_id)
        run.late, run.late_reads = rows, lookups

    def answer_stale(self, run_id: str, rows: int) -> None:
        run = self.tracker.run(run_id)
        run.stale, run.stale_starts = rows, 1

    def write_as_somebody_else(self, run_id: str, index: int) -> None:
        self.tracker.write_as_somebody_else(run_id, index)

    def be_written(self, run_id: str) -> None:
        self.tracker.run(run_id).writer = "the run is running, heartbeat 4 s ago"

    def lose_next(self, run_id: str) -> None:
        self.tracker.lose()

    def store_next_without_answer(self, run_id: str) -> None:
        self.tracker.fail_after()

    def refuse_read_back(self) -> None:
        self.tracker.read_back = False


class WandbBench:
    def __init__(self, tracker: Tracker, server: WandbServer) -> None:
        self.tracker = tracker
        self.server = server

    def show_late(self, run_id: str, rows: int, lookups: int) -> None:
        self.server.hide(run_id, rows, lookups)

    def answer_stale(self, run_id: str, rows: int) -> None:
        self.server.stale(run_id, rows)

    def write_as_somebody_else(self, run_id: str, index: int) -> None:
        self.server.append(run_id, {"_step": index, "loss": 0.5})

    def be_written(self, run_id: str) -> None:
        self.server.set_state(run_id, "running")

    def lose_next(self, run_id: str) -> None:
        self.server.fault("file_stream", status=403, run_id=run_id)

    def store_next_without_answer(self, run_id: str) -> None:
        self.server.fault("file_stream", action="drop-after", times=1, run_id=run_id)

    def refuse_read_back(self) -> None:
        self.server.refuse_history()


@pytest.fixture(scope="module")
def wandb_bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WandbBench]:
    pytest.importorskip("wandb")
    folder: Path = tmp_path_factory.mktemp("wandb")
    with WandbServer() as server, wandb_on(server, folder) as tracker:
        yield WandbBench(tracker, server)


@pytest.fixture(params=["fake", pytest.param("wandb", marks=pytest.mark.wandb)])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    if request.param == "fake":
        yield FakeBench()
        return
    found: WandbBench = request.getfixturevalue("wandb_bench")
    yield found
    found.server.heal()


_numbers = itertools.count()


@pytest.fixture
def spec() -> ModelSpec:
    return spec_of(f"eval-{next(_numbers):020x}")


def test_a_run_that_was_never_written_does_not_exist(bench: Bench, spec: ModelSpec) -> None:
    view = bench.tracker.read(spec)
    assert (view.exists, view.last_index, view.rows, view.writer) == (False, -1, (), None)


def test_what_was_sent_is_read_back_with_exactly_its_numbers(bench: Bench, spec: ModelSpec) -> None:
    points = points_of(100, 200)
    deliver(bench.tracker, spec, points)
    view = bench.tracker.read(spec)
    assert view.exists
    assert view.last_index == 200
    assert [(row.index, row.step, row.revision) for row in view.rows] == [(100, 100, 0), (200, 200, 0)]
    assert [dict(row.metrics) for row in view.rows] == [dict(point.metrics) for point in points]


def test_a_later_session_appends(bench: Bench, spec: ModelSpec) -> None:
    deliver(bench.tracker, spec, points_of(100, 200))
    deliver(bench.tracker, spec, points_of(300), points_of(100, 200))
    assert [row.index for row in bench.tracker.read(spec).rows] == [100, 200, 300]


def test_a_late_checkpoint_takes_the_next_free_index(bench: Bench, spec: ModelSpec) -> None:
    deliver(bench.tracker, spec, points_of(200))
    deliver(bench.tracker, spec, points_of(100, 300), points_of(200))
    rows = bench.tracker.read(spec).rows
    assert [(row.index, row.step) for row in rows] == [(200, 200), (201, 100), (300, 300)]


def test_a_changed_result_is_a_row_of_its_own(bench: Bench, spec: ModelSpec) -> None:
    deliver(bench.tracker, spec, points_of(100))
    changed = point_of(100, hr=0.5, revision=1)
    deliver(bench.tracker, spec, [changed], points_of(100))
    rows = bench.tracker.read(spec).rows
    assert [(row.index, row.step, row.revision) for row in rows] == [(100, 100, 0), (101, 100, 1)]
    assert rows[1].metrics["HR@10"] == 0.5


def test_a_row_that_is_no_point_counts_for_the_last_index_only(bench: Bench, spec: ModelSpec) -> None:
    deliver(bench.tracker, spec, points_of(100))
    bench.write_as_somebody_else(spec.run_id, 150)
    view = bench.tracker.read(spec)
    assert view.last_index == 150
    assert [row.step for row in view.rows] == [100]


def test_rows_that_the_look_up_did_not_show_refuse_the_session_and_nothing_is_sent(
    bench: Bench, spec: ModelSpec
) -> None:
    deliver(bench.tracker, spec, points_of(100, 200))
    bench.show_late(spec.run_id, 1, 1)
    late = bench.tracker.read(spec)
    assert late.last_index == 100
    with pytest.raises(StaleView):
        bench.tracker.send(session_of(spec, late, points_of(200, 300)))
    assert [row.step for row in bench.tracker.read(spec).rows] == [100, 200]


def test_a_start_that_is_too_low_refuses_the_session_and_nothing_is_overwritten(
    bench: Bench, spec: ModelSpec
) -> None:
    deliver(bench.tracker, spec, points_of(100, 200))
    bench.answer_stale(spec.run_id, 1)
    with pytest.raises(StaleView):
        deliver(bench.tracker, spec, points_of(300))
    assert [row.step for row in bench.tracker.read(spec).rows] == [100, 200]


def test_a_run_can_be_written_again_right_after_a_refused_session(bench: Bench, spec: ModelSpec) -> None:
    deliver(bench.tracker, spec, points_of(100))
    view = bench.tracker.read(spec)
    bench.write_as_somebody_else(spec.run_id, 120)
    with pytest.raises(StaleView):
        bench.tracker.send(session_of(spec, view, points_of(200)))
    deliver(bench.tracker, spec, points_of(200))
    assert [row.step for row in bench.tracker.read(spec).rows] == [100, 200]


def _unless_it_fails(act: Callable[..., Any], *given: Any) -> None:
    try:
        act(*given)
    except StaleView:
        raise
    except TrackerError:
        pass


def test_rows_that_were_lost_are_not_shown_and_can_be_sent_again(bench: Bench, spec: ModelSpec) -> None:
    deliver(bench.tracker, spec, points_of(100))
    bench.lose_next(spec.run_id)
    _unless_it_fails(deliver, bench.tracker, spec, points_of(200))
    if isinstance(bench, WandbBench):
        bench.server.heal()
    assert [row.step for row in bench.tracker.read(spec).rows] == [100]
    deliver(bench.tracker, spec, points_of(200))
    assert [row.step for row in bench.tracker.read(spec).rows] == [100, 200]


def test_rows_that_were_stored_without_an_answer_are_there_once(bench: Bench, spec: ModelSpec) -> None:
    bench.store_next_without_answer(spec.run_id)
    _unless_it_fails(deliver, bench.tracker, spec, points_of(100, 200))
    assert [row.step for row in bench.tracker.read(spec).rows] == [100, 200]


def test_somebody_who_is_writing_is_named(bench: Bench, spec: ModelSpec) -> None:
    deliver(bench.tracker, spec, points_of(100))
    assert bench.tracker.read(spec).writer is None
    bench.be_written(spec.run_id)
    writer = bench.tracker.read(spec).writer
    assert writer is not None
    assert writer.startswith("the run is running, heartbeat ")


def test_a_service_that_cannot_show_its_rows_says_so_and_still_takes_them(
    bench: Bench, spec: ModelSpec
) -> None:
    deliver(bench.tracker, spec, points_of(100))
    bench.refuse_read_back()
    with pytest.raises(ReadBackUnsupported):
        bench.tracker.read(spec)
    bench.tracker.send(session_of(spec, None, points_of(200)))


def test_many_models_are_written_at_the_same_time(bench: Bench) -> None:
    specs = [spec_of(f"eval-{next(_numbers):020x}") for _ in range(8)]
    threads = [
        threading.Thread(target=deliver, args=(bench.tracker, spec, points_of(100, 200))) for spec in specs
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shown = [[row.step for row in bench.tracker.read(spec).rows] for spec in specs]
    assert shown == [[100, 200]] * len(specs)


def test_the_address_of_a_run_is_known_before_it_is_written_and_is_the_one_it_gets(
    bench: Bench, spec: ModelSpec
) -> None:
    where = bench.tracker.address(spec)
    assert where is not None and not bench.tracker.read(spec).exists
    sent = bench.tracker.send(session_of(spec, bench.tracker.read(spec), points_of(100)))
    assert sent.where == where


def test_closing_twice_is_no_error() -> None:
    tracker = FakeTracker()
    tracker.close()
    tracker.close()
    assert tracker.closed
