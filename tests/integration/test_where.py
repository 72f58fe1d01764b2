"""Where points go, and what is wrong with it: said once, whatever the number of models."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from urllib.parse import urlsplit

import pytest

from toolbox import Repository, wait_until

pytest.importorskip("wandb")
from wandb_server import WandbServer

pytestmark = pytest.mark.wandb

MODELS = 16
#: Nobody listens there.
NOWHERE = "http://127.0.0.1:9"


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


@pytest.fixture
def local(plain_repository: Repository, server: WandbServer) -> Repository:
    """A machine with an account at the server."""
    plain_repository.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    return plain_repository


def upload(repository: Repository, models: int = MODELS) -> subprocess.CompletedProcess[str]:
    """Upload results of two checkpoints of each of so many models."""
    for model in range(models):
        for step in (100, 200):
            folder = repository.root / f"results/m{model:02}-sft-qwen/checkpoint-{step}"
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "metrics.json").write_text(json.dumps({"HR@10": step / 1000 + model}))
    repository.execute("python", "eval_wandb_sidecar.py", "prepare-manifest", "--results-root", "results")
    return repository.sidecar("once", "--results-root", "results", "--confirm-seconds", "5")


def troubles(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if line.startswith("NOT DONE")]


@pytest.mark.parametrize(
    ("variables", "fault", "words"),
    [
        ({"WANDB_API_KEY": ""}, {}, "no W&B API key"),
        ({"WANDB_API_KEY": "f" * 40}, {}, "does not accept the API key"),
        ({"WANDB_BASE_URL": NOWHERE}, {}, f"no answer from {NOWHERE}"),
        ({}, {"kind": "*", "status": 500}, "no answer from"),
        (
            {},
            {"kind": "UpsertBucket", "status": 404, "message": "project not found"},
            "entity or project of MIMIGenRec-Eval not found",
        ),
    ],
    ids=["no key", "wrong key", "unreachable", "HTTP 500", "no project"],
)
def test_one_cause_is_one_line_for_sixteen_models(local, server, variables, fault, words):
    local.extra.update(variables)
    if fault:
        server.fault(**fault)
    done = upload(local)
    assert done.returncode == 1 and not done.stdout
    (line,) = troubles(done)
    assert f"all {MODELS} models: {2 * MODELS} points not delivered: " in line and words in line
    assert "eval-" not in line  # no run's own name: the next one's would differ


def test_an_upload_ends_with_totals_and_the_address_and_then_has_one_line(local, server):
    done = upload(local, 3)
    assert done.returncode == 0, done.stderr
    address = f"W&B          3 runs: {server.url}/team/MIMIGenRec-Eval"
    *models, total, last = done.stdout.splitlines()
    assert models == [f"m{n:02}-sft-qwen: 2 sent, 2 confirmed" for n in range(3)]
    assert total == "total        3 models: 6 sent, 6 confirmed" and last == address
    assert upload(local, 3).stdout.splitlines() == ["3 models: nothing new", address]


def test_what_goes_wrong_with_one_model_names_it_beside_the_others(local, server):
    upload(local, 2)
    (local.root / "results/m01-sft-qwen/checkpoint-100/metrics.json").write_text("{")
    done = upload_again(local)
    assert done.stdout.splitlines()[0] == "m00-sft-qwen: nothing new"
    (line,) = troubles(done)
    assert line.startswith("NOT DONE     m01-sft-qwen: checkpoint-100: ")


def upload_again(repository: Repository) -> subprocess.CompletedProcess[str]:
    return repository.sidecar("once", "--results-root", "results", "--confirm-seconds", "5")


def start(repository: Repository, *arguments: str) -> str:
    flags = [flag for flag in repository.flags if flag != "--disable-wandb"]
    quick = ("--poll-interval-seconds", "0.5", "--confirm-seconds", "5")
    done = repository.sidecar("start", "--instance", "cb64", *flags, *quick, *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


def test_a_start_ends_with_the_address_of_the_run_before_there_is_a_point(local, server):
    last = start(local)
    run_id = local.status()["models"][0]["run_id"]
    assert last == f"W&B: {server.url}/team/MIMIGenRec-Eval/runs/{run_id}"
    local.checkpoint(100)
    run = wait_until(lambda: next(iter(server.runs.values()), None), "the run")
    wait_until(lambda: run.rows, "the point")
    assert run.run_id == run_id and f"/team/MIMIGenRec-Eval/runs/{run_id}" in last


@pytest.mark.parametrize(
    ("arguments", "variables", "words"),
    [
        ((), {"WANDB_API_KEY": "f" * 40}, "does not accept the API key"),
        (("--disable-wandb",), {}, "W&B: off (--disable-wandb)"),
        (("--wandb-mode", "offline"), {}, "W&B: offline"),
    ],
)
def test_a_start_without_the_server_ends_with_the_reason(local, arguments, variables, words):
    local.extra.update(variables)
    assert words in start(local, *arguments)


def log_in(repository: Repository, server: WandbServer) -> None:
    """Write what `wandb login` does."""
    path = repository.home / ".netrc"
    path.write_text(f"machine {urlsplit(server.url).hostname}\n  login user\n  password {server.key}\n")
    path.chmod(0o600)


def delivered_steps(server: WandbServer) -> list[int]:
    return [row["checkpoint_step"] for run in server.runs.values() for row in run.rows]


def test_a_key_that_comes_later_is_found_and_every_point_is_there_once(local, server):
    del local.extra["WANDB_API_KEY"]
    local.checkpoint(100)
    assert "offline: no key (`wandb login`" in start(local)
    offline = local.root / "wandb"
    wait_until(lambda: offline.is_dir() and local.status()["models"][0]["unconfirmed"] == 1, "the session")
    assert not server.runs
    log_in(local, server)
    wait_until(lambda: delivered_steps(server) == [100], "the point that was written offline")
    local.checkpoint(200)
    wait_until(lambda: delivered_steps(server) == [100, 200], "the next point")
    wait_until(lambda: local.status()["models"][0]["unconfirmed"] == 0, "the confirmation")
    assert server.url in local.status()["models"][0]["where"]
    assert len(list(offline.glob("offline-run-*"))) == 1
    said = (local.manager / "cb64.log").read_text()
    assert "a W&B key was found: online from now on" in said and "do not `wandb sync` them too" in said


def test_a_key_that_comes_later_changes_nothing_if_offline_was_asked_for(local, server):
    del local.extra["WANDB_API_KEY"]
    start(local, "--wandb-mode", "offline")
    log_in(local, server)
    local.checkpoint(100)
    wait_until(lambda: local.status()["models"][0]["unconfirmed"] == 1, "the session")
    assert not server.requests


def test_a_key_that_was_missing_is_tried_at_the_next_pass(local, server):
    del local.extra["WANDB_API_KEY"]
    local.checkpoint(100)
    assert "no W&B API key" in start(local, "--wandb-mode", "online")
    log_in(local, server)
    wait_until(lambda: delivered_steps(server) == [100], "the point")
