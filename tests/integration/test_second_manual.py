"""The commands of the second manual, as written there, from the training machine to the server."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from toolbox import CHECKOUT, Repository, assert_refused, wait_until

pytest.importorskip("wandb")
from wandb_server import WandbServer

pytestmark = pytest.mark.wandb

PREPARE = """python eval_wandb_sidecar.py prepare-manifest \\
  --results-root ./results \\
  --output-manifest ./results/.wandb_eval_manifest.json \\
  --default-project MIMIGenRec-Eval \\
  --run-id-prefix eval"""
PREPARE_WITH_OVERRIDES = """python eval_wandb_sidecar.py prepare-manifest \\
  --results-root ./results \\
  --output-manifest ./results/.wandb_eval_manifest.json \\
  --overrides ./config/wandb_eval_manifest_overrides.json"""
PACK = "bash scripts/sync_results_from_remote.sh pack"
UNPACK = "bash scripts/sync_results_from_remote.sh unpack {carried}/result*.tar.gz"
ONCE = """PYTHON_BIN=python bash eval_wandb_sidecar.sh once \\
  --results-root ./results \\
  --manifest-path ./results/.wandb_eval_manifest.json \\
  --wandb-mode online"""
START = """PYTHON_BIN=python bash eval_wandb_sidecar.sh start --instance eval_uploader \\
  --results-root ./results \\
  --manifest-path ./results/.wandb_eval_manifest.json \\
  --wandb-mode online"""
STATUS = "bash eval_wandb_sidecar.sh status --instance eval_uploader"
TAIL = "bash eval_wandb_sidecar.sh tail --instance eval_uploader"
STOP = "bash eval_wandb_sidecar.sh stop --instance eval_uploader"
FILTERED = """PYTHON_BIN=python bash eval_wandb_sidecar.sh once \\
  --results-root ./results \\
  --manifest-path ./results/.wandb_eval_manifest.json \\
  --model-filter Instruments-grec-sft-qwen4B-4-256-dsz0"""

#: Run ids that the real scripts gave to models of these names.
RUNS = {
    "Instruments-grec-sft-qwen4B-4-256-dsz0": "eval-6f32f92220e8b11cb516",
    "Instruments-grec-sft-qwen4B-4-128-dsz0": "eval-ff951b81a682b4e0945e",
    "Games-grec-sft-qwen4B-4-256-dsz0": "eval-b7617f0919dff467a6e8",
}
FIRST, SECOND = list(RUNS)[:2]


def machine(folder: Path) -> Repository:
    made = Repository(folder)
    (made.root / "scripts").mkdir()
    shutil.copy(CHECKOUT / "scripts/sync_results_from_remote.sh", made.root / "scripts")
    (made.root / "config").mkdir()
    return made


def write(repository: Repository, model: str, step: int, value: float) -> None:
    folder = repository.root / "results" / model / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps({"HR@10": value, "NDCG@10": value / 2}))
    (folder / "final_result.json").write_text("[]")


def run(repository: Repository, line: str) -> str:
    done = repository.type(line)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


@pytest.fixture
def remote(tmp_path: Path) -> Iterator[Repository]:
    """The training machine, with results of three models and no internet."""
    made = machine(tmp_path / "remote" / "GenRec")
    for place, model in enumerate(RUNS):
        for step in (100, 200):
            write(made, model, step, (place + 1) * step / 10_000)
    yield made
    made.clean_up()


@pytest.fixture
def local(tmp_path: Path, server: WandbServer) -> Iterator[Repository]:
    """The machine with internet."""
    made = machine(tmp_path / "local" / "GenRec")
    made.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    yield made
    made.clean_up()


def carry(remote: Repository, local: Repository) -> Path:
    carried = local.root.parent / "carried"
    carried.mkdir(exist_ok=True)
    for archive in remote.root.glob("results_sync_*"):
        shutil.move(str(archive), carried / archive.name)
    return carried


def points(server: WandbServer) -> dict[str, list[tuple[int, float]]]:
    return {
        run_id: [(row["checkpoint_step"], row["eval/HR@10"]) for row in found.rows]
        for (_, _, run_id), found in server.runs.items()
    }


def test_results_come_from_the_training_machine_to_the_server_each_point_once(
    remote: Repository, local: Repository, server: WandbServer
) -> None:
    run(remote, PREPARE)
    run(remote, PACK)
    run(local, UNPACK.format(carried=carry(remote, local)))
    run(local, ONCE)
    expected = {
        run_id: [(100, pytest.approx((place + 1) / 100)), (200, pytest.approx((place + 1) / 50))]
        for place, run_id in enumerate(RUNS.values())
    }
    assert points(server) == expected
    assert not list(local.root.rglob("final_result.json"))

    sessions = server.requests["UpsertBucket"]
    assert "nothing new" in run(local, ONCE)
    shutil.rmtree(local.root / "state")
    assert "2 already there" in run(local, ONCE)
    assert points(server) == expected
    assert server.requests["UpsertBucket"] == sessions


def test_a_pass_says_what_it_took_and_what_it_sent_again(local: Repository, server: WandbServer) -> None:
    write(local, FIRST, 100, 0.1)
    write(local, FIRST, 200, 0.2)
    run(local, PREPARE)
    assert f"{FIRST}: new results: 2" in run(local, f"{ONCE} --disable-wandb")
    assert f"{FIRST}: nothing new" in run(local, f"{ONCE} --disable-wandb")
    server.fault("CreateArtifact", status=403)
    assert local.type(ONCE).returncode == 1  # the points are there, their table is not
    server.heal()
    assert f"{FIRST}: table sent" in run(local, ONCE)
    assert f"{FIRST}: nothing new" in run(local, ONCE)


def test_a_late_checkpoint_is_carried_alone_and_arrives_at_its_place(
    remote: Repository, local: Repository, server: WandbServer
) -> None:
    run(remote, PACK)
    run(local, UNPACK.format(carried=carry(remote, local)))
    run(local, ONCE)
    shutil.copy(local.root / "results/.wandb_eval_receipt.json", remote.root / "results")
    write(remote, FIRST, 150, 0.5)
    run(remote, f"{PACK} --incremental")
    carried = carry(remote, local)
    newest = max(carried.iterdir(), key=lambda path: path.stat().st_mtime_ns)
    run(local, f"bash scripts/sync_results_from_remote.sh unpack {newest}")
    assert "1 sent, 1 confirmed" in run(local, ONCE)
    found = server.run(RUNS[FIRST])
    assert [(row["_step"], row["checkpoint_step"]) for row in found.rows] == [
        (100, 100),
        (200, 200),
        (201, 150),
    ]
    assert (found.summary["best_step_for_hr@10"], found.summary["last_step"]) == (150, 200)


def test_a_receipt_that_is_older_than_the_ledgers_is_not_believed(
    local: Repository, server: WandbServer
) -> None:
    receipt = local.root / "results/.wandb_eval_receipt.json"
    write(local, FIRST, 100, 0.1)
    write(local, SECOND, 100, 0.2)
    run(local, PREPARE)
    run(local, ONCE)
    older = receipt.read_text()
    write(local, FIRST, 200, 0.2)
    run(local, ONCE)
    newest = json.loads(receipt.read_text())["models"]
    assert list(newest[FIRST]["confirmed"]) == ["100", "200"]
    receipt.write_text(older)  # carried to the other machine before, and back with its results
    assert "nothing new" in run(local, ONCE)
    assert json.loads(receipt.read_text())["models"] == newest
    receipt.unlink()
    run(local, ONCE)
    assert json.loads(receipt.read_text())["models"] == newest


def test_an_uploader_in_the_background_brings_what_comes(local: Repository, server: WandbServer) -> None:
    write(local, FIRST, 100, 0.1)
    run(local, PREPARE)
    run(local, START)
    wait_until(lambda: points(server).get(RUNS[FIRST]) == [(100, 0.1)], "the first point")
    write(local, SECOND, 100, 0.2)
    run(local, PREPARE)
    wait_until(lambda: points(server).get(RUNS[SECOND]) == [(100, 0.2)], "a model that came later")
    wait_until(lambda: "HR@10 0.2000 at 100" in run(local, STATUS), "its best in the status")
    tail = local.spawn("bash", "-c", TAIL)
    wait_until(lambda: f"{SECOND}: 1 sent, 1 confirmed" in tail.output, "the log")
    run(local, STOP)
    assert tail.wait() == 0
    assert local.type(STATUS).returncode == 3


def test_an_uploader_outlives_a_manifest_and_a_receipt_that_cannot_be_used(
    local: Repository, server: WandbServer
) -> None:
    manifest = local.root / "results/.wandb_eval_manifest.json"
    write(local, FIRST, 100, 0.1)
    run(local, PREPARE)
    (local.root / "results/.wandb_eval_receipt.json").mkdir()  # where a receipt should go
    run(local, f"{START} --poll-interval-seconds 0.2")
    wait_until(lambda: points(server).get(RUNS[FIRST]) == [(100, 0.1)], "the first point")
    write(local, SECOND, 100, 0.2)
    manifest.unlink()
    manifest.symlink_to(manifest)  # for a while the disk says nothing about it
    (log,) = local.manager.glob("*.log")
    wait_until(lambda: "the manifest that was read before stays in use" in log.read_text(), "the log")
    manifest.unlink()
    run(local, PREPARE)
    wait_until(lambda: points(server).get(RUNS[SECOND]) == [(100, 0.2)], "the second model's point")
    run(local, STOP)
    once = local.type(ONCE)
    (left,) = (line for line in once.stderr.splitlines() if line.startswith("NOT DONE"))
    assert once.returncode == 1 and "wandb_eval_receipt.json: cannot be written" in left
    (local.root / "results/.wandb_eval_receipt.json").rmdir()
    run(local, ONCE)
    assert (local.root / "results/.wandb_eval_receipt.json").is_file()


def test_an_idle_uploader_keeps_no_client_running(local: Repository, server: WandbServer) -> None:
    write(local, FIRST, 100, 0.1)
    run(local, PREPARE)
    run(local, f"{START} --poll-interval-seconds 0.2")
    (pid_file,) = local.manager.glob("*.pid")
    uploader = psutil.Process(int(pid_file.read_text()))
    wait_until(lambda: points(server).get(RUNS[FIRST]) == [(100, 0.1)], "the first point")
    wait_until(lambda: not uploader.children(recursive=True), "the client to be closed")
    write(local, FIRST, 200, 0.2)
    wait_until(lambda: points(server).get(RUNS[FIRST]) == [(100, 0.1), (200, 0.2)], "the second point")
    run(local, STOP)


def test_a_filter_uploads_one_model(remote: Repository, server: WandbServer) -> None:
    remote.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    run(remote, PREPARE)
    run(remote, FILTERED)
    assert list(points(server)) == [RUNS[FIRST]]
    wrong = remote.type(FILTERED.replace("4-256", "4-265"))
    assert_refused(wrong, "Instruments-grec-sft-qwen4B-4-265-dsz0", FIRST)


def test_overrides_choose_the_run(remote: Repository, server: WandbServer) -> None:
    remote.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    overrides = remote.root / "config/wandb_eval_manifest_overrides.json"
    overrides.write_text(json.dumps({"models": {FIRST: {"wandb_run_id": "mine", "num_train_epochs": 2}}}))
    run(remote, PREPARE_WITH_OVERRIDES)
    run(remote, FILTERED)
    rows = server.run("mine").rows
    assert [(row["checkpoint_index"], row["epoch_progress"]) for row in rows] == [(1, 1.0), (2, 2.0)]
    overrides.write_text(json.dumps({"models": {FIRST: {"wandb_run_idd": "mine"}}}))
    assert_refused(remote.type(PREPARE_WITH_OVERRIDES), "wandb_run_idd", "wandb_run_id")


def test_verify_names_what_differs_and_repairs_it(local: Repository, server: WandbServer) -> None:
    write(local, FIRST, 100, 0.1)
    write(local, FIRST, 200, 0.2)
    run(local, PREPARE)
    run(local, ONCE)
    verify = "python eval_wandb_sidecar.py verify"
    assert f"{FIRST}: 2 confirmed" in run(local, verify)
    found = server.run(RUNS[FIRST])
    found.lines[0] = json.dumps({"_step": 100, "overwritten": 1})
    lacking = local.type(verify)
    assert lacking.returncode == 1
    assert "1 missing on the server: 100" in lacking.stdout
    run(local, f"{verify} --repair")
    shown = [row["checkpoint_step"] for row in found.rows if "checkpoint_step" in row]
    assert shown == [200, 100]
    assert f"{FIRST}: 2 confirmed" in run(local, verify)


def test_a_deleted_run_fails_alone_and_the_exit_code_tells(remote: Repository, server: WandbServer) -> None:
    remote.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    run(remote, PREPARE)
    run(remote, FILTERED)
    server.delete(RUNS[FIRST])
    shutil.rmtree(remote.root / "state")
    done = remote.type(ONCE)
    assert done.returncode == 1
    assert set(points(server)) >= set(list(RUNS.values())[1:]), done.stdout + done.stderr
    assert FIRST in done.stderr.splitlines()[-1] and "was deleted" in done.stderr.splitlines()[-1]


def test_a_model_watched_online_and_uploaded_later_goes_on_in_the_same_run(
    local: Repository, server: WandbServer
) -> None:
    local.checkpoint(100)
    flags = [flag for flag in local.flags if flag != "--disable-wandb"]
    watched = local.sidecar("once", *flags)
    assert watched.returncode == 0, watched.stderr
    metrics = local.results / "checkpoint-200" / "metrics.json"
    metrics.parent.mkdir()
    metrics.write_text('{"HR@10": 0.7}')
    run(local, PREPARE)
    assert "1 sent, 1 confirmed, 1 already there" in run(local, ONCE)
    assert len(server.runs) == 1
