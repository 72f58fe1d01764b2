"""An independent check of what arrives: a W&B server that somebody else wrote.

Needs the command ``openwandb`` (PyPI; for tests only, its licence excludes commercial use) on PATH or
named by the variable OPENWANDB. It has no history queries: a run is read back through its summary there,
and the database is asked what the server really holds.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import sqlite3
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from eval_sidecar.delivery.delivery import Report
from eval_sidecar.delivery.uploading import Uploader
from eval_sidecar.errors import ReadBackUnsupported
from tracking import points_of, session_of, spec_of, wandb_on

pytest.importorskip("wandb")
#: That server takes seconds for a request if other tests have the cores.
PATIENT = {"request_timeout": 60.0, "send_deadline": 150.0, "read_deadline": 60.0}
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
    with wandb_on(openwandb, tmp_path, **PATIENT) as tracker:
        assert tracker.read(spec).rows == ()
        tracker.send(session_of(spec, None, first))
        with pytest.raises(ReadBackUnsupported):
            tracker.read(spec)
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


def test_an_upload_is_confirmed_there_once_and_found_again_without_its_state(
    openwandb: OpenWandb, tmp_path: Path
) -> None:
    models = [replace(spec_of(f"eval-up-{place}"), model_dir=f"model-{place}") for place in range(3)]
    for model in models:
        for step in (100, 200):
            path = tmp_path / "results" / model.model_dir / f"checkpoint-{step}" / "metrics.json"
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps({"HR@10": step / 1000, "NDCG@10": step / 2000}))

    def upload(state: str) -> list[Report]:
        with wandb_on(openwandb, tmp_path, **PATIENT) as tracker:
            uploader = Uploader(tmp_path / "results", tmp_path / state, tracker, confirms=True)
            outcomes = uploader.run_pass(models, threading.Event())
        assert [outcome.left for outcome in outcomes] == [()] * 3
        return [outcome.report for outcome in outcomes]

    assert [(report.sent, report.confirmed) for report in upload("state")] == [(2, 2)] * 3
    assert [report.sent for report in upload("state")] == [0] * 3
    assert [(report.sent, report.already) for report in upload("fresh")] == [(0, 2)] * 3
    with sqlite3.connect(openwandb.database) as database:
        query = "select run_id, step, value from metrics where run_id like 'eval-up-%' and key = 'eval/HR@10'"
        rows = sorted(database.execute(query).fetchall())
    assert rows == [(model.run_id, step, step / 1000) for model in models for step in (100, 200)]
