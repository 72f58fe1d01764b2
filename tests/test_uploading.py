"""The models of a manifest, uploaded in parallel: what is new or changed, each point once."""

from __future__ import annotations

import json
import os
import shutil
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from eval_sidecar.delivery.source import choose_models
from eval_sidecar.delivery.uploading import ModelUpload, Uploader
from eval_sidecar.errors import TrackerError, UsageError
from eval_sidecar.ledger.store import load, open_store
from eval_sidecar.paths import StatePaths
from eval_sidecar.types import ModelSpec, digest
from fakes import FakeTracker


def spec_of(name: str) -> ModelSpec:
    return ModelSpec(name, "d", "none", "test", 42, 50, -1, "p", None, f"eval-{name}", f"{name}-eval")


class Machine:
    """Results on disk, ledgers beside them, and a tracker."""

    def __init__(self, folder: Path) -> None:
        self.results = folder / "results"
        self.results.mkdir()
        self.state = folder / "state"
        self.tracker = FakeTracker()

    def write(self, model: str, step: int, text: str = "") -> Path:
        path = self.results / model / f"checkpoint-{step}" / "metrics.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text or json.dumps({"HR@10": step / 1000, "NDCG@10": step / 2000}))
        return path

    def uploader(self) -> Uploader:
        return Uploader(self.results, self.state, self.tracker, confirms=True, settle_seconds=0.0, workers=4)

    def upload(self, *models: str, **changes: object) -> list[ModelUpload]:
        specs = [replace(spec_of(model), **changes) for model in models]
        return self.uploader().run_pass(specs, threading.Event())

    def steps(self, model: str) -> list[int]:
        return self.tracker.run(f"eval-{model}").steps


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_every_model_gets_its_points(machine: Machine) -> None:
    for model in ("a", "b", "c"):
        for step in (10, 20):
            machine.write(model, step)
    outcomes = machine.upload("a", "b", "c")
    assert [(outcome.report.sent, outcome.left) for outcome in outcomes] == [(2, ())] * 3
    assert [machine.steps(model) for model in "abc"] == [[10, 20]] * 3


def test_only_what_is_new_is_sent_the_next_time(machine: Machine) -> None:
    machine.write("a", 10)
    machine.upload("a")
    machine.write("a", 20)
    assert machine.upload("a")[0].report.sent == 1
    assert machine.upload("a")[0].report.sent == 0
    assert machine.steps("a") == [10, 20]


def test_a_lost_state_folder_sends_nothing_again(machine: Machine) -> None:
    machine.write("a", 10)
    machine.upload("a")
    machine.state = machine.state.with_name("fresh")
    assert machine.upload("a")[0].report.already == 1
    assert machine.steps("a") == [10]


def test_one_models_failure_does_not_stop_the_others(machine: Machine) -> None:
    machine.write("a", 10)
    machine.write("b", 10)
    machine.tracker.read_faults.append(TrackerError("the run was deleted", permanent=True))
    outcomes = machine.upload("a", "b")
    assert sorted(len(outcome.left) for outcome in outcomes) == [0, 1]
    failed = next(outcome for outcome in outcomes if outcome.left)
    assert "the run was deleted" in failed.left[0]


@pytest.mark.parametrize("text", [" ", "[1]", '{"HR@10": NaN}', '{"a": "b"}', '{"HR@10": 0.'])
def test_a_broken_result_is_named_and_the_others_of_its_model_arrive(machine: Machine, text: str) -> None:
    machine.write("a", 10)
    broken = machine.write("a", 20, text)
    outcome = machine.upload("a")[0]
    assert machine.steps("a") == [10]
    assert len(outcome.left) == 1 and str(broken) in outcome.left[0]
    machine.write("a", 20)
    assert machine.upload("a")[0].left == ()
    assert machine.steps("a") == [10, 20]


def test_a_result_that_breaks_after_delivery_is_named_and_what_was_known_is_kept(machine: Machine) -> None:
    machine.write("a", 10)
    machine.upload("a")
    machine.write("a", 10, "{")
    outcome = machine.upload("a")[0]
    assert len(outcome.left) == 1
    ledger = load(StatePaths(machine.state).ledger("a", "eval-a"))
    assert ledger is not None and ledger.entry(10).result is not None
    assert machine.steps("a") == [10]


def test_a_broken_result_that_was_removed_is_forgotten(machine: Machine) -> None:
    machine.write("a", 10)
    broken = machine.write("a", 20, "{")
    assert machine.upload("a")[0].left
    shutil.rmtree(broken.parent)
    assert machine.upload("a")[0].left == ()
    ledger = load(StatePaths(machine.state).ledger("a", "eval-a"))
    assert ledger is not None and list(ledger.entries) == [10]


def test_a_result_that_breaks_and_is_removed_keeps_what_was_known(machine: Machine) -> None:
    path = machine.write("a", 10)
    machine.upload("a")
    machine.write("a", 10, "{")
    assert machine.upload("a")[0].left
    path.unlink()
    assert machine.upload("a")[0].left == ()
    assert machine.steps("a") == [10]


def test_what_was_taken_are_results_that_are_news(machine: Machine) -> None:
    path = machine.write("a", 10)
    machine.tracker.read_faults.append(TrackerError("away"))
    assert machine.upload("a")[0].taken == 1
    os.utime(path)
    assert machine.upload("a")[0].taken == 0


def test_a_change_that_a_failed_pass_could_not_take_is_taken_by_the_next(machine: Machine) -> None:
    path = machine.write("a", 10)
    uploader, stop = machine.uploader(), threading.Event()
    for _ in range(2):
        uploader.run_pass([spec_of("a")], stop)
    path.write_text(json.dumps({"HR@10": 0.75}))  # in its place: no folder changes
    uploader.notice(path)
    with open_store(uploader.state_file(spec_of("a")), "a", "eval-a", "a-eval"):
        assert uploader.run_pass([spec_of("a")], stop)[0].left
    assert uploader.run_pass([spec_of("a")], stop)[0].report.sent == 1


def test_a_change_that_keeps_size_and_time_is_a_revision(machine: Machine) -> None:
    path = machine.write("a", 10)
    machine.upload("a")
    before = path.stat()
    path.write_text(path.read_text().replace("0.01", "0.09"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert machine.upload("a")[0].report.sent == 1


def test_a_changed_result_is_a_revision(machine: Machine) -> None:
    machine.write("a", 10)
    machine.upload("a")
    machine.write("a", 10, '{"HR@10": 0.75}')
    machine.upload("a")
    rows = [row for _, row in machine.tracker.run("eval-a").lines if row]
    assert [(row.revision, row.metrics["HR@10"]) for row in rows] == [(0, 0.01), (1, 0.75)]


def test_a_checkpoint_folder_without_metrics_is_not_done_yet(machine: Machine) -> None:
    (machine.results / "a" / "checkpoint-10").mkdir(parents=True)
    outcome = machine.upload("a")[0]
    assert (outcome.report.sent, outcome.left) == (0, ())


def test_without_a_tracker_results_are_only_taken(machine: Machine) -> None:
    machine.write("a", 10)
    uploader = replace(machine.uploader(), tracker=None, confirms=False)
    assert uploader.run_pass([spec_of("a")], threading.Event())[0].left == ()
    assert machine.upload("a")[0].report.sent == 1


def test_a_known_number_of_epochs_places_every_checkpoint(machine: Machine) -> None:
    for step in (100, 200, 400):
        machine.write("a", step)
    machine.upload("a", num_train_epochs=2.0)
    table = machine.tracker.run("eval-a").table
    assert [(point.checkpoint_index, point.epoch_progress) for point in table] == [
        (1, 0.5),
        (2, 1.0),
        (3, 2.0),
    ]


def test_a_version_one_state_is_carried_on(machine: Machine) -> None:
    path = StatePaths(machine.state).ledger("a", "eval-a")
    path.parent.mkdir()
    rows = [{"checkpoint_step": 10, "checkpoint_name": "checkpoint-10", "HR@10": 0.01, "metrics_path": "x"}]
    version_1 = {
        "run_id": "eval-a",
        "run_name": "a-eval",
        "processed_steps": [10],
        "failed_steps": {},
        "table_rows": rows,
        "last_seen_step": 10,
    }
    path.write_text(json.dumps(version_1))
    machine.write("a", 10)  # holds more metrics than the old row
    machine.write("a", 20)
    assert machine.upload("a")[0].report.sent == 1
    assert machine.steps("a") == [20]


def test_a_model_whose_state_another_process_holds_is_named(machine: Machine) -> None:
    machine.write("a", 10)
    with machine.uploader()._open(spec_of("a")):
        outcome = machine.upload("a")[0]
    assert "another process" in outcome.left[0]
    assert machine.steps("a") == []


def test_verify_finds_what_is_missing_unknown_different_and_doubled(machine: Machine) -> None:
    for step in (10, 20, 30, 40):
        machine.write("a", step)
    machine.upload("a")
    lines = machine.tracker.run("eval-a").lines
    lines[1] = (20, replace(lines[1][1], metrics={"HR@10": 0.5}))
    lines.append((50, replace(lines[3][1], step=50, index=50)))
    lines.append((51, replace(lines[3][1], index=51)))
    del lines[2]
    found = machine.uploader().verify(spec_of("a"))
    assert found.confirmed == (10, 40)
    assert (found.missing, found.unknown, found.different, found.doubled) == ((30,), (50,), (20,), (40,))
    assert not found.agrees


def test_repair_sends_what_is_missing_and_what_differs(machine: Machine) -> None:
    for step in (10, 20, 30):
        machine.write("a", step)
    machine.upload("a")
    lines = machine.tracker.run("eval-a").lines
    lines[1] = (20, replace(lines[1][1], metrics={"HR@10": 0.5}))
    del lines[0]
    machine.uploader().repair([spec_of("a")], threading.Event())
    assert machine.uploader().verify(spec_of("a")).agrees
    assert sorted(machine.steps("a")) == [10, 20, 20, 30]


def test_a_filter_takes_names_one_by_one_or_with_commas() -> None:
    models = [spec_of(name) for name in ("a", "b", "c")]
    assert [spec.model_dir for spec in choose_models(models, ["c,a"])] == ["a", "c"]
    assert [spec.model_dir for spec in choose_models(models, ["c", "b"])] == ["b", "c"]
    assert choose_models(models, []) == models


def test_a_filter_that_matches_nothing_names_what_is_close() -> None:
    models = [spec_of("Instruments-sft-4-256"), spec_of("Games-sft-4-256")]
    with pytest.raises(UsageError, match="Instruments-sft-4-256"):
        choose_models(models, ["Instrument-sft-4-265"])


def test_the_same_numbers_have_the_same_digest_in_any_order() -> None:
    assert digest({"a": 1.0, "b": 2.0}) == digest({"b": 2.0, "a": 1.0})


def test_a_file_that_cannot_be_looked_at_stops_neither_its_model_nor_the_others(machine: Machine) -> None:
    machine.write("a", 10)
    looped = machine.write("a", 20)
    looped.unlink()
    looped.symlink_to(looped)
    machine.write("b", 10)
    first, second = machine.upload("a", "b")
    assert "cannot be read (Too many levels" in first.left[0]
    assert (machine.steps("a"), machine.steps("b"), second.left) == ([10], [10], ())


def test_whatever_goes_wrong_with_one_model_the_others_go_on(machine: Machine) -> None:
    machine.write("a", 10)
    machine.write("b", 10)
    machine.tracker.read_faults.append(RuntimeError("unheard of"))
    outcomes = machine.upload("a", "b")
    assert sorted(len(outcome.left) for outcome in outcomes) == [0, 1]


def test_an_empty_filter_is_refused_rather_than_taken_for_all() -> None:
    with pytest.raises(UsageError, match="empty"):
        choose_models([spec_of("a")], [""])


def test_a_server_that_does_not_answer_one_model_is_not_asked_by_the_others_of_a_pass(
    machine: Machine,
) -> None:
    for model in ("a", "b", "c"):
        machine.write(model, 10)
    uploader = replace(machine.uploader(), workers=1)
    machine.tracker.read_faults.append(TrackerError("no answer from http://h", unreachable=True))
    specs = [spec_of(model) for model in ("a", "b", "c")]
    done = uploader.run_pass(specs, threading.Event())
    assert [one.report.problem for one in done] == ["no answer from http://h"] * 3
    assert len(machine.tracker.reads) == 1
    again = uploader.run_pass(specs, threading.Event())
    assert [one.report.confirmed for one in again] == [1, 1, 1]


def test_where_a_models_points_are_is_known_without_opening_its_ledger(machine: Machine) -> None:
    machine.write("a", 10)
    uploader = machine.uploader()
    first, again = (uploader.run_pass([spec_of("a")], threading.Event())[0] for _ in range(2))
    where = first.report.where
    assert not again.was_opened and again.report.where == where is not None
