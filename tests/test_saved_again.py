"""A step that is saved again: its numbers are those of the weights that are there, at any moment."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Optional

import pytest

from checkpoint_files import safetensors, torch_zip, trainer_files
from eval_sidecar.checkpoints.identity import read_identity
from eval_sidecar.evaluation import origins
from eval_sidecar.ledger.ledger import Delivery
from eval_sidecar.ledger.provenance import read_provenance
from eval_sidecar.ledger.settings import Settings
from eval_sidecar.types import DeliveryStatus
from watching import METRICS, MODEL, RUN, World

PENDING, _, CONFIRMED = DeliveryStatus

OLD, NEW = {"HR@10": 0.1}, {"HR@10": 0.9}


def weights(number: int) -> bytes:
    """Weights of one shape, other ones for each number."""
    content = safetensors(48, 16)
    return content[:-64] + bytes([number]) * 64


def save(world: World, step: int, number: int, **more: bytes) -> None:
    """Save a step as a trainer does that found a folder of that name: it is deleted first."""
    shutil.rmtree(world.checkpoint(step), ignore_errors=True)
    world.write(step, {**trainer_files(step), "model.safetensors": weights(number), **more})


def confirm(world: World, step: int, revision: int = 0) -> None:
    done = Delivery(CONFIRMED, revision, world.entry(step).result.digest, index=step)
    world.store.update(lambda ledger: ledger.with_entry(step, delivery=done))


def numbers(world: World, step: int) -> Optional[dict[str, float]]:
    result = world.entry(step).result
    return None if result is None else dict(result.metrics)


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.fixture
def done(world) -> World:
    """A world in which a step was evaluated and delivered."""
    save(world, 100, 1)
    world.evaluate(100, OLD)
    confirm(world, 100)
    world.tick()
    return world


# -- after it was evaluated --------------------------------------------------------------------------------


def test_other_weights_under_a_step_are_evaluated_again_as_the_next_revision(done, caplog):
    save(done, 100, 2)
    assert done.tick() == 1
    done.finish(100, NEW)
    done.tick()
    assert numbers(done, 100) == NEW
    assert done.entry(100).due().revision == 1
    lines = [line for line in caplog.messages if "other weights" in line]
    assert len(lines) == 1
    assert "checkpoint-100: saved again at" in lines[0]
    assert lines[0].endswith("will evaluate it again as revision 1")


@pytest.mark.parametrize("name", ["model.safetensors", "adapter_model.safetensors", "pytorch_model.bin"])
def test_weights_that_are_written_over_in_place_are_noticed(world, name):
    files = {**trainer_files(100), name: torch_zip(8) if name.endswith("bin") else weights(1)}
    if name != "model.safetensors":
        del files["model.safetensors"]
    world.write(100, files)
    world.evaluate(100, OLD)
    world.tick()
    path = world.checkpoint(100) / name
    before = path.stat()
    path.write_bytes(path.read_bytes()[:-30] + b"x" * 30 if name.endswith("rs") else torch_zip(9))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert world.tick(after=60.0) == 1


def test_one_shard_that_is_written_anew_is_noticed(world):
    names = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    index = b'{"weight_map": {"a": "%s", "b": "%s"}}' % tuple(name.encode() for name in names)
    files = {**trainer_files(100), **dict.fromkeys(names, weights(1)), "model.safetensors.index.json": index}
    del files["model.safetensors"]
    world.write(100, files)
    world.evaluate(100, OLD)
    world.write(100, {names[1]: weights(2)})
    assert world.tick() == 1


def test_the_same_weights_saved_again_change_nothing(done, caplog):
    save(done, 100, 1, **{"optimizer.pt": torch_zip(99), "rng_state.pth": torch_zip(98)})
    assert done.tick(after=60.0) == 0
    assert numbers(done, 100) == OLD and done.entry(100).processed
    assert "other weights" not in caplog.text


def test_touching_and_changing_modes_change_nothing(done):
    for path in done.checkpoint(100).iterdir():
        os.utime(path)
        path.chmod(0o600)
    done.checkpoint(100).chmod(0o700)
    assert done.tick(after=60.0) == 0
    assert done.entry(100).processed


def test_half_written_weights_say_nothing_before_they_are_whole(done):
    shutil.rmtree(done.checkpoint(100))
    files = {**trainer_files(100), "model.safetensors": weights(2)[:-9]}
    done.write(100, files)
    assert done.tick() == 0
    assert done.entry(100).processed and numbers(done, 100) == OLD
    done.write(100, {"model.safetensors": weights(2)})
    assert done.tick() == 1


def test_a_step_that_is_rotated_away_keeps_its_result(done):
    for path in sorted(done.checkpoint(100).iterdir()):
        path.unlink()
        done.tick()
    done.checkpoint(100).rmdir()
    done.tick()
    assert done.entry(100).processed and numbers(done, 100) == OLD


def test_a_step_that_was_rotated_away_and_is_saved_again_is_evaluated(done):
    shutil.rmtree(done.checkpoint(100))
    done.tick()
    save(done, 100, 2)
    assert done.tick() == 1


def test_each_saving_is_a_revision_of_its_own(done):
    for revision, number in enumerate((2, 3), 1):
        save(done, 100, number)
        done.tick()
        done.finish(100, {"HR@10": number / 10})
        done.tick()
        assert done.entry(100).due().revision == revision
        confirm(done, 100, revision)


def test_other_weights_with_the_same_numbers_are_no_revision(done):
    save(done, 100, 2)
    done.tick()
    done.finish(100, OLD)
    done.tick()
    assert done.entry(100).due() is None
    assert read_provenance(done.metrics_file(100)).origin.identity == done.entry(100).content.identity


def test_weights_that_come_back_have_their_numbers_back(done):
    save(done, 100, 2)
    done.tick(budget=0)
    assert not done.entry(100).processed
    save(done, 100, 1)
    assert done.tick() == 0
    assert done.entry(100).processed


# -- while the old numbers are all that there are ------------------------------------------------------------


@pytest.fixture
def stale(done) -> World:
    """A world in which new weights wait, and the numbers of the old ones lie in results."""
    save(done, 100, 2)
    done.tick(budget=0)
    return done


@pytest.mark.parametrize("loses_state", [False, True])
def test_the_old_numbers_in_results_are_not_taken_for_those_of_the_new_weights(stale, loses_state):
    if loses_state:
        stale.state_file.unlink()
    stale.restart()
    assert stale.tick() == 1
    stale.finish(100, NEW)
    stale.tick()
    assert numbers(stale, 100) == NEW


def test_the_old_numbers_survive_a_restart_as_those_of_the_old_weights(stale):
    stale.launcher.slots = 0
    stale.restart()
    stale.tick()
    entry = stale.entry(100)
    assert numbers(stale, 100) == OLD and entry.is_superseded and entry.is_pending
    assert [point.step for point in stale.store.ledger.points()] == [100], "the run goes on showing them"


def test_old_numbers_that_are_touched_stay_old(stale):
    os.utime(stale.metrics_file(100))
    assert stale.tick(after=700.0) == 1


def test_so_do_old_numbers_of_which_nothing_is_written_down(stale):
    stale.metrics_file(100).with_name("provenance.json").unlink()
    os.utime(stale.metrics_file(100))
    assert stale.tick(after=700.0) == 1


def test_a_failure_of_the_new_weights_is_said_and_the_old_numbers_stay_the_old_ones(stale):
    for _ in range(2):
        stale.tick()
        stale.fail(100)
    stale.tick()
    entry = stale.entry(100)
    assert entry.has_failed and entry.is_superseded and not entry.processed


def test_numbers_that_are_written_by_hand_meanwhile_are_taken(stale):
    stale.report(100, {"HR@10": 0.77})
    stale.tick(after=700.0)
    assert numbers(stale, 100) == {"HR@10": 0.77}
    assert stale.entry(100).processed


def test_numbers_that_were_never_sent_are_not_sent_for_weights_that_are_gone(world):
    save(world, 100, 1)
    world.evaluate(100, OLD)
    assert world.store.ledger.due()
    save(world, 100, 2)
    world.tick(budget=0)
    assert world.store.ledger.due() == [] and world.store.ledger.points() == ()
    world.tick()
    world.finish(100, NEW)
    world.tick()
    assert [(entry.step, entry.due().revision) for entry in world.store.ledger.due()] == [(100, 0)]


# -- failures and waiting ------------------------------------------------------------------------------------


def test_other_weights_have_attempts_of_their_own(world):
    save(world, 100, 1)
    for _ in range(2):
        world.tick()
        world.fail(100)
    world.tick()
    assert world.entry(100).has_failed
    save(world, 100, 2)
    assert world.tick() == 1
    assert world.entry(100).attempts == 0 and world.entry(100).failure is None


def test_a_failed_step_that_is_saved_again_with_the_same_weights_stays_failed(world):
    save(world, 100, 1)
    for _ in range(2):
        world.tick()
        world.fail(100)
    world.tick()
    save(world, 100, 1)
    assert world.tick() == 0
    assert world.entry(100).has_failed


def test_of_a_step_that_is_saved_again_while_it_waits_the_newest_is_evaluated(world):
    save(world, 10, 1)
    save(world, 100, 1)
    world.tick()
    save(world, 100, 2)
    world.finish(10)
    world.tick()
    path = Path(world.launcher.newest(100).env["CKPT_LIST"])
    assert (path / "model.safetensors").read_bytes() == weights(2)
    world.finish(100, NEW)
    world.tick()
    assert world.entry(100).processed


# -- during its evaluation -----------------------------------------------------------------------------------


@pytest.mark.parametrize("restarts", [False, True])
def test_a_step_that_is_saved_again_while_it_is_evaluated_is_evaluated_again(world, restarts):
    save(world, 100, 1)
    world.tick()
    save(world, 100, 2)
    world.finish(100, OLD)
    if restarts:
        world.restart()
    assert world.tick() == 1, "numbers of the old weights are no reason to leave the new ones"
    assert world.entry(100).is_superseded and world.store.ledger.due() == []
    world.finish(100, NEW)
    world.tick()
    assert numbers(world, 100) == NEW and world.entry(100).processed
    assert world.launcher.steps == [100, 100]


def test_numbers_of_weights_that_are_gone_are_not_due_for_a_moment(world, monkeypatch):
    """Delivery has a thread of its own."""
    save(world, 100, 1)
    world.tick()
    save(world, 100, 2)
    world.finish(100, OLD)
    due, update = [], world.store.update
    monkeypatch.setattr(
        world.store, "update", lambda change: due.append(update(change).due()) or world.store.ledger
    )
    world.tick()
    assert world.entry(100).result is not None
    assert due and not any(due)


def test_one_that_is_saved_again_with_the_same_weights_meanwhile_is_not_evaluated_again(world):
    save(world, 100, 1)
    world.tick()
    save(world, 100, 1)
    world.finish(100, OLD)
    assert world.tick() == 0
    assert world.entry(100).processed


def test_one_that_is_half_saved_when_its_evaluation_ends_is_evaluated_when_it_is_whole(world):
    save(world, 100, 1)
    world.tick()
    shutil.rmtree(world.checkpoint(100))
    world.write(100, {"config.json": b"{}"})
    world.finish(100, OLD)
    world.tick()
    assert numbers(world, 100) == OLD
    save(world, 100, 2)
    assert world.tick() == 1


def test_a_failure_with_the_weights_before_costs_the_new_ones_no_attempt(world):
    save(world, 100, 1)
    world.tick()
    save(world, 100, 2)
    world.fail(100)
    assert world.tick() == 1
    assert world.entry(100).attempts == 0


# -- results from before anybody looked ----------------------------------------------------------------------


def test_a_result_from_before_keeps_counting_and_is_then_of_these_weights(world):
    world.report(100, OLD)
    save(world, 100, 1)
    assert world.tick() == 0
    assert numbers(world, 100) == OLD
    save(world, 100, 2)
    assert world.tick() == 1


def test_a_ledger_from_before_learns_the_weights_without_a_word(done, caplog):
    entry = replace(done.entry(100), content=None, origin=type(done.entry(100).origin)())
    done.store.update(lambda ledger: ledger.with_entries([entry]))
    done.restart()
    caplog.clear()
    assert done.tick() == 0
    assert done.entry(100).origin.identity is not None
    assert caplog.messages == []


def test_a_step_of_an_older_script_that_is_saved_again_is_delivered_as_a_revision(world):
    older = {"run_id": RUN, "run_name": "", "model_dir": MODEL, "processed_steps": [100]}
    world.state_file.write_text(json.dumps(older))
    save(world, 100, 1)
    world.restart()
    assert world.tick() == 0 and world.entry(100).due() is None
    save(world, 100, 2)
    world.evaluate(100, NEW)
    assert world.entry(100).due() == Delivery(PENDING, 1)


def test_a_lost_state_takes_the_numbers_of_the_weights_that_are_there(done):
    done.state_file.unlink()
    done.restart()
    assert done.tick() == 0
    assert numbers(done, 100) == OLD
    assert done.entry(100).origin.identity == read_identity(done.checkpoint(100))


def test_numbers_of_another_data_set_in_the_same_place_are_not_taken(tmp_path):
    world = World(tmp_path, settings=Settings({"dataset": "Toys", "eval_split": "test"}))
    save(world, 100, 1)
    world.evaluate(100, OLD)
    world.state_file.unlink()
    world.restart(settings=Settings({"dataset": "Games", "eval_split": "test"}))
    assert world.tick() == 1


# -- what it costs -------------------------------------------------------------------------------------------


def test_an_unchanged_folder_is_not_read_again_not_even_by_the_next_sidecar(done, monkeypatch):
    settled = {"clock": lambda: done.checkpoint(100).stat().st_ctime_ns + 10**10}
    monkeypatch.setattr(done.sidecar._origins, "_clock", settled["clock"])
    done.tick()
    monkeypatch.setattr(origins, "read_content", lambda folder: pytest.fail(f"{folder} was read"))
    for _ in range(3):
        done.tick(after=60.0)
    done.restart()
    done.tick()


def test_the_next_sidecar_reads_no_weights_whose_result_was_found_in_results(world, monkeypatch):
    save(world, 100, 1)
    world.report(100, OLD)
    later = world.checkpoint(100).stat().st_ctime_ns + 10**10
    monkeypatch.setattr(world.sidecar._origins, "_clock", lambda: later)
    world.tick()
    world.restart()  # sees the files' own change time, which the links of the pin had moved, as it stays
    monkeypatch.setattr(world.sidecar._origins, "_clock", lambda: later)
    world.tick()
    monkeypatch.setattr(origins, "read_content", lambda folder: pytest.fail(f"{folder} was read"))
    world.restart()
    world.tick()
    assert world.entry(100).processed


def test_what_an_evaluation_was_made_of_lies_beside_its_numbers(tmp_path):
    world = World(tmp_path, settings=Settings({"num_beams": 5}))
    save(world, 100, 1)
    world.evaluate(100, OLD)
    found = read_provenance(world.metrics_file(100))
    assert (found.model, found.step, found.settings) == (MODEL, 100, {"num_beams": 5})
    assert found.origin.identity == world.entry(100).content.identity
    world.report(100, METRICS)
    assert read_provenance(world.metrics_file(100)) is None, "it is about other numbers"


# -- forced --------------------------------------------------------------------------------------------------


def test_a_watcher_that_is_started_again_with_force_goes_on_where_it_was(tmp_path):
    world = World(tmp_path)
    for step in (10, 20):
        save(world, step, 1)
        world.evaluate(step)
    world.restart(force=True)
    world.tick()
    world.finish(10)
    world.tick()
    world.restart(force=True)
    world.finish(20)
    world.tick()
    world.restart(force=True)
    assert world.tick() == 0
    assert world.launcher.steps == [10, 20, 10, 20]


def test_a_single_pass_with_force_evaluates_all_again_each_time_it_is_asked_for(tmp_path):
    world = World(tmp_path)
    save(world, 10, 1)
    world.evaluate(10)
    for _ in range(2):
        world.restart(force=True, force_anew=True)
        assert world.tick() == 1
        world.finish(10)
        assert world.tick() == 0


def test_force_with_other_settings_evaluates_all_again(tmp_path):
    world = World(tmp_path)
    save(world, 10, 1)
    world.evaluate(10)
    for beams in (5, 7):
        world.restart(force=True, settings=Settings({"num_beams": beams}))
        assert world.tick() == 1
        world.finish(10)
        assert world.tick() == 0


def test_force_after_a_start_without_it_begins_again(tmp_path):
    world = World(tmp_path)
    save(world, 10, 1)
    world.evaluate(10)
    for force in (True, False, True):
        world.restart(force=force)
        assert world.tick() == int(force)
        if force:
            world.finish(10)
            world.tick()


# -- what outlives its sidecar and its state -----------------------------------------------------------------


def lose_everything(world: World) -> None:
    """The sidecar is killed, and its state deleted; what it has started goes on."""
    world.state_file.unlink()
    world.restart()


def test_numbers_of_an_evaluation_that_outlived_its_sidecar_are_not_those_of_other_weights(world):
    save(world, 100, 1)
    world.tick()
    lose_everything(world)
    world.report(100, OLD)
    save(world, 100, 2)
    assert world.tick() == 1
    world.finish(100, NEW)
    world.tick()
    assert numbers(world, 100) == NEW


def test_they_stay_those_of_their_weights_when_the_next_sidecar_and_its_state_are_lost_too(world):
    save(world, 100, 1)
    world.tick()
    lose_everything(world)
    world.report(100, OLD)
    save(world, 100, 2)
    world.tick()
    world.sidecar.leave()
    lose_everything(world)
    assert world.tick() == 1
    assert numbers(world, 100) is None


def test_numbers_of_an_evaluation_that_outlived_its_sidecar_are_taken_with_what_they_are_of(world):
    save(world, 100, 1)
    world.tick()
    identity = world.entry(100).running.origin.identity
    lose_everything(world)
    world.report(100, OLD)
    assert world.tick() == 0
    assert numbers(world, 100) == OLD
    assert world.entry(100).origin.identity == identity is not None


def test_numbers_that_were_there_before_an_evaluation_that_never_ended_are_not_its_own(world):
    save(world, 100, 1)
    world.launcher.slots = 0
    world.tick()
    world.launcher.slots = 1
    world.tick()
    lose_everything(world)
    world.report(100, OLD)
    os.utime(world.metrics_file(100), (1, 1))
    save(world, 100, 2)
    assert world.tick() == 0
    assert numbers(world, 100) == OLD


@pytest.mark.parametrize("end", ["good", "failed"])
def test_nothing_is_left_of_an_evaluation_that_is_over(world, end):
    save(world, 100, 1)
    for _ in range(1 if end == "good" else 2):
        world.tick()
        world.finish(100, OLD) if end == "good" else world.fail(100)
    world.tick()
    left = world.metrics_file(100).parent.parent.parent / ".eval-sidecar"
    assert [path for path in left.rglob("*") if path.is_file()] == []
