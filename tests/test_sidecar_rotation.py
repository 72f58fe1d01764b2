"""A trainer that writes slowly, deletes early and writes anew: nothing is lost and nothing half-read."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from checkpoint_files import safetensors, trainer_files, trainer_state
from eval_sidecar.checkpoints.space import Room
from watching import METRICS, READY_SECONDS, World


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.fixture
def without_links(monkeypatch) -> None:
    def refuse(source, target, **options):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)


class Disk:
    """Free space that the test decides: too little while more than so many pins are there."""

    def __init__(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pins_that_fit = 1000
        self.world = world
        monkeypatch.setattr(Room, "lack", self.lack)

    def lack(self, floor: object, largest: object) -> str:
        return "too little" if len(self.world.sidecar.pins.held()) > self.pins_that_fit else ""


# -- rotation --------------------------------------------------------------------------------------------


def test_checkpoints_that_rotation_deletes_while_they_wait_are_all_evaluated(world):
    for step in (10, 20, 30, 40):
        world.write(step)
        if world.checkpoint(step - 10).exists():
            shutil.rmtree(world.checkpoint(step - 10))
        world.tick()
    for step in (10, 20, 30, 40):
        world.finish(step)
        world.tick()
    assert [entry.step for entry in world.store.ledger.steps() if entry.result] == [10, 20, 30, 40]


def test_one_that_is_deleted_while_it_is_evaluated_keeps_its_result(world):
    world.write(495)
    world.tick()
    shutil.rmtree(world.checkpoint(495))
    world.tick()
    world.finish(495)
    world.tick()
    assert dict(world.entry(495).result.metrics) == METRICS


def test_one_that_is_deleted_under_its_evaluation_keeps_its_result_without_a_pin_too(world, without_links):
    world.write(495)
    world.tick()
    shutil.rmtree(world.checkpoint(495))
    world.finish(495)
    world.tick()
    assert dict(world.entry(495).result.metrics) == METRICS


def test_one_that_is_deleted_before_it_was_ready_is_gone_with_the_evidence_so_far(world, caplog):
    world.write(495, {"config.json": b"{}"})
    world.tick()
    shutil.rmtree(world.checkpoint(495))
    world.tick()
    entry = world.entry(495)
    assert entry.verdict == "gone"
    assert entry.evidence == ("a config is there, but no weights are", "the folder has been deleted")
    assert not entry.is_pending
    assert "checkpoint-495: was deleted before it could be evaluated" in caplog.text


def test_one_that_is_gone_is_reported_once_however_often_it_is_looked_for(world, caplog):
    world.write(495, {"config.json": b"{}"})
    world.tick()
    shutil.rmtree(world.checkpoint(495))
    for _ in range(3):
        world.tick()
    assert caplog.text.count("was deleted before it could be evaluated") == 1


def test_one_that_was_gone_and_comes_back_is_evaluated(world):
    world.write(495, {"config.json": b"{}"})
    world.tick()
    shutil.rmtree(world.checkpoint(495))
    world.tick()
    world.write(495)
    assert world.tick() == 1


def test_one_that_has_its_result_is_not_gone_when_it_is_deleted(world):
    world.write(495)
    world.evaluate(495)
    shutil.rmtree(world.checkpoint(495))
    world.tick()
    assert world.entry(495).verdict == "complete"


def test_one_that_is_deleted_half_way_through_pinning_is_gone_and_no_error(world, monkeypatch):
    link = os.link

    def link_and_lose_the_rest(source, target, **options):
        link(source, target, **options)
        shutil.rmtree(world.checkpoint(495), ignore_errors=True)

    monkeypatch.setattr(os, "link", link_and_lose_the_rest)
    world.write(495)
    assert world.tick() == 0
    assert world.pins() == []


def test_a_failed_one_can_be_tried_again_although_the_trainer_deleted_it(world):
    world.write(495)
    world.tick()
    shutil.rmtree(world.checkpoint(495))
    for _ in range(2):
        world.fail(495)
        world.tick()
    world.sidecar.clear_failures(None)
    assert world.tick() == 1


# -- written anew ----------------------------------------------------------------------------------------


def test_the_result_of_one_that_was_rewritten_meanwhile_is_kept_aside_and_it_is_evaluated_again(world):
    world.write(495)
    world.tick()
    world.now += 10
    world.write(495, {"model.safetensors": safetensors(64, 8)})
    world.finish(495)
    assert world.tick() == 1
    assert world.entry(495).result is None
    assert "rewritten" in world.entry(495).failure.error
    assert world.metrics_file(495).with_name("metrics.json.failed").exists()
    world.finish(495, {"HR@10": 0.5})
    world.tick()
    assert dict(world.entry(495).result.metrics) == {"HR@10": 0.5}


def test_one_that_is_written_anew_while_it_waits_is_evaluated_as_it_is_now(world):
    world.write(10)
    world.write(20)
    world.tick()
    new = safetensors(64, 8)
    world.write(20, {"incoming": new})
    (world.checkpoint(20) / "incoming").replace(world.checkpoint(20) / "model.safetensors")
    world.finish(10)
    world.tick()
    assert (world.pins_folder / "checkpoint-20" / "model.safetensors").read_bytes() == new
    assert world.launcher.running() == [20]


# -- slow writers ----------------------------------------------------------------------------------------


def write_slowly(world: World, step: int, *, pause_within: set[str]) -> None:
    """Write a checkpoint as Trainer does, half a file at a time, with a pass after every pause."""
    done: dict[str, bytes] = {}
    for name, content in trainer_files(step).items():
        for piece in (content[: len(content) // 2], content):
            assert world.launcher.running() == [], f"started before {name} was written"
            world.write(step, {**done, name: piece})
            done[name] = piece
            if name in pause_within or piece != content:
                world.tick(after=READY_SECONDS * 3)


def test_a_slow_first_checkpoint_is_not_evaluated_before_its_last_byte(world):
    # Between the tokenizer's last file and Trainer's own first one it has all that an evaluation reads.
    write_slowly(world, 495, pause_within=set(trainer_files(495)) - {"tokenizer.json"})
    assert world.launcher.running() == [495]
    assert world.entry(495).verdict == "complete"


def test_a_slow_later_checkpoint_is_not_evaluated_before_its_last_byte(world):
    world.write(10)
    world.evaluate(10)
    write_slowly(world, 495, pause_within=set(trainer_files(495)))
    assert world.launcher.running() == [495]
    assert world.entry(495).verdict == "complete"


def test_a_half_written_checkpoint_that_its_trainer_left_is_abandoned_and_never_started(world):
    files = trainer_files(495)
    del files["trainer_state.json"]
    world.write(495, files)
    world.tick(after=READY_SECONDS * 10)
    assert world.entry(495).verdict == "partial"
    world.tick(after=7 * 3600)
    assert world.entry(495).verdict == "abandoned"
    assert not world.entry(495).is_pending
    assert world.launcher.jobs == []


def test_an_abandoned_checkpoint_that_is_finished_after_all_is_evaluated(world):
    files = trainer_files(495)
    del files["trainer_state.json"]
    world.write(495, files)
    world.tick(after=7 * 3600)
    world.write(495, {"trainer_state.json": trainer_state(495)})
    assert world.tick() == 1


# -- no links, no space ----------------------------------------------------------------------------------


def test_without_hard_links_the_original_is_evaluated_and_the_log_says_so_once(world, without_links, caplog):
    world.launcher.slots = 2
    world.write(10)
    world.write(20)
    world.tick()
    assert [job.env["CKPT_LIST"] for job in world.launcher.jobs] == [
        str(world.checkpoint(10)),
        str(world.checkpoint(20)),
    ]
    assert caplog.text.count("no hard links can be made here") == 1
    assert world.entry(10).evidence[-1] == "not pinned: no hard links here"


def test_under_the_floor_of_free_space_nothing_is_pinned_and_the_evidence_says_so(world, monkeypatch):
    disk = Disk(world, monkeypatch)
    disk.pins_that_fit = -1
    world.write(495)
    assert world.tick() == 1
    assert world.pins() == []
    assert world.launcher.jobs[0].env["CKPT_LIST"] == str(world.checkpoint(495))
    assert world.entry(495).evidence[-1] == "not pinned: too little free space"


def test_pins_of_waiting_checkpoints_are_given_up_oldest_first_and_only_as_many_as_needed(world, monkeypatch):
    disk = Disk(world, monkeypatch)
    for step in (10, 20, 30, 40):
        world.write(step)
    world.tick()
    for step in (10, 20, 30, 40):
        shutil.rmtree(world.checkpoint(step))
    disk.pins_that_fit = 2
    world.tick()
    assert world.pins() == [10, 40], "10 is being evaluated"
    assert world.entry(20).evidence[-1] == "pin given up: too little"


def test_one_whose_pin_was_given_up_is_evaluated_where_it_is(world, monkeypatch):
    disk = Disk(world, monkeypatch)
    for step in (10, 20):
        world.write(step)
    world.tick()
    disk.pins_that_fit = 0
    world.finish(10)
    world.tick()
    assert world.launcher.newest(20).env["CKPT_LIST"] == str(world.checkpoint(20))


def test_one_whose_original_is_deleted_is_gone_with_its_pin_and_its_verdict_says_why(world, monkeypatch):
    disk = Disk(world, monkeypatch)
    for step in (10, 20):
        world.write(step)
    world.tick()
    shutil.rmtree(world.checkpoint(20))
    disk.pins_that_fit = 0
    world.tick()
    assert world.entry(20).verdict == "gone"
    assert world.entry(20).evidence[-1] == "pin given up: too little"
    world.finish(10)
    assert world.tick() == 0


def test_a_pin_that_the_ledger_has_forgotten_is_given_up_like_any_other(world, monkeypatch):
    disk = Disk(world, monkeypatch)
    for step in (10, 20):
        world.write(step)
    world.tick()
    for step in (10, 20):
        shutil.rmtree(world.checkpoint(step))
    world.state_file.unlink()
    world.launcher.slots = 0
    world.restart()
    disk.pins_that_fit = 1
    world.tick()
    assert world.pins() == [20]


def test_a_file_that_the_evaluation_leaves_in_the_checkpoint_does_not_spoil_its_result(world):
    world.write(495)
    world.tick()
    (Path(world.entry(495).running.path) / "predictions.json").write_text("[]")
    world.finish(495)
    world.tick()
    assert world.entry(495).result is not None


def test_a_pin_that_the_trainer_truncates_in_place_is_not_evaluated(world):
    world.write(495)
    world.write(990)
    world.tick()
    assert world.pins() == [495, 990]
    with (world.checkpoint(990) / "model.safetensors").open("r+b") as file:
        file.truncate(3)
    world.finish(495)
    assert world.tick() == 0
    assert world.entry(990).verdict == "partial"


def test_numbers_of_an_evaluation_that_was_stopped_are_not_taken(world):
    world.write(495)
    world.tick()
    world.report(495, {"HR@10": 0.001})
    world.sidecar.leave()
    assert world.tick() == 1
    assert world.entry(495).result is None
    assert world.metrics_file(495).with_name("metrics.json.interrupted").exists()
