"""Every point arrives exactly once, whatever the tracker does."""

from __future__ import annotations

from pathlib import Path
from typing import Optional

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from eval_sidecar.delivery.delivery import Report, deliver
from eval_sidecar.errors import ReadBackUnsupported, StateError, TrackerError
from eval_sidecar.ledger.ledger import CARRIED, Delivery, Ledger
from eval_sidecar.ledger.status import unfinished
from eval_sidecar.ledger.store import LedgerStore, load, open_store
from eval_sidecar.trackers.base import ServerRow
from eval_sidecar.types import DeliveryStatus, ModelSpec, Result, digest
from fakes import FakeTracker

PENDING, SENT, CONFIRMED = DeliveryStatus

SPEC = ModelSpec("m", "d", "cb64", "test", 42, 50, -1, "p", None, "eval-1", "m-eval")


class World:
    """A ledger on disk, a tracker, and a clock that only moves when somebody waits."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "m.json"
        self.tracker = FakeTracker()
        self.now = 1_000_000.0
        self.store = LedgerStore(self.path, Ledger("m", "eval-1", "m-eval"))

    def evaluate(self, *steps: int, value: float = 0.0) -> None:
        for step in steps:
            metrics = {"HR@10": value or step / 1000}
            result = Result(metrics, f"results/{step}", digest(metrics), (1, 1, 1))
            self.store.update(lambda ledger, step=step, result=result: ledger.evaluated(step, result))

    def deliver(self) -> Report:
        def pause(seconds: float) -> bool:
            self.now += seconds
            return False

        return deliver(self.store, self.tracker, SPEC, pause=pause, clock=lambda: self.now)

    def restart(self) -> None:
        ledger = load(self.path)
        assert ledger is not None
        self.store = LedgerStore(self.path, ledger)

    def forget_everything(self) -> None:
        results = [entry.result for entry in self.store.ledger.steps()]
        steps = [entry.step for entry in self.store.ledger.steps()]
        self.path.unlink(missing_ok=True)
        self.store = LedgerStore(self.path, Ledger("m", "eval-1", "m-eval"))
        for step, result in zip(steps, results):
            self.store.update(lambda ledger, step=step, result=result: ledger.evaluated(step, result))

    @property
    def server(self) -> list[int]:
        """Checkpoint steps on the server, in the order of their rows."""
        return self.tracker.run("eval-1").steps

    def row(self, step: int) -> ServerRow:
        """The newest row of a step."""
        return [row for _, row in self.tracker.run("eval-1").lines if row and row.step == step][-1]

    def status(self, step: int) -> str:
        delivery = self.store.ledger.entry(step).delivery
        assert delivery is not None
        return delivery.status


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_points_are_sent_in_one_session_and_confirmed_by_reading_back(world: World) -> None:
    world.evaluate(100, 200)
    report = world.deliver()
    assert (report.sent, report.confirmed, report.problem) == (2, 2, None)
    assert len(world.tracker.sessions) == 1
    assert world.server == [100, 200]
    assert world.status(100) == world.status(200) == CONFIRMED


def test_a_second_delivery_neither_sends_nor_looks_up(world: World) -> None:
    world.evaluate(100)
    world.deliver()
    reads = len(world.tracker.reads)
    assert world.deliver().sent == 0
    assert (len(world.tracker.sessions), len(world.tracker.reads)) == (1, reads)


def test_a_point_stands_at_its_checkpoint_step_wherever_that_moves_forward(world: World) -> None:
    world.evaluate(100, 300)
    world.deliver()
    world.evaluate(200, 400)
    world.deliver()
    assert [(index, row.step) for index, row in world.tracker.run("eval-1").lines if row] == [
        (100, 100), (300, 300), (301, 200), (400, 400),
    ]  # fmt: skip


def test_the_intent_is_on_disk_before_anything_is_sent(world: World) -> None:
    seen = []

    def look(_session: object) -> None:
        ledger = load(world.path)
        assert ledger is not None
        seen.append((ledger.entry(100).delivery.status, ledger.session_open))

    world.tracker.on_send = look
    world.evaluate(100)
    world.deliver()
    assert seen == [(SENT, True)]


def test_nothing_is_sent_where_the_intent_cannot_be_saved(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.evaluate(100)

    def full(*_: object) -> None:
        raise StateError("no space left on device")

    monkeypatch.setattr("eval_sidecar.ledger.store.write_text", full)
    with pytest.raises(StateError, match="no space"):
        world.deliver()
    assert world.tracker.sessions == []


@pytest.mark.parametrize("stored", [None, 0, 1, 2])
def test_a_crash_after_sending_neither_loses_nor_doubles_whatever_was_stored(
    world: World, stored: int | None
) -> None:
    world.evaluate(100, 200, 300)
    world.tracker.fail_after(
        KeyboardInterrupt(), stored=stored
    ) if stored != 0 else world.tracker.fail_before(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        world.deliver()
    world.restart()
    report = world.deliver()
    assert sorted(world.server) == [100, 200, 300]
    assert report.problem is None
    assert not world.store.ledger.due()


def test_a_failed_session_is_a_problem_and_its_points_stay_due(world: World) -> None:
    world.evaluate(100)
    world.tracker.fail_before(TrackerError("no connection"))
    report = world.deliver()
    assert report.problem == "no connection"
    assert (report.sent, report.unconfirmed) == (0, 1)
    assert world.store.ledger.problem == "no connection"
    assert world.deliver().problem is None
    assert world.server == [100]
    assert world.store.ledger.problem is None


def test_a_client_that_says_all_is_well_after_losing_rows_is_not_believed(world: World) -> None:
    world.evaluate(100, 200)
    world.tracker.lose(stored=1)
    report = world.deliver()
    assert report.confirmed == 1
    assert report.problem is not None and "checkpoint-200" in report.problem
    assert world.deliver().problem is None
    assert world.server == [100, 200]


def test_rows_that_a_server_shows_late_are_waited_for_and_not_sent_again(world: World) -> None:
    world.evaluate(100, 200)
    world.tracker.run("eval-1")
    world.tracker.on_send = lambda session: vars(world.tracker.run("eval-1")).update(late=2, late_reads=4)
    report = world.deliver()
    assert (report.confirmed, report.problem) == (2, None)
    assert world.server == [100, 200]


def test_rows_that_stay_hidden_are_not_sent_again_while_the_run_stands_further_than_is_shown(
    world: World,
) -> None:
    world.evaluate(100, 200)
    world.tracker.on_send = lambda session: vars(world.tracker.run("eval-1")).update(late=1, late_reads=60)
    assert world.deliver().problem is not None
    world.tracker.on_send = lambda session: None
    world.restart()
    report = world.deliver()
    assert report.problem is not None and "nothing was sent" in report.problem
    assert world.server == [100, 200]
    world.tracker.run("eval-1").late_reads = 0
    assert world.deliver().confirmed == 1
    assert world.server == [100, 200]


def test_a_refused_session_leaves_the_ledger_as_it_was(world: World) -> None:
    world.evaluate(100)
    world.deliver()
    world.evaluate(200)
    vars(world.tracker.run("eval-1")).update(late=1, late_reads=1000)
    world.store.update(lambda ledger: ledger)  # what is confirmed stays so until it is seen to be missing
    world.deliver()
    assert world.status(200) == PENDING
    assert world.store.ledger.session_open is False


def test_a_lost_state_finds_everything_on_the_server_and_sends_nothing(world: World) -> None:
    world.evaluate(100, 200)
    world.deliver()
    world.forget_everything()
    report = world.deliver()
    assert (report.sent, report.already) == (0, 2)
    assert len(world.tracker.sessions) == 1


def test_a_changed_result_is_sent_as_the_next_revision(world: World) -> None:
    world.evaluate(100, 200)
    world.deliver()
    world.evaluate(100, value=0.9)
    assert world.deliver().sent == 1
    assert (world.row(100).revision, world.row(100).metrics) == (1, {"HR@10": 0.9})
    assert world.deliver().sent == 0


def test_the_same_numbers_again_are_no_revision(world: World) -> None:
    world.evaluate(100)
    world.deliver()
    world.evaluate(100)
    assert world.deliver().sent == 0


def test_a_changed_result_with_a_lost_state_is_noticed_by_its_numbers(world: World) -> None:
    world.evaluate(100)
    world.deliver()
    world.evaluate(100, value=0.9)
    world.forget_everything()
    world.deliver()
    assert (world.row(100).revision, world.row(100).metrics) == (1, {"HR@10": 0.9})


def test_a_result_that_changes_while_the_outcome_is_unknown_becomes_a_revision(world: World) -> None:
    world.evaluate(100)
    world.tracker.fail_after(TrackerError("connection lost"))
    world.deliver()
    world.evaluate(100, value=0.9)
    world.deliver()
    assert [row.revision for _, row in world.tracker.run("eval-1").lines if row] == [0, 1]


def test_the_table_holds_every_point_of_the_model(world: World) -> None:
    world.evaluate(100)
    world.deliver()
    world.evaluate(300, 200)
    world.deliver()
    assert [point.step for point in world.tracker.run("eval-1").table] == [100, 200, 300]


def test_a_confirmed_point_that_was_overwritten_is_sent_again(world: World) -> None:
    world.evaluate(100, 200)
    world.deliver()
    run = world.tracker.run("eval-1")
    run.lines[:] = [line for line in run.lines if line[0] != 100]
    world.evaluate(300)
    world.deliver()
    assert sorted(world.server) == [100, 200, 300]
    assert not world.store.ledger.due()


def test_points_of_an_older_scripts_state_are_never_sent(world: World) -> None:
    world.evaluate(100, 200)
    carried = Delivery(CONFIRMED, digest=world.store.ledger.entry(100).result.digest, via=CARRIED)
    world.store.update(lambda ledger: ledger.with_entry(100, delivery=carried))
    world.deliver()
    assert world.server == [200]


def test_a_run_that_somebody_else_writes_is_left_alone(world: World) -> None:
    world.evaluate(100)
    world.tracker.run("eval-1").writer = "the run is running, heartbeat 4 s ago"
    report = world.deliver()
    assert report.problem is not None and "heartbeat 4 s ago" in report.problem
    assert world.tracker.sessions == []


def test_a_run_that_our_own_dead_session_left_open_is_resumed(world: World) -> None:
    world.evaluate(100)
    world.tracker.fail_before(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        world.deliver()
    world.restart()
    world.tracker.run("eval-1").writer = "the run is running, heartbeat 4 s ago"
    assert world.deliver().problem is None
    assert world.server == [100]


def test_a_row_that_is_no_point_moves_the_next_index(world: World) -> None:
    world.tracker.write_as_somebody_else("eval-1", 150)
    world.evaluate(100)
    world.deliver()
    assert [index for index, row in world.tracker.run("eval-1").lines if row] == [151]


def test_without_read_back_everything_is_sent_once_and_stays_unconfirmed(world: World) -> None:
    world.tracker.read_back = False
    world.evaluate(100, 200)
    report = world.deliver()
    assert (report.sent, report.unconfirmed, report.problem) == (2, 2, None)
    assert world.deliver().sent == 0
    world.evaluate(300)
    assert world.deliver().sent == 1
    assert world.server == [100, 200, 300]


def test_what_was_sent_without_read_back_is_looked_up_when_there_is_one(world: World) -> None:
    world.tracker.read_back = False
    world.evaluate(100, 200)
    world.deliver()
    world.tracker.read_back = True
    world.tracker.run("eval-1").lines.pop()  # one of the two was never synced
    report = world.deliver()
    assert world.server == [100, 200]
    assert report.problem is None


def test_a_failing_look_up_sends_nothing(world: World) -> None:
    world.evaluate(100)
    world.tracker.read_faults.append(TrackerError("server error 500"))
    assert world.deliver().problem == "server error 500"
    assert world.tracker.sessions == []
    assert world.status(100) == PENDING


def test_two_deliveries_to_one_run_from_two_states_do_not_overlap(world: World, tmp_path: Path) -> None:
    other = World(tmp_path / "other")
    other.tracker = world.tracker
    other.evaluate(100, 200)
    world.evaluate(100, 200)
    inner: list[Report] = []
    world.tracker.on_send = lambda session: inner.append(other.deliver()) if not inner else None
    world.deliver()
    assert inner[0].problem is not None and "another process" in inner[0].problem
    assert world.server == [100, 200]
    assert other.deliver().already == 2


def test_a_stop_while_waiting_sends_nothing_more(world: World) -> None:
    world.evaluate(100)
    world.tracker.run("eval-1").writer = "somebody"
    report = deliver(world.store, world.tracker, SPEC, pause=lambda seconds: True, clock=lambda: 0.0)
    assert report.problem is not None
    assert world.tracker.sessions == []


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_whatever_fails_in_whatever_order_every_point_is_there_once_in_the_end(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    world = World(tmp_path_factory.mktemp("world"))
    steps = data.draw(st.lists(st.integers(1, 60), min_size=1, max_size=6, unique=True))
    for step in steps:
        world.evaluate(step)
        fate = data.draw(
            st.sampled_from(["well", "before", "after", "part", "lose", "crash", "late", "forget", "offline"])
        )
        if fate == "before":
            world.tracker.fail_before()
        elif fate == "after":
            world.tracker.fail_after()
        elif fate == "part":
            world.tracker.fail_after(stored=1)
        elif fate == "lose":
            world.tracker.lose(stored=0)
        elif fate == "crash":
            world.tracker.fail_after(KeyboardInterrupt())
        elif fate == "late":
            vars(world.tracker.run("eval-1")).update(late=1, late_reads=data.draw(st.integers(1, 12)))
        elif fate == "forget":
            world.forget_everything()
        world.tracker.read_back = True
        try:
            world.deliver()
        except KeyboardInterrupt:
            world.restart()
        world.now += data.draw(st.sampled_from([0.0, 5.0, 1000.0, -5000.0]))
    world.tracker.faults.clear()
    vars(world.tracker.run("eval-1")).update(late=0, late_reads=0)
    for _ in range(3):
        world.deliver()
    assert sorted(world.server) == sorted(steps)
    assert not world.store.ledger.due()


def test_a_second_process_on_one_state_is_refused(world: World) -> None:
    first = open_store(world.path, "m", "eval-1", "m-eval")
    second = open_store(world.path, "m", "eval-1", "m-eval")
    with first, pytest.raises(StateError, match="another process"), second:
        pass


def test_the_report_names_where_the_run_is(world: World) -> None:
    world.evaluate(100)
    assert world.deliver().where == "memory://p/eval-1"


def test_a_point_sent_a_moment_ago_is_looked_for_until_it_shows(world: World) -> None:
    world.evaluate(100)
    world.tracker.fail_after(KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        world.deliver()
    world.restart()
    vars(world.tracker.run("eval-1")).update(late=1, late_reads=3, stale=1, stale_starts=1)
    assert world.deliver().confirmed == 1
    assert [len(session.rows) for session in world.tracker.sessions if session.rows] == [1]
    assert world.server == [100]


@pytest.mark.parametrize("said", [None, "UploadError: 403 Forbidden"], ids=["silent", "told"])
def test_a_table_that_was_not_stored_is_named_and_sent_again_without_its_points(
    world: World, said: Optional[str]
) -> None:
    world.evaluate(100, 200)
    world.tracker.lose_table(said)
    report = world.deliver()
    assert report.problem is not None and "table" in report.problem and (said or "") in report.problem
    assert (report.confirmed, world.store.ledger.is_due) == (2, True)
    assert unfinished(world.store.ledger, expects_delivery=True, expects_confirmation=True) == [
        f"delivery: {report.problem}"
    ]
    world.restart()
    assert world.deliver().problem is None
    run = world.tracker.run("eval-1")
    assert (run.steps, [point.step for point in run.table]) == ([100, 200], [100, 200])
    assert world.tracker.sessions[-1].rows == ()
    assert not world.store.ledger.is_due


def test_a_table_that_was_not_stored_is_sent_again_although_the_state_was_lost(world: World) -> None:
    world.evaluate(100)
    world.deliver()
    world.evaluate(200)
    world.tracker.lose_table()
    world.deliver()
    world.forget_everything()
    assert world.deliver().problem is None
    run = world.tracker.run("eval-1")
    assert (run.steps, [point.step for point in run.table]) == ([100, 200], [100, 200])


def test_a_table_that_is_due_waits_for_a_server_that_can_be_read(world: World) -> None:
    world.evaluate(100)
    world.tracker.lose_table("403")
    world.deliver()
    world.tracker.read_back = False
    assert world.deliver().problem is None
    assert [len(session.rows) for session in world.tracker.sessions] == [1]
    world.tracker.read_back = True
    world.deliver()
    assert [point.step for point in world.tracker.run("eval-1").table] == [100]


def test_a_table_that_fails_where_nothing_can_be_read_back_is_named(world: World) -> None:
    world.tracker.read_back = False
    world.evaluate(100)
    world.tracker.lose_table("no space left on device")
    report = world.deliver()
    assert report.problem is not None and "no space left on device" in report.problem
    assert world.deliver().sent == 0


def test_a_problem_is_over_when_nothing_is_due_any_more(world: World) -> None:
    world.evaluate(100)
    world.deliver()
    world.evaluate(100, value=0.9)
    world.tracker.read_faults.append(TrackerError("server down"))
    assert world.deliver().problem == "server down"
    world.evaluate(100)
    assert world.deliver().problem is None
    assert unfinished(world.store.ledger, expects_delivery=True, expects_confirmation=True) == []


def test_a_run_of_an_older_script_is_left_as_it_is(world: World) -> None:
    world.evaluate(100)
    world.deliver()
    world.tracker.run("eval-1").summary_rows = None  # older scripts did not say what a table shows
    world.forget_everything()
    assert (world.deliver().already, len(world.tracker.sessions)) == (1, 1)


def test_a_session_that_could_not_be_opened_leaves_its_points_to_be_sent(world: World) -> None:
    world.tracker.read_back = False
    world.evaluate(100)
    world.tracker.fail_before(TrackerError("no such folder", nothing_sent=True))
    assert world.deliver().undelivered == 1
    assert (world.status(100), world.store.ledger.session_open) == (PENDING, False)
    assert world.deliver().sent == 1
    assert world.server == [100]


def test_a_metric_that_a_result_has_gained_is_delivered(world: World) -> None:
    world.evaluate(100)
    world.deliver()
    metrics = {**world.store.ledger.entry(100).result.metrics, "Recall@50": 0.5}
    gained = Result(metrics, "results/100", digest(metrics), (2, 2, 2))
    world.store.update(lambda ledger: ledger.evaluated(100, gained))
    world.deliver()
    assert dict(world.row(100).metrics) == metrics
    assert world.deliver().sent == 0


def test_a_result_that_changes_where_nothing_can_be_read_back_is_sent_as_a_revision(world: World) -> None:
    world.tracker.read_back = False
    world.evaluate(100)
    world.deliver()
    world.evaluate(100, value=0.9)
    assert world.deliver().sent == 1
    assert (world.row(100).revision, world.row(100).metrics) == (1, {"HR@10": 0.9})
    assert world.deliver().sent == 0


def test_rows_that_cannot_be_shown_and_are_not_known_here_are_not_written_over(world: World) -> None:
    world.evaluate(100)
    world.tracker.read_faults.append(ReadBackUnsupported("the server has 3 rows", rows=3))
    report = world.deliver()
    assert report.problem is not None and "3 rows" in report.problem
    assert world.tracker.sessions == []
