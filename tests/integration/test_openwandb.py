"""An independent check of what arrives: a W&B server that somebody else wrote.

Needs the command ``openwandb`` (PyPI; for tests only, its licence excludes commercial use) on PATH or
named by the variable OPENWANDB. It has no history queries, so look-ups are refused there, and it is asked
through its database what it holds.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from eval_sidecar.errors import ReadBackUnsupported
from tracking import points_of, session_of, spec_of, wandb_on

pytest.importorskip("wandb")
COMMAND = os.environ.get("OPENWANDB") or shutil.which("openwandb")
pytestmark = [
    pytest.mark.wandb,
    pytest.mark.skipif(COMMAND is None, reason="the command openwandb is not installed"),
]


@dataclass(frozen=True)
class OpenWandb:
    url: str
    database: Path
    key: str = "local" + "0" * 35


@pytest.fixture(scope="module")
def openwandb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenWandb]:
    folder = tmp_path_factory.mktemp("openwandb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ["serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([str(COMMAND), *arguments], stdout=log, stderr=log)
    try:
        _wait_until_it_listens(port, process)
        yield OpenWandb(f"http://127.0.0.1:{port}", folder / "openwandb.db")
    finally:
        process.terminate()
        process.wait()


def _wait_until_it_listens(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while process.poll() is None and time.monotonic() < deadline:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    pytest.fail("openwandb does not listen")


def test_two_sessions_leave_every_point_once_with_config_and_summary(
    openwandb: OpenWandb, tmp_path: Path
) -> None:
    spec = spec_of("eval-open")
    first, second = points_of(100, 200), points_of(300)
    with wandb_on(openwandb, tmp_path) as tracker:
        with pytest.raises(ReadBackUnsupported):
            tracker.read(spec)
        tracker.send(session_of(spec, None, first))
        tracker.send(session_of(spec, None, second, first))
    with sqlite3.connect(openwandb.database) as database:
        query = "select step, value from metrics where run_id = ? and key = ? order by step"
        rows = database.execute(query, ("eval-open", "eval/HR@10")).fetchall()
        config, summary = database.execute(
            "select config_json, summary_json from runs where run_id = ?", ("eval-open",)
        ).fetchone()
    assert rows == [(100, 0.01), (200, 0.02), (300, 0.03)]
    assert "Instruments_grec" in config
    assert json.loads(summary)["best_step_for_hr@10"] == 300
