"""A pass opens what has changed, and nothing else."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Callable

import pytest

from eval_sidecar.delivery.uploading import ModelUpload, Uploader
from eval_sidecar.ledger import store as stores
from eval_sidecar.ledger.store import load
from eval_sidecar.paths import StatePaths
from eval_sidecar.types import ModelSpec
from fakes import FakeTracker


def spec_of(name: str) -> ModelSpec:
    return ModelSpec(name, "d", "none", "test", 42, 50, -1, "p", None, f"eval-{name}", f"{name}-eval")


class Machine:
    """Two models with two results each, all uploaded some time ago."""

    def __init__(self, folder: Path) -> None:
        self.results, self.state = folder / "results", folder / "state"
        self.tracker = FakeTracker()
        self._time = 1_600_000_000
        for model in ("a", "b"):
            for step in (10, 20):
                self.write(model, step)
            self.age(model)
        self.uploader = self.start()

    def start(self, **changes: Any) -> Uploader:
        given = {"tracker": self.tracker, "confirms": True, "settle_seconds": 0.0, "workers": 1}
        return Uploader(self.results, self.state, **{**given, **changes})

    def write(self, model: str, step: int, value: float = 0.0) -> Path:
        path = self.results / model / f"checkpoint-{step}" / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"HR@10": value or step / 1000}))
        return path

    def age(self, model: str) -> None:
        """Let the last change of a model's folder look as if it were long ago."""
        self._time += 1
        self.age_unchanged(model)

    def age_unchanged(self, model: str) -> None:
        """Let a model's folder look as it did before the last change in it."""
        os.utime(self.results / model, (self._time, self._time))

    def run_pass(self) -> list[ModelUpload]:
        outcomes = self.uploader.run_pass([spec_of("a"), spec_of("b")], threading.Event())
        self.uploader.remember(self.results / "receipt")
        return outcomes

    def opened(self) -> list[str]:
        """The models that a pass opens."""
        return [outcome.spec.model_dir for outcome in self.run_pass() if outcome.was_opened]

    def restart(self, **changes: Any) -> None:
        self.uploader = self.start(**changes)

    def steps(self, model: str) -> list[int]:
        return self.tracker.run(f"eval-{model}").steps


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path)
    assert machine.opened() == ["a", "b"]
    return machine


@pytest.fixture(params=["the same process", "a new process"])
def begin(request: pytest.FixtureRequest, machine: Machine) -> Callable[[], None]:
    """Begin the next pass, in this process or as a new one."""
    return machine.restart if request.param == "a new process" else lambda: None


def test_where_nothing_has_changed_no_ledger_and_no_result_is_opened(
    machine: Machine, begin: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    begin()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a ledger was read")

    monkeypatch.setattr(stores, "load", refuse)
    assert machine.opened() == []
    assert [outcome.left for outcome in machine.run_pass()] == [(), ()]


def test_a_model_with_a_new_result_is_opened_and_no_other(
    machine: Machine, begin: Callable[[], None]
) -> None:
    machine.write("a", 30)
    begin()
    assert machine.opened() == ["a"]
    assert machine.steps("a") == [10, 20, 30]
    assert machine.opened() == []


def test_a_result_that_comes_long_after_its_folder_is_found(
    machine: Machine, begin: Callable[[], None]
) -> None:
    (machine.results / "a" / "checkpoint-30").mkdir()
    machine.age("a")
    assert machine.opened() == ["a"]
    assert machine.opened() == []
    machine.write("a", 30)
    machine.age_unchanged("a")
    begin()
    assert machine.opened() == ["a"]
    assert machine.steps("a") == [10, 20, 30]


def test_a_result_written_anew_in_place_is_found_by_the_next_process(machine: Machine) -> None:
    machine.write("a", 10, value=0.9)
    assert machine.opened() == []
    machine.restart()
    assert machine.opened() == ["a"]
    assert machine.steps("a") == [10, 20, 10]


def test_a_result_written_anew_in_place_is_found_at_once_where_the_system_reports_it(
    machine: Machine,
) -> None:
    path = machine.write("a", 10, value=0.9)
    machine.uploader.notice(path)
    assert machine.opened() == ["a"]
    assert machine.steps("a") == [10, 20, 10]


def test_a_folder_that_has_just_changed_is_looked_at_closely(machine: Machine) -> None:
    machine.write("a", 30)
    now = (machine.results / "a").stat().st_mtime_ns
    assert machine.opened() == ["a"]
    machine.write("a", 40)
    os.utime(machine.results / "a", ns=(now, now))  # two changes within one tick of a file system's clock
    assert machine.opened() == ["a"]
    assert machine.steps("a") == [10, 20, 30, 40]


def test_a_ledger_that_somebody_else_changed_is_opened(machine: Machine, begin: Callable[[], None]) -> None:
    path = machine.uploader.state_file(spec_of("b"))
    value = json.loads(path.read_text())
    path.write_text(json.dumps({**value, "note": "by hand"}))
    begin()
    assert machine.opened() == ["b"]


def test_a_lost_ledger_is_made_anew(machine: Machine, begin: Callable[[], None]) -> None:
    machine.uploader.state_file(spec_of("b")).unlink()
    begin()
    assert machine.opened() == ["b"]
    assert machine.steps("b") == [10, 20]
    assert load(machine.uploader.state_file(spec_of("b"))) is not None


def test_what_was_only_taken_into_the_ledgers_is_delivered_once_there_is_a_tracker(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.restart(tracker=None)
    assert machine.opened() == ["a", "b"]
    assert machine.opened() == []
    machine.restart()
    assert machine.opened() == ["a", "b"]
    assert machine.steps("a") == [10, 20]


def test_what_could_not_be_confirmed_is_looked_up_once_the_server_can_be_read(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.tracker.read_back = False
    machine.restart(confirms=False)
    machine.run_pass()
    assert [outcome.report.unconfirmed for outcome in machine.run_pass()] == [2, 2]
    assert machine.opened() == []
    machine.tracker.read_back = True
    machine.restart()
    assert machine.opened() == ["a", "b"]
    assert machine.steps("a") == [10, 20]


def test_a_model_that_is_not_in_order_is_opened_every_time(machine: Machine) -> None:
    machine.write("a", 30).write_text("{")
    machine.age("a")
    for _ in range(2):
        outcomes = machine.run_pass()
        assert [outcome.was_opened for outcome in outcomes] == [True, False]
        assert "checkpoint-30" in outcomes[0].left[0]


@pytest.mark.parametrize("content", ["", "[]", '{"version": 1}', '{"version": 99, "models": {}}'])
def test_what_was_seen_is_made_anew_where_it_cannot_be_used(machine: Machine, content: str) -> None:
    (StatePaths(machine.state).unchanged).write_text(content)
    machine.restart()
    assert machine.opened() == ["a", "b"]
    machine.restart()
    assert machine.opened() == []


@pytest.mark.parametrize("meanwhile", ["nothing was delivered", "the pass was ended"])
def test_a_result_that_changed_while_it_was_not_to_be_sent_is_sent_offline(
    tmp_path: Path, meanwhile: str
) -> None:
    machine = Machine(tmp_path)
    machine.tracker.read_back = False
    machine.restart(confirms=False)
    machine.run_pass()
    machine.write("a", 10, value=0.9)
    if meanwhile == "nothing was delivered":
        machine.restart(tracker=None)
        machine.run_pass()
    else:
        stop = threading.Event()
        stop.set()
        machine.restart(confirms=False)
        left = machine.uploader.run_pass([spec_of("a"), spec_of("b")], stop)[0].left
        assert left and "not delivered: checkpoint-10" in left[0]
    machine.restart(confirms=False)
    assert machine.opened() == ["a"]
    assert machine.steps("a") == [10, 20, 10]


def test_a_change_of_the_results_folder_itself_is_nobodys(machine: Machine) -> None:
    machine.uploader.notice(machine.results)
    assert machine.opened() == []
