"""Delivery in the background: when the tracker is opened and closed, and what is said how often."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Callable

import pytest

from eval_sidecar.delivery.background import DeliveryThread
from eval_sidecar.errors import TrackerError
from eval_sidecar.ledger.ledger import Ledger
from eval_sidecar.ledger.store import LedgerStore
from eval_sidecar.types import Result, digest
from fakes import FakeTracker
from toolbox import wait_until
from tracking import spec_of

SPEC = spec_of("eval-1")


class Tracker(FakeTracker):
    """Says when it was closed; ``is_open`` from a call to the next close."""

    def __init__(self) -> None:
        super().__init__()
        self.is_open = False
        self.closed_once = threading.Event()

    def read(self, spec):
        self.is_open = True
        return super().read(spec)

    def close(self) -> None:
        super().close()
        self.is_open = False
        self.closed_once.set()


class Pauses:
    """Stands in for the event on which the delivery waits: no wait takes time.

    A wait that nobody ends is over at once, `budget` times; after that it lasts until it is ended.
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.waits: list[float] = []
        self._event = threading.Event()

    def wait(self, timeout=None) -> bool:
        if timeout is not None and not self._event.is_set() and self.budget > 0:
            self.budget -= 1
            self.waits.append(timeout)
            return False
        return self._event.wait()

    def __getattr__(self, name: str) -> Callable[..., object]:
        return getattr(self._event, name)


@pytest.fixture
def tracker() -> Tracker:
    return Tracker()


@pytest.fixture
def store(tmp_path: Path) -> LedgerStore:
    return LedgerStore(tmp_path / "state.json", Ledger(SPEC.model_dir, SPEC.run_id, SPEC.run_name))


def evaluate(store: LedgerStore, step: int) -> None:
    metrics = {"HR@10": step / 1000}
    result = Result(metrics, f"/r/checkpoint-{step}/metrics.json", digest(metrics), (1, step, step))
    store.update(lambda ledger: ledger.evaluated(step, result))


@contextmanager
def running(store: LedgerStore, tracker: Tracker, **changes) -> Iterator[DeliveryThread]:
    delivery = DeliveryThread(store, tracker, SPEC, settle_seconds=0.0, **changes)
    delivery.start()
    try:
        yield delivery
    finally:
        delivery.close(10.0)


def confirmed(store: LedgerStore, *steps: int) -> bool:
    return all(
        (entry := store.ledger.entry(step)).delivery is not None and entry.due() is None for step in steps
    )


def test_the_tracker_is_closed_after_a_while_without_work_and_opened_for_more(store, tracker):
    evaluate(store, 100)
    with running(store, tracker, idle_seconds=0.01) as delivery:
        assert tracker.closed_once.wait(10)
        assert confirmed(store, 100) and not tracker.is_open
        tracker.closed_once.clear()
        evaluate(store, 200)
        delivery.notify()
        assert tracker.closed_once.wait(10)
        assert confirmed(store, 100, 200)
    assert tracker.run("eval-1").steps == [100, 200]


def test_the_tracker_stays_open_before_that(store, tracker):
    evaluate(store, 100)
    with running(store, tracker, idle_seconds=3600.0) as delivery:
        wait_until(lambda: confirmed(store, 100), "the first")
        evaluate(store, 200)
        delivery.notify()
        wait_until(lambda: confirmed(store, 200), "the second")
        assert not tracker.closed_once.is_set()


def test_a_server_that_is_down_for_a_day_is_told_of_once_and_asked_less_and_less(store, tracker, caplog):
    caplog.set_level(logging.INFO, "eval_sidecar")
    tries = 144
    tracker.read_faults.extend(TrackerError("no connection") for _ in range(tries))
    evaluate(store, 100)
    delivery = DeliveryThread(store, tracker, SPEC, settle_seconds=0.0)
    pauses = delivery._wanted = Pauses(budget=10 * tries)
    delivery.start()
    wait_until(lambda: confirmed(store, 100), "the server to be back")
    delivery.close(10.0)
    assert pauses.waits[:2] == [15.0, 30.0]
    assert sum(pauses.waits) / 3600 > 23, "a day"
    said = [record.message for record in caplog.records]
    assert len([line for line in said if "no connection" in line]) == 1
    assert len(said) == 3 and "points go to" in said[0] and "1 confirmed" in said[2]
    assert tracker.closed_once.is_set(), "nothing is kept running between two tries that are far apart"


def test_where_points_will_be_found_is_in_the_ledger_before_there_is_a_point(store, tracker):
    with running(store, tracker):
        wait_until(lambda: store.ledger.where == tracker.address(SPEC), "the address")
    assert not tracker.reads


def test_a_refused_account_is_a_problem_before_there_is_a_point_and_a_new_one_is_tried_at_once(
    store, tracker, monkeypatch
):
    account = ["wrong key"]

    def address(spec):
        if account[0] == "wrong key":
            raise TrackerError("does not accept the API key", permanent=True)

    monkeypatch.setattr(tracker, "address", address)
    with running(store, tracker, account=lambda: account[0]) as delivery:
        wait_until(lambda: store.ledger.problem == "does not accept the API key", "the problem")
        evaluate(store, 100)
        account[0] = "right key"
        delivery.notify()
        wait_until(lambda: confirmed(store, 100), "the point")
        assert tracker.closed_once.is_set()  # its client had the old key
    assert store.ledger.problem is None
