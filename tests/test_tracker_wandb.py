"""What the W&B adapter leaves on a server, and what it does when the server or the client fails.

The client is the real one; `test_trackers_contract.py` has what every tracker does.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from eval_sidecar.errors import ReadBackUnsupported, StaleView, TrackerError
from eval_sidecar.system.logs import FULL
from eval_sidecar.trackers import wandb_worker
from eval_sidecar.trackers.base import ServerView
from eval_sidecar.trackers.wandb import WandbTracker
from eval_sidecar.types import ModelSpec, digest
from tracking import (
    METRICS,
    deliver,
    descendants,
    point_of,
    points_of,
    session_of,
    spec_of,
    still_running,
    wandb_on,
)
from wandb_server import WandbServer
from wandb_store import Run

wandb = pytest.importorskip("wandb")
VERSION = tuple(int(part) for part in wandb.__version__.split(".")[:2])
pytestmark = pytest.mark.wandb

_numbers = itertools.count()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("wandb")


@pytest.fixture(scope="module")
def shared_server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server


@pytest.fixture
def server(shared_server: WandbServer) -> Iterator[WandbServer]:
    yield shared_server
    shared_server.heal()


@pytest.fixture(scope="module")
def tracker(shared_server: WandbServer, folder: Path) -> Iterator[WandbTracker]:
    """One worker for all tests that leave it alive: it takes two seconds to start."""
    with wandb_on(shared_server, folder) as tracker:
        yield tracker


@pytest.fixture
def spec() -> ModelSpec:
    return spec_of(f"eval-{next(_numbers):020x}")


# -- what is on the server ---------------------------------------------------------------------------


def test_the_first_session_makes_the_run_with_exactly_the_documented_config(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    deliver(tracker, spec, points_of(100))
    run = server.runs["team", "MIMIGenRec-Eval", spec.run_id]
    assert run.config == {
        "model_name": "Instruments-grec-sft-qwen4B-4-256-dsz0",
        "dataset": "Instruments_grec",
        "cb_setting": "cb256",
        "seed": 42,
        "num_beams": 50,
        "sid_levels": -1,
        "eval_split": "test",
    }
    assert (run.name, run.group, run.job_type) == (spec.run_name, "grec", "eval")
    assert run.state == "finished"


def _send_after_a_look(tracker: WandbTracker, spec: ModelSpec, *steps: int) -> None:
    """Look up, even if the server cannot show rows, and append the last step."""
    with contextlib.suppress(ReadBackUnsupported):
        tracker.read(spec)
    *older, new = points_of(*steps)
    at = ServerView(exists=True, last_index=older[-1].step if older else -1, rows=())
    tracker.send(replace(session_of(spec, at, [new], older), start=None))


@pytest.mark.parametrize("queries", ["history", "summary"])
def test_a_run_that_was_renamed_on_the_page_keeps_its_name(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, queries: str
) -> None:
    deliver(tracker, spec, points_of(100))
    run = server.run(spec.run_id)
    run.name = "the good one"
    if queries == "summary":
        server.refuse_history()
    _send_after_a_look(tracker, spec, 100, 200)
    assert (run.name, len(run.rows)) == ("the good one", 2)


@pytest.mark.parametrize("queries", ["history", "summary"])
def test_name_group_and_config_of_a_run_that_we_did_not_make_stay_as_they_are(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, queries: str
) -> None:
    theirs = {"model_name": {"value": "Qwen2.5-3B"}, "seed": {"value": 1}, "lr": {"value": 0.1}}
    run = Run("team", spec.project, spec.run_id, name="my training", group="sft", job_type="train")
    run.raw_config, run.state = dict(theirs), "finished"
    server.runs["team", spec.project, spec.run_id] = run
    if queries == "summary":
        server.refuse_history()
    _send_after_a_look(tracker, spec, 100)
    _send_after_a_look(tracker, spec, 100, 200)
    assert run.config == {"model_name": "Qwen2.5-3B", "seed": 1, "lr": 0.1}
    assert (run.name, run.group, run.job_type) == ("my training", "sft", "train")
    assert [step for _, step in run.points] == [100, 200]
    assert run.summary["last_step"] == 200 and len(run.tables[-1]["data"]) == 2


def test_a_run_of_ours_shows_settings_that_have_changed(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    deliver(tracker, spec, points_of(100))
    deliver(tracker, replace(spec, seed=7), points_of(200), points_of(100))
    assert server.run(spec.run_id).config["seed"] == 7


def test_a_row_has_exactly_the_documented_keys_and_stands_at_the_checkpoint_step(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    deliver(tracker, spec, points_of(100, 200))
    rows = server.run(spec.run_id).rows
    assert [row["_step"] for row in rows] == [100, 200]
    documented = {"checkpoint_step", "eval/checkpoint_name", "eval/metrics_path"}
    documented |= {f"eval/{name}" for name in METRICS}
    assert {key for key in rows[0] if not key.startswith("_")} == documented
    assert rows[0]["eval/HR@10"] == 0.01
    assert rows[0]["eval/checkpoint_name"] == "checkpoint-100"
    assert rows[0]["eval/metrics_path"] == "/results/m/checkpoint-100/metrics.json"


def test_a_revision_is_marked_and_only_then(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    deliver(tracker, spec, [point_of(100), point_of(100, hr=0.7, revision=1)])
    rows = server.run(spec.run_id).rows
    assert [row.get("eval/revision") for row in rows] == [None, 1]


def _definitions(server: WandbServer, spec: ModelSpec) -> dict[str, dict[str, Any]]:
    """The metric definitions that the client sent, by name; its numbers are those of its own protocol."""
    sent = server.run(spec.run_id).raw_config["_wandb"]["value"]["m"]
    return {entry.get("1") or entry["2"]: {"place": sent.index(entry) + 1, **entry} for entry in sent}


@pytest.mark.parametrize("sessions", [1, 2])
def test_every_session_declares_the_checkpoint_step_as_x_axis(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, sessions: int
) -> None:
    for step in range(100, 100 * sessions + 1, 100):
        deliver(tracker, spec, points_of(step))
    definitions = _definitions(server, spec)
    # Newer clients send the pattern, older ones each metric that was logged.
    names = ["eval/*"] if "eval/*" in definitions else [f"eval/{name}" for name in METRICS]
    places = {definitions[name]["5"] for name in names}
    assert places == {definitions["checkpoint_step"]["place"]}


def test_the_summary_has_exactly_the_documented_keys_and_a_late_checkpoint_does_not_change_the_last(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    deliver(tracker, spec, points_of(300))
    deliver(tracker, spec, [point_of(100, hr=0.9)], points_of(300))
    summary = {key: value for key, value in server.run(spec.run_id).summary.items() if key[0] != "_"}
    table = summary.pop("eval/checkpoint_table")
    assert table["_type"] == "table-file"
    assert table["nrows"] == 2
    assert summary == {
        "best_hr@10": 0.9,
        "best_ndcg@10": 0.1125,
        "best_step_for_hr@10": 100,
        "best_step_for_ndcg@10": 100,
        "last_hr@10": 0.03,
        "last_ndcg@10": 0.00375,
        "last_step": 300,
    }


def test_the_table_is_stored_once_a_session_with_every_checkpoint(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    before = server.requests["CreateArtifact"]
    deliver(tracker, spec, points_of(200, 300))
    deliver(tracker, spec, points_of(100), points_of(200, 300))
    tables = server.run(spec.run_id).tables
    assert server.requests["CreateArtifact"] - before == 2
    assert [len(table["data"]) for table in tables] == [2, 3]
    assert tables[1]["columns"] == ["checkpoint_step", "checkpoint_name", *METRICS, "metrics_path"]
    assert [row[0] for row in tables[1]["data"]] == [100, 200, 300]
    assert sum("eval/checkpoint_table" in row for row in server.run(spec.run_id).rows) == 2


def test_a_table_that_cannot_be_stored_costs_no_point(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    server.fault("CreateArtifact", status=403)
    view = tracker.read(spec)
    receipt = tracker.send(session_of(spec, view, points_of(100, 200)))
    assert receipt.table_problem is not None and "403" in receipt.table_problem
    assert server.run(spec.run_id).points == [(100, 100), (200, 200)]
    assert server.run(spec.run_id).summary["last_step"] == 200


@pytest.mark.parametrize("lost", ["media", "summary"])
def test_a_look_up_says_what_the_table_shows_only_where_it_is_stored(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, lost: str
) -> None:
    session = session_of(spec, tracker.read(spec), points_of(100, 200))
    row_by_step = {point.step: index for index, point in session.rows}
    tracker.send(replace(session, row_by_step=row_by_step))
    summary_rows = tracker.read(spec).summary_rows
    assert summary_rows is not None and [row.step for row in summary_rows] == [100, 200]
    run = server.run(spec.run_id)
    if lost == "media":
        run.files = [name for name in run.files if not name.startswith("media/")]
        assert tracker.read(spec).summary_rows == ()
    else:
        run.summary = {}
        assert tracker.read(spec).summary_rows is None


def test_a_session_without_rows_brings_the_table_and_adds_no_row(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    deliver(tracker, spec, points_of(100, 200))
    view = tracker.read(spec)
    session = session_of(spec, view, [], points_of(100, 200))
    assert tracker.send(session).table_problem is None
    run = server.run(spec.run_id)
    assert run.points == [(100, 100), (200, 200)] and len(run.rows) == 2
    assert len(run.tables) == 2
    stored = run.summary["eval/checkpoint_table"]["path"]
    assert stored in run.files


def test_a_refused_session_leaves_rows_and_summary_as_they_were(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    deliver(tracker, spec, points_of(100, 200))
    run = server.run(spec.run_id)
    lines, tables, summary = dict(run.lines), len(run.tables), run.summary["last_step"]
    server.hide(spec.run_id, 1, 1)
    with pytest.raises(StaleView, match=r"stands at step 201, the look-up said 101"):
        deliver(tracker, spec, points_of(300))
    assert (run.lines, len(run.tables), run.summary["last_step"]) == (lines, tables, summary)
    assert run.state == "finished"


# -- what a look-up makes of what it finds -------------------------------------------------------------


def test_rows_of_older_scripts_are_points_too(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    deliver(tracker, spec, points_of(100))
    row = {"_step": 250.0, "checkpoint_step": 250.0, "eval/HR@10": 0.5, "eval/NDCG@10": "NaN", "eval/x": None}
    server.append(spec.run_id, row)
    found = tracker.read(spec).rows[-1]
    assert (found.index, found.step, found.revision, dict(found.metrics)) == (250, 250, 0, {"HR@10": 0.5})


@pytest.mark.parametrize(
    ("state", "heartbeat_at", "named"),
    [
        ("running", "2020-01-01T00:00:00Z", False),
        ("running", None, True),
        ("finished", None, False),
        ("crashed", None, False),
    ],
)
def test_only_a_running_run_with_a_fresh_heartbeat_has_a_writer(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, state: str, heartbeat_at: Any, named: bool
) -> None:
    deliver(tracker, spec, points_of(100))
    server.set_state(spec.run_id, state, heartbeat_at)
    assert (tracker.read(spec).writer is not None) == named


@pytest.mark.parametrize(
    ("status", "permanent"), [(401, True), (403, True), (404, True), (409, False), (500, False)]
)
def test_a_look_up_that_fails_is_an_error_and_never_a_run_that_does_not_exist(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, status: int, permanent: bool
) -> None:
    server.fault("Run", status=status, message="no")
    with pytest.raises(TrackerError) as caught:
        tracker.read(spec)
    assert caught.value.permanent is permanent
    assert "\n" not in str(caught.value)


def test_a_server_that_has_rows_and_cannot_say_up_to_which_step_is_not_taken_for_empty(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    deliver(tracker, spec, points_of(100))
    monkeypatch.setattr(server.store, "_history_keys", lambda run: None)
    with pytest.raises(ReadBackUnsupported, match="has 1 rows"):
        tracker.read(spec)


def test_a_server_without_history_is_read_through_the_summary_of_the_run(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server.store, "_history_keys", lambda run: None)
    session = session_of(spec, None, points_of(100, 200))
    tracker.send(replace(session, row_by_step={point.step: index for index, point in session.rows}))
    view = tracker.read(spec)
    assert [(row.index, row.step, row.revision) for row in view.rows] == [(100, 100, 0), (200, 200, 0)]
    assert [row.digest for row in view.rows] == [digest(point.metrics) for point in points_of(100, 200)]
    assert not view.knows_end


# -- failing sends ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "status"), [("file_stream", 500), ("file_stream", 429), ("UpsertBucket", 500), ("upload", 500)]
)
def test_a_failing_request_is_tried_again_and_every_row_is_there_once(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, kind: str, status: int
) -> None:
    server.fault(kind, status=status, times=1)
    deliver(tracker, spec, points_of(100, 200))
    assert server.run(spec.run_id).points == [(100, 100), (200, 200)]
    assert len(server.run(spec.run_id).tables) == 1


@pytest.mark.parametrize("action", ["drop", "drop-after"])
def test_a_connection_that_drops_neither_loses_nor_doubles_a_row(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec, action: str
) -> None:
    server.fault("file_stream", action=action, times=1)
    deliver(tracker, spec, points_of(100, 200))
    assert server.run(spec.run_id).points == [(100, 100), (200, 200)]


def test_no_permission_is_permanent_and_names_the_project(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    server.forbid("team")
    with pytest.raises(TrackerError, match="no permission for MIMIGenRec-Eval: ") as caught:
        deliver(tracker, spec, points_of(100))
    assert caught.value.permanent


def test_a_run_id_can_be_opened_again_after_a_session_that_could_not_be_opened(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    server.forbid("team")
    with pytest.raises(TrackerError):
        deliver(tracker, spec, points_of(100))
    server.heal()
    deliver(tracker, spec, points_of(100))
    assert server.run(spec.run_id).points == [(100, 100)]


def test_a_project_that_is_not_found_is_permanent(
    tracker: WandbTracker, server: WandbServer, spec: ModelSpec
) -> None:
    server.fault("UpsertBucket", status=404, message="entity team not found during upsertBucket")
    with pytest.raises(TrackerError, match="--wandb-entity and --wandb-project") as caught:
        deliver(tracker, spec, points_of(100))
    assert caught.value.permanent


@pytest.mark.skipif(VERSION < (0, 27), reason="older clients keep the server's reason to themselves")
def test_a_deleted_run_is_permanent_and_says_what_to_do(
    server: WandbServer, spec: ModelSpec, tmp_path: Path
) -> None:
    with wandb_on(server, tmp_path, init_timeout=1.0) as tracker:
        deliver(tracker, spec, points_of(100))
        server.delete(spec.run_id)
        assert not tracker.read(spec).exists
        with pytest.raises(TrackerError, match=r"was deleted.*--wandb-run-id") as caught:
            deliver(tracker, spec, points_of(100))
    assert caught.value.permanent


@pytest.mark.parametrize("run_id", ["eval/a", "eval:a", "eval?a", "eval'a"])
def test_a_run_id_that_the_client_refuses_is_refused_before_anything_starts(
    server: WandbServer, tmp_path: Path, run_id: str
) -> None:
    before = set(descendants())
    with wandb_on(server, tmp_path) as tracker:
        with pytest.raises(TrackerError, match="refuses") as caught:
            tracker.read(spec_of(run_id))
        assert set(descendants()) == before
    assert caught.value.permanent


# -- keys, and other people's variables ------------------------------------------------------------------


def test_a_wrong_key_is_permanent_and_no_key_gets_into_errors_or_logs(
    server: WandbServer, spec: ModelSpec, tmp_path: Path
) -> None:
    wrong = "f00dfeed" * 5
    server.fault("RunResumeStatus", status=401, message=f"not logged in with {server.key}")
    with wandb_on(server, tmp_path, key=wrong) as tracker, pytest.raises(TrackerError) as caught:
        tracker.read(spec)
    with wandb_on(server, tmp_path) as tracker, pytest.raises(TrackerError) as echoed:
        deliver(tracker, spec, points_of(100))
    for error in (caught.value, echoed.value):
        assert "wandb login" in str(error)
        assert error.permanent
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    for key in (wrong, server.key):
        assert key not in str(caught.value) + str(echoed.value)
        assert key.encode() not in written


def test_no_key_at_all_is_permanent_and_asks_nobody(
    server: WandbServer, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    with wandb_on(server, tmp_path) as tracker:
        monkeypatch.delenv("WANDB_API_KEY")
        with pytest.raises(TrackerError, match="wandb login") as caught:
            tracker.read(spec)
    assert caught.value.permanent


def test_variables_of_a_training_around_us_do_not_reach_our_runs(
    server: WandbServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    around = {
        "RUN_ID": "training",
        "RUN_GROUP": "sft",
        "MODE": "disabled",
        "RESUME": "never",
        "JOB_TYPE": "train",
    }
    for name, value in {**around, "NAME": "sft run", "TAGS": "a,b", "DIR": str(tmp_path / "theirs")}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    spec = spec_of("eval-around", group=None)
    with wandb_on(server, tmp_path) as tracker:
        deliver(tracker, spec, points_of(100))
        run = server.run("eval-around")
        assert (run.points, run.group, run.job_type, run.name) == ([(100, 100)], None, "eval", spec.run_name)
    assert not (tmp_path / "theirs").exists()
    assert not list(tmp_path.glob("eval-sidecar-wandb-*"))


def test_a_client_that_is_not_installed_is_permanent_and_the_extra_is_named(
    server: WandbServer, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "wandb.py").write_text("raise ImportError('No module named wandb')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "without"))
    with (
        wandb_on(server, tmp_path) as tracker,
        pytest.raises(TrackerError, match=r"pip install .+\[wandb\]'?, or add --disable-wandb") as caught,
    ):
        tracker.read(spec)
    assert caught.value.permanent


# -- the worker ------------------------------------------------------------------------------------------


def test_a_server_that_hangs_costs_the_deadline_and_leaves_no_process_and_the_next_call_works(
    server: WandbServer, spec: ModelSpec, tmp_path: Path
) -> None:
    before = set(descendants())
    with wandb_on(server, tmp_path, send_deadline=1.5) as tracker:
        view = tracker.read(spec)
        mine = set(descendants()) - before
        server.fault("file_stream", action="hang")
        with pytest.raises(TrackerError, match=r"no answer in 1\.5 s.*outcome unknown.*wandb\.log") as caught:
            tracker.send(session_of(spec, view, points_of(100)))
        assert len(mine) >= 2
        assert still_running(mine) == []
        assert not caught.value.permanent
        server.heal()
        assert tracker.read(spec).exists


def test_a_worker_that_dies_is_an_unknown_outcome_and_the_next_call_works(
    server: WandbServer, spec: ModelSpec, tmp_path: Path
) -> None:
    before = set(descendants())
    with wandb_on(server, tmp_path) as tracker:
        view = tracker.read(spec)
        mine = set(descendants()) - before
        server.fault("file_stream", action="hang")
        failures: list[TrackerError] = []

        def send() -> None:
            try:
                tracker.send(session_of(spec, view, points_of(100)))
            except TrackerError as error:
                failures.append(error)

        thread = threading.Thread(target=send)
        thread.start()
        next(process for process in mine if "python" in process.name()).kill()
        thread.join()
        assert "ended before it answered" in str(failures[0])
        assert still_running(mine) == []
        server.heal()
        assert tracker.read(spec).last_index in (-1, 100)


def test_nothing_survives_a_parent_that_is_killed(server: WandbServer, tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from tracking import *\n"
        "class Here: url, key = sys.argv[1:3]\n"
        "with wandb_on(Here, Path(sys.argv[3])) as tracker:\n"
        "    tracker.read(spec_of('eval-orphan'))\n"
        "    print(*[process.pid for process in descendants()], flush=True)\n"
        "    sys.stdin.read()\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script, server.url, server.key, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout and parent.stdin
    processes = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(processes) >= 2
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert still_running(processes) == []
    parent.stdin.close()
    parent.stdout.close()


def test_closing_leaves_no_process_and_can_be_repeated(
    server: WandbServer, spec: ModelSpec, tmp_path: Path
) -> None:
    before = set(descendants())
    with wandb_on(server, tmp_path) as tracker:
        tracker.read(spec)
        mine = set(descendants()) - before
        assert mine
        tracker.close()
        assert still_running(mine) == []
        tracker.close()


def test_what_sessions_leave_on_this_machine_goes_with_the_worker(
    server: WandbServer, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with wandb_on(server, tmp_path) as tracker:
        deliver(tracker, spec, points_of(100))
        deliver(tracker, spec, points_of(200), points_of(100))
        assert list((tmp_path / "tmp").glob("eval-sidecar-wandb-*/**/*.table.json")), (
            "the client has left some"
        )
    left = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [tmp_path / "wandb.log"]
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_worker_that_has_done_much_is_replaced(
    server: WandbServer, spec: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("eval_sidecar.trackers.wandb_client._WORN", 2)
    before = set(descendants())
    with wandb_on(server, tmp_path) as tracker:
        tracker.read(spec)
        first = set(descendants()) - before
        tracker.read(spec)
        assert set(descendants()) - before == first
        tracker.read(spec)
        assert still_running(first) == []


def test_a_log_that_is_full_is_set_aside_while_the_client_goes_on(
    server: WandbServer, spec: ModelSpec, tmp_path: Path
) -> None:
    log = tmp_path / "wandb.log"
    with wandb_on(server, tmp_path) as tracker:
        tracker.read(spec)
        os.truncate(log, FULL)
        server.fault("RunResumeStatus", status=401, message="not logged in")
        with pytest.raises(TrackerError):
            deliver(tracker, spec, points_of(100))
    assert (tmp_path / "wandb.log.1").stat().st_size >= FULL
    assert 0 < log.stat().st_size < FULL


# -- offline -----------------------------------------------------------------------------------------------


def test_an_offline_session_is_kept_in_the_folder_it_names_and_no_server_is_asked(
    server: WandbServer, spec: ModelSpec, tmp_path: Path
) -> None:
    asked = sum(server.requests.values())
    with wandb_on(server, tmp_path, mode="offline") as tracker:
        with pytest.raises(ReadBackUnsupported, match="offline"):
            tracker.read(spec)
        where = Path(tracker.send(session_of(spec, None, points_of(100, 200))).where)
        (transaction_log,) = where.glob("*.wandb")
        # Before the client is stopped: what is not on disk by now would be lost with it.
        assert b"checkpoint-200" in transaction_log.read_bytes()
    assert where.parent == tmp_path / "offline" / "wandb"
    assert sum(server.requests.values()) == asked


def test_sessions_never_share_the_settings_that_the_client_writes_a_runs_id_into() -> None:
    client = wandb_worker.Client({"init": 5, "request": 5, "retries": 1, "retry_wait": 1})
    assert client.settings() is not client.settings()
    assert client.settings().run_id is None
    given = []
    client.wandb = SimpleNamespace(Settings=client.wandb.Settings, init=lambda **words: given.append(words))
    request = {"project": "p", "entity": None, "run_id": "eval-1", "mode": "offline"}
    wandb_worker._open(client, request, "a")
    wandb_worker._open(client, {**request, "run_id": "eval-2"}, "b")
    assert given[0]["settings"] is not given[1]["settings"]
