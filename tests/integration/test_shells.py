"""What people's shells, folders and names do to a delivery: said at the start, or without effect."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox import Repository, assert_refused

pytest.importorskip("wandb")
from wandb_server import WandbServer
from wandb_store import Run

pytestmark = pytest.mark.wandb
MODEL = "Games-sft-qwen4B-4-64-dsz0"
ONCE = ("once", "--results-root", "results")
VERIFY = ("python", "eval_wandb_sidecar.py", "verify")

#: What a training in the same shell may have exported for its own run.
TRAINING = {
    "WANDB_RUN_ID": "training",
    "WANDB_RESUME": "must",
    "WANDB_NAME": "training",
    "WANDB_RUN_GROUP": "training",
    "WANDB_JOB_TYPE": "training",
    "WANDB_TAGS": "training",
    "WANDB_NOTES": "training",
    "WANDB_SWEEP_ID": "training",
    "WANDB_DIR": "elsewhere",
    "WANDB_RUN_DIR": "elsewhere",
    "WANDB_SERVICE": "2-1-tcp-localhost-1",
    "WANDB_START_METHOD": "thread",
    "WANDB_SILENT": "false",
    "WANDB_CONSOLE": "wrap",
    "WANDB_DISABLED": "true",
    "WANDB_CONFIG_PATHS": "config-defaults.yaml",
    "WANDB_PROGRAM": "train.py",
    "WANDB_INIT_TIMEOUT": "x",
    "WANDB_X_PRIMARY": "no",
    "WANDB_WATCH": "all",
    "WANDB_LOG_MODEL": "end",
}


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as running:
        yield running


@pytest.fixture
def local(tmp_path: Path, server: WandbServer) -> Iterator[Repository]:
    made = Repository(tmp_path / "GenRec", model=MODEL)
    made.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    path = made.metrics(100)
    path.parent.mkdir(parents=True)
    path.write_text('{"HR@10": 0.5}')
    assert made.execute("python", "eval_wandb_sidecar.py", "prepare-manifest").returncode == 0
    yield made
    made.clean_up()


def watch(repository: Repository, *flags: str, **env: str) -> tuple[int, str]:
    without = [flag for flag in repository.flags if flag != "--disable-wandb"]
    done = repository.sidecar("once", *without, *flags, env=env)
    return done.returncode, done.stdout + done.stderr


def test_what_a_training_has_exported_for_its_own_run_changes_nothing(
    local: Repository, server: WandbServer
) -> None:
    (local.root / "config-defaults.yaml").write_text("lr:\n  value: 1\n")
    done = local.sidecar(*ONCE, env=TRAINING)
    assert done.returncode == 0, done.stdout + done.stderr
    local.checkpoint(100)
    code, said = watch(local, **TRAINING)
    assert code == 0, said
    for run in server.runs.values():
        assert (run.name, run.group, run.job_type) == (f"{MODEL}-eval", None, "eval")
        assert len(run.rows) == 1
        assert "lr" not in run.config


def test_points_reach_a_run_of_the_trainings_own_and_nothing_else_of_it_changes(
    local: Repository, server: WandbServer
) -> None:
    run = Run("team", "MIMIGenRec-Eval", "training", name="my training", group="sft", job_type="train")
    run.raw_config, run.state = {"lr": {"value": 0.1}, "seed": {"value": 1}}, "finished"
    server.runs["team", "MIMIGenRec-Eval", "training"] = run
    for step in (100, 200):
        local.checkpoint(step)
        code, said = watch(local, "--wandb-run-id", "training")
        assert code == 0, said
    assert (run.name, run.group, run.job_type) == ("my training", "sft", "train")
    assert run.config == {"lr": 0.1, "seed": 1}
    assert [step for _, step in run.points] == [100, 200]


def test_paths_in_the_shell_may_be_relative_to_the_users_folder(
    local: Repository, server: WandbServer
) -> None:
    host = server.url.partition("//")[2]
    lines = [f"machine {name} login user password {server.key}\n" for name in (host, host.partition(":")[0])]
    (local.root / "my.netrc").write_text("".join(lines))
    (local.root / "my.netrc").chmod(0o600)
    local.extra.pop("WANDB_API_KEY")
    env = {"NETRC": "my.netrc", "PYTHONPATH": "src:", "WANDB_CONFIG_DIR": "my-config"}
    done = local.sidecar(*ONCE, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.runs) == 1


def test_the_server_and_the_key_of_wandb_login_are_used(local: Repository, server: WandbServer) -> None:
    login = ("python", "-m", "wandb", "login", "--host", server.url, server.key, "--no-verify")
    local.extra.pop("WANDB_API_KEY")
    assert local.execute(*login).returncode == 0
    local.checkpoint(100)
    local.extra.pop("WANDB_BASE_URL")
    code, said = watch(local)
    assert code == 0 and "offline" not in said, said
    done = local.sidecar(*ONCE)
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.runs) == 2 and server.key not in said + done.stdout + done.stderr


def test_variables_that_are_set_to_nothing_are_not_set(local: Repository, server: WandbServer) -> None:
    nothing = ("ENTITY", "PROJECT", "MODE", "DIR", "CONFIG_DIR", "HTTP_TIMEOUT", "INSECURE_DISABLE_SSL")
    done = local.sidecar(*ONCE, env={f"WANDB_{name}": "" for name in nothing})
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.runs) == 1


def test_a_key_from_a_file_may_have_a_line_end(local: Repository, server: WandbServer) -> None:
    done = local.sidecar(*ONCE, env={"WANDB_API_KEY": f"{server.key}\n"})
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_address_of_a_page_is_named_as_the_cause(local: Repository, server: WandbServer) -> None:
    done = local.sidecar(*ONCE, env={"WANDB_BASE_URL": f"{server.url}/team/project"})
    assert done.returncode == 1
    assert "check WANDB_BASE_URL" in done.stdout + done.stderr and "--wandb-entity" not in done.stderr


@pytest.mark.parametrize(
    ("mode", "runs"), [("offline", 0), ("disabled", 0), ("dryrun", 0), ("online", 1), ("run", 1)]
)
def test_uploading_hears_the_mode_of_the_shell(
    local: Repository, server: WandbServer, mode: str, runs: int
) -> None:
    done = local.sidecar(*ONCE, env={"WANDB_MODE": mode})
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(server.runs) == runs


def test_the_flag_is_stronger_than_the_shell_and_another_word_is_refused(
    local: Repository, server: WandbServer
) -> None:
    assert local.sidecar(*ONCE, "--wandb-mode", "online", env={"WANDB_MODE": "offline"}).returncode == 0
    assert len(server.runs) == 1
    assert_refused(local.execute(*VERIFY, env={"WANDB_MODE": "offline"}), "WANDB_MODE", "--wandb-mode online")
    assert_refused(local.sidecar(*ONCE, env={"WANDB_MODE": "on"}), "'on'", "WANDB_MODE")
    assert_refused(local.sidecar(*ONCE, "--wandb-resume", "maybe"), "'maybe'", "allow")


@pytest.mark.parametrize("command", ["offline", "disabled"])
def test_a_client_that_was_switched_off_in_this_folder_stays_off_until_it_is_switched_on(
    local: Repository, server: WandbServer, command: str
) -> None:
    assert local.execute("python", "-m", "wandb", command).returncode == 0
    local.checkpoint(100)
    for done in (local.sidecar(*ONCE), local.sidecar(*ONCE)):
        assert done.returncode == 0, done.stdout + done.stderr
        said = done.stdout + done.stderr
        assert f"wandb/settings, by `wandb {command}`)" in said and "--wandb-mode online turns it on" in said
    code, said = watch(local)
    assert code == 0 and f"by `wandb {command}`" in said
    assert_refused(local.execute(*VERIFY), f"by `wandb {command}`")
    assert not server.runs
    # What was sent offline is looked for, for as long as a server may take to show it.
    soon = ("--confirm-seconds", "1")
    assert local.sidecar(*ONCE, "--wandb-mode", "online", *soon).returncode == 0
    assert local.execute("python", "-m", "wandb", "enabled").returncode == 0
    code, said = watch(local, *soon)
    assert code == 0 and "turns it on" not in said, said
    assert server.runs


@pytest.mark.parametrize(
    ("address", "advice"),
    [
        ("localhost:8080", "set WANDB_BASE_URL=http://localhost:8080"),
        ("api.wandb.ai", "set WANDB_BASE_URL=https://api.wandb.ai"),
        ("//wandb.lab.org/x", "set WANDB_BASE_URL=https://wandb.lab.org/x"),
        ("ftp://wandb.lab.org", "set WANDB_BASE_URL=https://wandb.lab.org"),
        ("https://", "begins with https:// or http://"),
        ("https://wandb.ai", "is where W&B's pages are"),
        ('"http://127.0.0.1:8080"', "set WANDB_BASE_URL=http://127.0.0.1:8080,"),
        ("http://wandb lab", "is not the address"),
        ("http://host:port", "is not the address"),
    ],
)
def test_an_address_without_a_scheme_is_refused_at_the_start(
    local: Repository, address: str, advice: str
) -> None:
    local.checkpoint(200)
    assert_refused(local.sidecar(*ONCE, env={"WANDB_BASE_URL": address}), "WANDB_BASE_URL", advice)
    code, said = watch(local, WANDB_BASE_URL=address)
    assert code == 2 and advice in said and "Traceback" not in said
    assert local.calls == []


def test_a_server_that_does_not_answer_is_named_and_waited_for_in_words(local: Repository) -> None:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(8)
        address = f"http://127.0.0.1:{listening.getsockname()[1]}"
        done = local.sidecar(*ONCE, env={"WANDB_BASE_URL": address})
    assert done.returncode == 1
    assert f"no answer from {address}: check WANDB_BASE_URL" in done.stderr.splitlines()[-1]
    assert f"waiting for {address}" in done.stderr


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (("--wandb-project", "team/project"), ("--wandb-project 'team/project'", "--wandb-entity")),
        (("--wandb-project", "p" * 129), ("has 129 characters",)),
        (("--wandb-project", "100%"), ("holds %",)),
        (("--wandb-run-id", "a/b"), ("run id 'a/b'", "holds '/'")),
        (("--wandb-run-id", "r" * 129), ("has 129 characters",)),
        (("--wandb-run-id", " x"), ("blanks at an end",)),
        (("--wandb-entity", "team/project"), ("--wandb-entity 'team/project'",)),
    ],
)
def test_names_that_the_server_would_refuse_are_refused_before_anything_is_evaluated(
    local: Repository, flags: tuple[str, ...], words: tuple[str, ...]
) -> None:
    local.checkpoint(200)
    code, said = watch(local, *flags)
    assert code == 2, said
    assert all(word in said for word in words), said
    assert local.calls == []


def test_names_in_a_manifest_are_refused_before_anything_is_sent(
    local: Repository, server: WandbServer
) -> None:
    path = local.root / "results/.wandb_eval_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["models"][0].update(wandb_project="a#b", wandb_run_id="r" * 200)
    path.write_text(json.dumps(manifest))
    assert_refused(local.sidecar(*ONCE), "wandb_project in the manifest", "holds #", "has 200 characters")
    assert not server.runs
    assert local.sidecar(*ONCE, "--disable-wandb").returncode == 0


@pytest.mark.parametrize("name", ["模型" * 41 + "模", "m" * 251])
def test_a_long_name_of_a_model_is_evaluated_and_delivered(
    tmp_path: Path, server: WandbServer, name: str
) -> None:
    repository = Repository(tmp_path / "GenRec", model=name)
    repository.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
    try:
        repository.checkpoint(100)
        code, said = watch(repository)
        assert code == 0, said
        (run,) = server.runs.values()
        assert run.config["model_name"] == name and len(run.name or "") <= 128
        explained = repository.sidecar("explain", "--sft-root", str(repository.model_dir), "100")
        assert "HR@10 0.01" in explained.stdout
        assert repository.execute("python", "eval_wandb_sidecar.py", "prepare-manifest").returncode == 0
        assert repository.sidecar(*ONCE).returncode == 0
        assert len(run.rows) == 1 or len(server.runs) == 2
        assert repository.execute("python", "eval_wandb_sidecar.py", "pack").returncode == 0
    finally:
        repository.clean_up()
    assert all(len(os.fsencode(part)) <= 255 for path in tmp_path.rglob("*") for part in path.parts)
