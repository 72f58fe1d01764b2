"""Notifications of changed files: who is told, when, and what is done at once."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Collection
from pathlib import Path

import pytest

from checkpoint_files import safetensors, write_files
from eval_sidecar.errors import CheckpointError
from eval_sidecar.evaluation.loop import Waker
from eval_sidecar.system.file_notifications import watch_folders
from toolbox import wait_until
from watching import World

pytest.importorskip("watchfiles")


class Heard:
    """Keeps what was told."""

    def __init__(self) -> None:
        self.calls: list[set[Path]] = []

    def __call__(self, changed: Collection[Path]) -> None:
        self.calls.append(set(changed))

    def all(self) -> set[Path]:
        return set().union(*self.calls)


# -- folders ---------------------------------------------------------------------------------------------


def test_a_change_below_a_folder_is_told_with_its_path(tmp_path):
    heard = Heard()
    with watch_folders([tmp_path], heard):
        wait_until(lambda: len(heard.calls) >= 2, "the watch to begin")
        (tmp_path / "new").touch()
        wait_until(lambda: tmp_path / "new" in heard.all(), "the change to be told")


def test_a_folder_that_is_made_later_is_watched_from_then_on(tmp_path):
    heard, folder = Heard(), tmp_path / "later"
    with watch_folders([folder], heard):
        wait_until(lambda: heard.calls, "a first call")
        folder.mkdir()
        wait_until(lambda: len(heard.calls) >= 3, "the folder to be found")
        (folder / "new").touch()
        wait_until(lambda: folder / "new" in heard.all(), "the change to be told")


def test_a_folder_that_is_deleted_and_made_anew_is_watched_again(tmp_path):
    heard, folder = Heard(), tmp_path / "model"
    folder.mkdir()
    with watch_folders([folder], heard, is_regular=True):
        wait_until(lambda: len(heard.calls) >= 2, "the watch to begin")
        shutil.rmtree(folder)
        folder.mkdir()

        def is_heard() -> bool:
            (folder / "new").touch()
            (folder / "new").unlink()
            return folder / "new" in heard.all()

        wait_until(is_heard, "a change in the new folder to be told")


def test_what_is_told_regularly_is_told_without_a_change_too(tmp_path):
    heard = Heard()
    with watch_folders([tmp_path], heard, is_regular=True):
        wait_until(lambda: len(heard.calls) >= 4, "calls without a change")
    assert heard.all() == set()


def test_where_nothing_can_be_watched_that_is_said_once_and_calls_go_on(tmp_path, monkeypatch, caplog):
    import watchfiles

    def refuse(*folders: object, **options: object) -> None:
        raise OSError("too many watches")

    monkeypatch.setattr(watchfiles, "watch", refuse)
    heard = Heard()
    with watch_folders([tmp_path], heard, is_regular=True):
        wait_until(lambda: len(heard.calls) >= 3, "calls all the same")
    assert caplog.text.count("no file notifications here (too many watches)") == 1


# -- checkpoints -----------------------------------------------------------------------------------------


class Listening:
    """A waker on a world's pins, whose time the test moves."""

    def __init__(self, world: World) -> None:
        self.wake = threading.Event()
        self.now = 0.0
        self.world = world
        self.request = world.state_file.with_suffix(".retry")
        self._waker = Waker(
            world.sidecar.pins, world.model_dir, self.request, self.wake, monotonic=lambda: self.now
        )

    def hear(self, *paths: Path) -> bool:
        """Tell of these; return whether the loop was woken."""
        self.wake.clear()
        self._waker(paths)
        return self.wake.is_set()


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.fixture
def listening(world) -> Listening:
    return Listening(world)


def test_what_is_heard_of_is_kept_before_any_pass(world, listening):
    folder = world.write(10)
    assert listening.hear(folder / "trainer_state.json")
    shutil.rmtree(folder)
    assert world.tick() == 1


def test_without_a_word_of_any_path_everything_is_looked_at(world, listening):
    world.write(10)
    world.write(20)
    assert listening.hear()
    assert sorted(world.sidecar.pins.held()) == [10, 20]
    assert not listening.hear()


def test_a_file_that_only_grows_wakes_the_loop_a_few_times_a_second_and_not_more(world, listening):
    folder = world.write(10, {"model.safetensors": safetensors(64)[:-8]})
    assert listening.hear(folder / "model.safetensors")
    assert not listening.hear(folder / "model.safetensors")
    listening.now += 0.2
    assert listening.hear(folder / "model.safetensors")


def test_the_last_word_of_a_file_is_not_lost_to_that(world, listening):
    folder = world.write(10)
    listening.hear(folder)
    listening.hear(folder / "model.safetensors")
    listening.now += 1
    assert listening.hear()


@pytest.mark.parametrize("name", ["runs/events.out", "trainer_log.jsonl", ".git/index"])
def test_other_files_of_a_training_wake_nobody(world, listening, name):
    write_files((world.model_dir / name).parent, {Path(name).name: b"x"})
    assert not listening.hear(world.model_dir / name)


def test_our_own_state_wakes_nobody_but_a_request_does(world, listening):
    assert not listening.hear(world.state_file)
    assert listening.hear(listening.request)


def test_a_model_dir_that_cannot_be_listed_is_left_to_the_pass(world, listening, monkeypatch):
    def refuse(steps: object) -> bool:
        raise CheckpointError("cannot be listed")

    monkeypatch.setattr(world.sidecar.pins, "look", refuse)
    assert listening.hear()
