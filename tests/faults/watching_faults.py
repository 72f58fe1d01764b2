"""Faults of watching: kills around the evaluator, and trainers that delete or write as they like."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Callable, Optional

from faults.files import announce, prepare_watching, stage, write_at_once, write_slowly
from faults.registry import kind
from faults.uploads import end_with_sigterm, set_clock_back, slow_down, turn_clock_back
from faults.world import WATCHER_STATE, Started, World

SAVING_MOMENTS = ("time", "request", "stream", "state", "evaluated", "evaluated")
WATCH_MOMENTS = (
    "time",
    "request",
    "stream",
    "state",
    "state",
    "temporary",
    "evaluator",
    "evaluated",
    "evaluated",
)


def _checkpoint(world: World, step: int, pause: float) -> Path:
    folder = world.repository.model_dir / f"checkpoint-{step}"
    write_at_once(folder, stage(world, step, pause))
    return folder


def _checkpoints(world: World, most: int = 4) -> None:
    for step in world.random.sample(range(10, 300, 10), world.random.randint(2, most)):
        _checkpoint(world, step, world.random.uniform(0, 0.6))
        world.complete.add(step)


@kind("kill-watch")
def kill_watch(world: World) -> None:
    """SIGKILL while watching; the evaluator dies too, or lives on and is found again."""
    prepare_watching(world)
    _checkpoints(world)
    slow_down(world)
    for _ in range(world.random.randint(1, 3)):
        world.kill_sometime(world.watch(), WATCH_MOMENTS)


@kind("sigterm-watch")
def sigterm_watch(world: World) -> None:
    """SIGTERM while watching: evaluations end with it, and are done again later."""
    prepare_watching(world)
    _checkpoints(world)
    started = world.watch()
    world.random_moment(started, WATCH_MOMENTS)
    end_with_sigterm(world, started)


@kind("watch-clock-set-back")
def watch_clock_set_back(world: World) -> None:
    """The clock is set back between two starts, and the state is lost with it, or not; or it is set back
    before checkpoints that nothing but time can show to be whole.
    """
    set_clock_back(world)
    prepare_watching(world)
    if world.random.random() < 0.5:
        _quiet_checkpoints(world)
        return
    _checkpoints(world, most=3)
    world.kill_sometime(world.watch(), WATCH_MOMENTS)
    if world.random.random() < 0.3:
        world.kill_rest()
        shutil.rmtree(world.root / WATCHER_STATE, ignore_errors=True)
        world.tell("state deleted")
    turn_clock_back(world)


def _quiet_checkpoints(world: World) -> None:
    """Checkpoints that hold weights alone, found under a clock that is behind their files' times."""
    turn_clock_back(world)
    started = _watching(world)
    for step in (10, 20):
        files = stage(world, step, 0.1)
        del files["trainer_state.json"], files["optimizer.pt"]
        write_at_once(world.repository.model_dir / f"checkpoint-{step}", files)
        world.complete.add(step)
        time.sleep(world.random.uniform(0, 1))
    world.wait_for(lambda: len(world.results()) == len(world.complete), started, 30)
    end_with_sigterm(world, started)


@kind("checkpoint-deleted")
def checkpoint_deleted(world: World) -> None:
    """The trainer rotates checkpoints away, at any moment before, during and after their evaluation."""
    prepare_watching(world)
    started = _watching(world)
    step = 0
    for _ in range(world.random.randint(3, 5)):
        step += 10 * world.random.randint(1, 3)
        pause = world.random.uniform(0.1, 1.0)
        folder = _checkpoint(world, step, pause)
        if world.random.random() < 0.3:
            world.fleeting.add(step)
            time.sleep(world.random.uniform(0, 0.6))
        else:
            world.complete.add(step)
            name = folder.name
            world.wait_for(lambda name=name: name in world.repository.calls, started)  # type: ignore[misc]
            time.sleep(world.random.uniform(0, pause))
        shutil.rmtree(folder)
        world.tell(f"{folder.name} deleted")
    if world.random.random() < 0.5:
        _end(world, started)
    else:
        world.kill(started, everything=world.random.random() < 0.5)


@kind("rotation")
def rotation(world: World) -> None:
    """As `save_total_limit=1`: the one before is deleted while it is evaluated, or before its turn comes."""
    prepare_watching(world)
    started = _watching(world)
    before = None
    for step in range(10, 10 * world.random.randint(4, 6), 10):
        folder = _checkpoint(world, step, world.random.uniform(2.0, 3.5))
        world.complete.add(step)
        time.sleep(world.random.uniform(1.5, 2.0))
        if before is not None:
            shutil.rmtree(before)
        before = folder
    _end(world, started)


@kind("slow-writer")
def slow_writer(world: World) -> None:
    """A trainer that pauses, cuts files, renames them and writes shards in any order."""
    prepare_watching(world)
    started = _watching(world)
    for step in world.random.sample(range(10, 300, 10), world.random.randint(2, 3)):
        folder = world.repository.model_dir / f"checkpoint-{step}"
        write_slowly(world, folder, stage(world, step, world.random.uniform(0, 0.4)))
        world.complete.add(step)
        world.tell(f"checkpoint-{step} is whole")
    _end(world, started)


@kind("step-saved-again")
def step_saved_again(world: World) -> None:
    """A step is saved again, with other weights or the same, while it waits, while it is evaluated, between
    evaluation and delivery, or after it was confirmed; the watcher is killed meanwhile, or not.
    """
    prepare_watching(world, by_weights=True)
    steps = world.random.sample(range(10, 300, 10), world.random.randint(1, 3))
    saved = {step: _save(world, step, None) for step in steps}
    for _ in range(world.random.randint(1, 3)):
        started = world.watch(world.random.choice(("once", "run")))
        for _ in range(world.random.randint(1, 2)):
            step = world.random.choice(steps)
            if world.random.random() < 0.5:
                calls = world.repository.calls.count(f"checkpoint-{step}")
                world.wait_for(
                    lambda: world.repository.calls.count(f"checkpoint-{step}") > calls,  # noqa: B023
                    started,
                    8,
                )
                world.tell(f"moment: during the evaluation of checkpoint-{step}")
            else:
                world.random_moment(started, SAVING_MOMENTS)
            saved[step] = _save(world, step, saved[step])
        if world.random.random() < 0.4:
            world.kill(started, everything=world.random.random() < 0.65)
        elif started.words[0] == "run":
            _end(world, started)
        else:
            world.wait(started)


def _save(world: World, step: int, before: Optional[dict[str, bytes]]) -> dict[str, bytes]:
    """Save a step, over the folder of before or in its place; now and then the weights are the same."""
    chance = world.random
    files = stage(world, step, chance.uniform(0, 1.5))
    folder = world.repository.model_dir / f"checkpoint-{step}"
    single = "model.safetensors"
    if before is not None and chance.random() < 0.2:
        files = {**before, "optimizer.pt": files["optimizer.pt"]}
    announce(world, step, files)
    if before is not None and single in files and single in before and chance.random() < 0.4:
        # As newer trainers write over a folder that is there: each file beside, and renamed.
        how = "over the one before"
        for name, content in files.items():
            (folder / f"{name}.tmp").write_bytes(content)
            (folder / f"{name}.tmp").replace(folder / name)
    else:
        how = "anew"
        shutil.rmtree(folder, ignore_errors=True)
        (write_at_once if chance.random() < 0.6 else _write_slowly_to(world))(folder, files)
    world.complete.add(step)
    world.tell(f"checkpoint-{step} saved {how}: {world.values[step]}")
    return files


def _write_slowly_to(world: World) -> Callable[[Path, dict[str, bytes]], None]:
    return lambda folder, files: write_slowly(world, folder, files)


def _watching(world: World) -> Started:
    started = world.watch("run")
    world.wait_for(lambda: "watching" in started.command.output, started)
    return started


def _end(world: World, started: Started) -> None:
    world.wait_for(lambda: False, started, world.random.uniform(0, 2))
    end_with_sigterm(world, started)
