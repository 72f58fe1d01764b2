"""The folder of the evaluators that are kept: none of them outlives the sidecar."""

from __future__ import annotations

import errno
import logging
import subprocess
import sys
from pathlib import Path

import pytest

from eval_sidecar.cli.warming import warm_processes
from eval_sidecar.evaluation.config import WatchConfig

#: Ends a little later than its owner lets go of the lock, as a process with a GPU does.
KEPT = (
    "import fcntl, sys, threading\n"
    "print('here', flush=True)\n"
    "fcntl.flock(open(sys.argv[1]), fcntl.LOCK_SH)\n"
    "threading.Event().wait(0.3)\n"
)


@pytest.fixture
def config(tmp_path: Path) -> WatchConfig:
    return WatchConfig(tmp_path, tmp_path, tmp_path / "script", {"CATEGORY": "a"}, tmp_path / "logs")


def test_a_kept_evaluator_has_ended_when_its_sidecar_has(config):
    with warm_processes(config) as kept:
        folder = Path(kept.environment["EVAL_SIDECAR_WARM"])
        process = subprocess.Popen(
            [sys.executable, "-c", KEPT, str(folder / "lock")], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None and process.stdout.readline() == "here\n"
        (folder / "0.pid").write_text(str(process.pid))
        assert process.poll() is None
    with process.stdout:
        assert process.poll() == 0
    assert not folder.exists()


def test_where_no_folder_can_be_made_evaluations_start_their_own(config, monkeypatch, caplog):
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    with caplog.at_level(logging.WARNING), warm_processes(config) as kept:
        assert kept == config
    assert "no evaluator is kept between checkpoints" in caplog.text
