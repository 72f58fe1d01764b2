"""Which folders are checkpoints, and in which order they come."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval_sidecar.checkpoints.listing import list_checkpoints
from eval_sidecar.errors import CheckpointError
from eval_sidecar.paths import PinPaths
from eval_sidecar.types import Checkpoint, step_of


@given(st.integers(min_value=0, max_value=10**12))
def test_the_step_is_read_from_the_name_whatever_its_length(step):
    assert step_of(f"checkpoint-{step}") == step


@pytest.mark.parametrize(
    "name",
    [
        *("checkpoint-", "checkpoint-best", "checkpoint-1.5", "checkpoint--1", "checkpoint-12-merged"),
        *("checkpoint_12", "Checkpoint-12", "my-checkpoint-12", "checkpoint-12 ", "tmp-checkpoint-12"),
        *("checkpoint-١٢", "checkpoint-12\n", "global_step12", ""),
    ],
)
def test_other_names_are_no_checkpoints(name):
    assert step_of(name) is None


def test_a_name_with_leading_zeros_is_not_taken_for_the_same_step_again():
    assert step_of("checkpoint-007") is None


def test_checkpoints_come_by_step_and_not_by_name(tmp_path):
    for step in (1000, 5, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    assert list_checkpoints(tmp_path) == [
        Checkpoint(step, tmp_path / f"checkpoint-{step}") for step in (5, 20, 1000)
    ]


def test_files_and_other_folders_are_passed_by(tmp_path):
    (tmp_path / "checkpoint-1").write_text("a file")
    (tmp_path / "runs").mkdir()
    (tmp_path / ".eval-sidecar").mkdir()
    (tmp_path / "checkpoint-2").mkdir()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [2]


def test_a_link_to_a_folder_is_a_checkpoint_and_one_to_nothing_is_not(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "checkpoint-1").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "checkpoint-2").symlink_to(tmp_path / "nowhere")
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [1]


def test_a_link_in_a_circle_is_no_checkpoint(tmp_path):
    (tmp_path / "checkpoint-1").symlink_to("checkpoint-1")
    (tmp_path / "checkpoint-2").mkdir()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path)] == [2]


def test_a_folder_that_is_not_there_yet_has_no_checkpoints(tmp_path):
    assert list_checkpoints(tmp_path / "later") == []


def test_a_folder_that_cannot_be_listed_is_an_error_that_names_it(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CheckpointError, match=r"model: cannot be listed \(Permission denied\)"):
        list_checkpoints(tmp_path / "model")


def test_pins_lie_in_a_folder_of_the_models_name_beside_the_model_dir(tmp_path):
    folder = PinPaths.beside(tmp_path / "my-model").pins("my-model")
    assert folder == tmp_path / ".eval-sidecar" / "my-model"
    assert step_of(folder.parent.name) is None
