"""What a start says of the machine: missing GPUs and libraries, and nothing that is not certain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from eval_sidecar.diagnosis.startup import find_problems
from eval_sidecar.installation import own_evaluation_script


@pytest.fixture
def bin_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The only folder on the PATH."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return folder


def put(folder: Path, name: str, body: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return str(path)


def copy_of_ours(folder: Path) -> Path:
    """Our script in a folder that has no Python of its own."""
    script = folder / "evaluate.sh"
    script.write_bytes(own_evaluation_script().read_bytes())
    return script


def test_a_machine_that_has_all_is_told_nothing(bin_folder, tmp_path):
    put(bin_folder, "nvidia-smi", "echo 'GPU 0: Card (UUID: GPU-0)'")
    python = put(tmp_path, "python", "exit 0")
    assert find_problems("0", copy_of_ours(tmp_path), {"PYTHON_BIN": python}, tmp_path) == []


def test_a_gpu_and_libraries_that_are_not_there_are_named(bin_folder, tmp_path):
    put(bin_folder, "nvidia-smi", "echo 'GPU 0: Card (UUID: GPU-0)'")
    python = put(tmp_path, "python", "exit 1")
    gpu, libraries = find_problems("0-1", copy_of_ours(tmp_path), {"PYTHON_BIN": python}, tmp_path)
    assert "GPU 1 not found" in gpu
    assert f"{python} has no torch and transformers" in libraries and "install" in libraries


def test_one_of_the_pythons_that_the_script_tries_is_enough(bin_folder, tmp_path):
    put(bin_folder, "python3", "exit 0")
    python = put(tmp_path, "python", "exit 1")
    assert find_problems("0", copy_of_ours(tmp_path), {"PYTHON_BIN": python}, tmp_path) == []


def test_a_python_below_the_repository_is_found_there(bin_folder, tmp_path):
    (tmp_path / "env").mkdir()
    put(tmp_path / "env", "python", "exit 0")
    assert os.getcwd() != str(tmp_path)  # noqa: PTH109
    assert find_problems("0", copy_of_ours(tmp_path), {"PYTHON_BIN": "env/python"}, tmp_path) == []


def test_a_script_of_ones_own_is_not_taken_to_need_torch(bin_folder, tmp_path):
    script = tmp_path / "mine.sh"
    script.write_text("true\n")
    python = put(tmp_path, "python", "exit 1")
    assert find_problems("0", script, {"PYTHON_BIN": python}, tmp_path) == []
