"""Pins: what rotation deletes stays whole for its evaluation, and a pin is whole or not there."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest

from checkpoint_files import safetensors, trainer_files, write_checkpoint, write_files
from eval_sidecar.checkpoints import list_checkpoints, pins_folder
from eval_sidecar.errors import CheckpointError, UsageError
from eval_sidecar.pinning import PinsUnsupported, is_outdated, parse_floor, pin, space_is_short, unpin
from eval_sidecar.types import Checkpoint

STEP = 495


@pytest.fixture
def model_dir(tmp_path) -> Path:
    return tmp_path / "my-model"


@pytest.fixture
def checkpoint(model_dir) -> Checkpoint:
    return write_checkpoint(model_dir, STEP)


def yes(copy: Checkpoint) -> bool:
    return True


def remains(model_dir: Path) -> list[Path]:
    """Whatever files pinning has left below its folder."""
    return [path for path in (model_dir / ".eval-sidecar").rglob("*") if not path.is_dir()]


# -- what a pin is ---------------------------------------------------------------------------------------


def test_a_pin_has_the_checkpoints_own_name_below_the_models_name(model_dir, checkpoint):
    pinned = pin(model_dir, checkpoint, yes)
    assert pinned == Checkpoint(STEP, model_dir / ".eval-sidecar" / "my-model" / "checkpoint-495")
    assert list_checkpoints(pins_folder(model_dir)) == [pinned]


def test_rotation_of_the_original_leaves_the_pin_whole(model_dir, checkpoint):
    pinned = pin(model_dir, checkpoint, yes)
    shutil.rmtree(checkpoint.path)
    files = trainer_files(STEP)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "trainer_state.json"):
        assert (pinned.path / name).read_bytes() == files[name]


def test_a_pin_takes_no_disk_space_of_its_own(model_dir, checkpoint):
    pinned = pin(model_dir, checkpoint, yes)
    assert (pinned.path / "model.safetensors").samefile(checkpoint.path / "model.safetensors")


def test_the_trainer_does_not_see_pins_among_its_checkpoints(model_dir, checkpoint):
    pin(model_dir, checkpoint, yes)
    assert list(model_dir.glob("checkpoint-*")) == [checkpoint.path]


@pytest.mark.parametrize(
    "name",
    [
        *("optimizer.pt", "optimizer.bin", "optimizer_0", "scheduler.pt", "rng_state.pth", "rng_state_3.pth"),
        *("scaler.pt", "random_states_0.pkl", "global_step495", "zero_to_fp32.py", "latest"),
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt",
    ],
)
def test_state_of_the_training_is_not_linked(model_dir, checkpoint, name):
    shutil.rmtree(checkpoint.path)
    write_files(checkpoint.path, {"config.json": b"{}"})
    write_files(checkpoint.path / name, {"shard": b"x"}) if name == "global_step495" else write_files(
        checkpoint.path, {name: b"x"}
    )
    pinned = pin(model_dir, checkpoint, yes)
    assert [path.name for path in pinned.path.iterdir()] == ["config.json"]


@pytest.mark.parametrize(
    "name",
    ["model.safetensors", "chat_template.jinja", "modeling_custom.py", "vocab.json", "latest_notes.md"],
)
def test_everything_else_is_linked(model_dir, checkpoint, name):
    write_files(checkpoint.path, {name: b"x"})
    assert (pin(model_dir, checkpoint, yes).path / name).exists()


def test_folders_in_a_checkpoint_are_linked_with_their_files(model_dir, checkpoint):
    write_files(checkpoint.path / "reference" / "adapter", {"adapter_config.json": b"{}"})
    pinned = pin(model_dir, checkpoint, yes)
    assert (pinned.path / "reference" / "adapter" / "adapter_config.json").read_bytes() == b"{}"


def test_a_relative_link_in_a_checkpoint_still_leads_to_its_content(model_dir, checkpoint):
    write_files(model_dir, {"shared-tokenizer.json": b"shared"})
    (checkpoint.path / "tokenizer.model").symlink_to(Path("..") / "shared-tokenizer.json")
    assert (pin(model_dir, checkpoint, yes).path / "tokenizer.model").read_bytes() == b"shared"


def test_pinning_again_returns_the_pin_that_is_there_although_the_original_is_gone(model_dir, checkpoint):
    first = pin(model_dir, checkpoint, yes)
    shutil.rmtree(checkpoint.path)
    assert pin(model_dir, checkpoint, yes) == first


# -- whole or not there ----------------------------------------------------------------------------------


def test_the_copy_is_judged_under_its_own_name_before_it_counts(model_dir, checkpoint):
    judged = []
    pin(
        model_dir,
        checkpoint,
        lambda copy: judged.append((copy, list_checkpoints(pins_folder(model_dir)))) or True,
    )
    ((copy, counting),) = judged
    assert copy.name == "checkpoint-495"
    assert counting == []


def test_a_copy_that_is_judged_unready_is_an_error_and_leaves_nothing(model_dir, checkpoint):
    with pytest.raises(
        CheckpointError, match="checkpoint-495: was deleted or rewritten while it was being pinned"
    ):
        pin(model_dir, checkpoint, lambda copy: False)
    assert remains(model_dir) == []
    assert list_checkpoints(pins_folder(model_dir)) == []


def test_a_checkpoint_deleted_half_way_through_pinning_is_an_error_and_leaves_nothing(
    model_dir, checkpoint, monkeypatch
):
    link = os.link

    def link_and_lose_the_rest(source, target, **options):
        link(source, target, **options)
        shutil.rmtree(checkpoint.path, ignore_errors=True)

    monkeypatch.setattr(os, "link", link_and_lose_the_rest)
    with pytest.raises(
        CheckpointError, match="checkpoint-495: was deleted while it was being pinned"
    ) as error:
        pin(model_dir, checkpoint, yes)
    assert not isinstance(error.value, PinsUnsupported)
    assert remains(model_dir) == []
    assert list_checkpoints(pins_folder(model_dir)) == []


def test_a_checkpoint_that_is_gone_before_pinning_is_an_error(model_dir):
    with pytest.raises(CheckpointError, match="was deleted while it was being pinned"):
        pin(model_dir, Checkpoint(STEP, model_dir / "checkpoint-495"), yes)


def test_what_a_killed_process_left_of_its_pinning_is_removed_by_the_next(model_dir, checkpoint):
    write_files(pins_folder(model_dir) / ".linking-999999" / "checkpoint-330", {"model.safetensors": b"x"})
    pin(model_dir, checkpoint, yes)
    assert [path.name for path in pins_folder(model_dir).iterdir()] == ["checkpoint-495"]


@pytest.mark.parametrize("code", [errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP, errno.EMLINK])
def test_a_file_system_without_hard_links_is_told_apart_from_a_deletion(
    model_dir, checkpoint, monkeypatch, code
):
    def refuse(source, target, **options):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(PinsUnsupported, match="no hard links can be made here") as error:
        pin(model_dir, checkpoint, yes)
    assert os.strerror(code) in str(error.value)
    assert remains(model_dir) == []


# -- unpinning -------------------------------------------------------------------------------------------


def test_unpinning_the_last_removes_the_folders_above_it_and_keeps_the_original(model_dir, checkpoint):
    pin(model_dir, checkpoint, yes)
    unpin(model_dir, STEP)
    assert list(model_dir.iterdir()) == [checkpoint.path]
    assert (checkpoint.path / "model.safetensors").read_bytes() == trainer_files(STEP)["model.safetensors"]


def test_unpinning_one_keeps_the_others(model_dir, checkpoint):
    pin(model_dir, checkpoint, yes)
    other = pin(model_dir, write_checkpoint(model_dir, 500), yes)
    unpin(model_dir, STEP)
    assert list_checkpoints(pins_folder(model_dir)) == [other]


def test_unpinning_what_is_not_pinned_does_nothing(model_dir, checkpoint):
    unpin(model_dir, STEP)
    assert checkpoint.path.exists()


def test_a_pin_that_cannot_be_removed_is_an_error_that_names_it(model_dir, checkpoint, monkeypatch):
    def refuse(path, **options):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(CheckpointError, match=r"checkpoint-495: cannot be removed \(Permission denied\)"):
        unpin(model_dir, STEP)


# -- written anew ----------------------------------------------------------------------------------------


def test_a_pin_is_outdated_once_a_file_was_put_in_the_place_of_one_that_it_links(model_dir, checkpoint):
    pinned = pin(model_dir, checkpoint, yes)
    assert not is_outdated(pinned, checkpoint)
    write_files(checkpoint.path, {".new": safetensors(4)})
    (checkpoint.path / ".new").replace(checkpoint.path / "model.safetensors")
    assert is_outdated(pinned, checkpoint)


def test_a_pin_is_not_outdated_by_the_deletion_of_half_of_the_original(model_dir, checkpoint):
    pinned = pin(model_dir, checkpoint, yes)
    (checkpoint.path / "model.safetensors").unlink()
    assert not is_outdated(pinned, checkpoint)


# -- free space ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "floor"),
    [
        ("1048576", 1048576),
        ("0", 0),
        ("20G", 20 * 2**30),
        ("20GiB", 20 * 2**30),
        ("1.5t", 1.5 * 2**40),
        ("500 MB", 500 * 2**20),
        ("5%", 0.05),
        ("0%", 0.0),
    ],
)
def test_a_floor_is_a_size_or_a_share(text, floor):
    parsed = parse_floor(text)
    assert parsed == floor
    assert isinstance(parsed, float) is text.endswith("%")


@pytest.mark.parametrize("text", ["", "many", "-5G", "5X", "100%", "-1%", "%", "nan%", "1e3"])
def test_a_floor_that_is_neither_is_a_usage_error_that_repeats_it(text):
    with pytest.raises(UsageError, match="--min-free-space '" + text):
        parse_floor(text)


@pytest.mark.parametrize(("floor", "short"), [(100, False), (101, True), (0.1, False), (0.11, True)])
def test_space_is_short_below_the_floor_whether_size_or_share(tmp_path, monkeypatch, floor, short):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1000, 900, 100))
    assert space_is_short(tmp_path, floor) is short
