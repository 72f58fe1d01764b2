"""The W&B key, and passwords of servers and proxies, stay out of everything that is written, shown or run."""

from __future__ import annotations

import base64
import gzip
import json
import os
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from eval_sidecar.errors import TrackerError
from toolbox import CHECKOUT, Repository, wait_until

pytest.importorskip("wandb")
from tracking import points_of, session_of, spec_of, wandb_on
from wandb_server import WandbServer

pytestmark = pytest.mark.wandb

KEY = "5ec7e7" * 7
ENCODED = base64.b64encode(f"api:{KEY}".encode()).decode()
PASSWORD = "pa55-w0rd-of-the-proxy"
SECRETS = (KEY, ENCODED, PASSWORD)


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer(key=KEY) as running:
        yield running


@pytest.fixture
def connected(repository: Repository, server: WandbServer) -> Repository:
    """A repository with W&B, whose temporary files are seen too."""
    temporary = repository.root / "tmp"
    temporary.mkdir()
    repository.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=KEY, TMPDIR=str(temporary))
    (repository.root / "scripts").mkdir()
    shutil.copy(CHECKOUT / "scripts/sync_results_from_remote.sh", repository.root / "scripts")
    # The evaluation script of the tests writes its environment down: that is its own affair.
    repository.script.write_text(repository.script.read_text().replace("env -0 >", ": >"))
    return repository


def found_in(text: str) -> list[str]:
    return [secret for secret in SECRETS if secret in text]


def leaks(root: Path) -> list[str]:
    """Every file below a folder whose name or content holds a secret, archives looked into."""
    found = []
    for folder, _, names in os.walk(root):
        for path in (Path(folder, name) for name in names):
            if path.is_symlink() or path.name == ".netrc":
                continue
            content = path.read_bytes()
            if content[:2] == b"\x1f\x8b":
                content = gzip.decompress(content)
            found += [str(path)] if found_in(f"{path} {content.decode('latin-1')}") else []
    return found


def command_lines(repository: Repository) -> dict[str, str]:
    """The arguments of every process that runs, by its name."""
    seen = {}
    for process in repository.processes():
        try:
            seen[process.name()] = " ".join(process.cmdline())
        except psutil.Error:
            continue
    return seen


def watching(repository: Repository) -> list[str]:
    flags = [*repository.flags, "--wandb-project", "P", "--poll-interval-seconds", "0.2"]
    flags.remove("--disable-wandb")
    return flags


def add_results(repository: Repository) -> None:
    repository.metrics(100).parent.mkdir(parents=True)
    repository.metrics(100).write_text(json.dumps({"HR@10": 0.5, "NDCG@10": 0.25}))
    done = repository.sidecar("prepare-manifest")
    assert done.returncode == 0, done.stderr


def test_an_instance_that_delivers_leaves_the_key_nowhere_and_nothing_for_everybody_to_change(
    connected: Repository, server: WandbServer
) -> None:
    connected.checkpoint(100)
    server.fault("UpsertBucket", action="hang")
    locks = connected.root / "tmp" / f"eval-sidecar-{os.getuid()}"
    locks.mkdir()
    locks.chmod(0o777)
    before = set(connected.root.rglob("*"))
    start = ["bash", "eval_wandb_sidecar.sh", "start", "--instance", "cb64", *watching(connected)]
    said = connected.type(f"umask 000; {shlex.join(start)}")
    assert said.returncode == 0, said.stderr
    wait_until(lambda: server.requests["UpsertBucket"], "a session to be opened")
    connected.checkpoint(200)
    connected.block(200)
    connected.wait_for_call(200)
    seen = command_lines(connected)
    assert any("wandb_worker" in line for line in seen.values()), seen
    assert {"bash", "wandb-core"} <= seen.keys()
    assert not found_in(str(seen))
    connected.release()
    server.heal()
    wait_until(lambda: connected.status()["models"][0]["evaluated"] == 2, "both results")
    wait_until(lambda: connected.status()["models"][0]["undelivered"] == 0, "delivery")
    written = [path for path in connected.root.rglob("*") if path not in before and not path.is_symlink()]
    ours = [path for path in written if "commands" not in path.parts]
    assert {"state", "log", "results", "cb64.pid", "cb64.json", "cb64.log"} <= {path.name for path in ours}
    # What the client keeps for itself is in a folder that nobody else can enter.
    hidden = [path for path in ours if path.name.startswith("eval-sidecar-wandb-")]
    assert hidden and {path.stat().st_mode & 0o777 for path in hidden} == {0o700}
    open_to_all = [path for path in ours if path.stat().st_mode & 0o002]
    assert [path for path in open_to_all if not {*hidden} & {*path.parents}] == []
    assert locks.stat().st_mode & 0o777 == 0o700 and list(locks.iterdir())
    tail = connected.spawn("bash", "eval_wandb_sidecar.sh", "tail", "--instance", "cb64")
    wait_until(lambda: "watching" in tail.output, "the log on the screen")
    assert connected.sidecar("stop", "--instance", "cb64").returncode == 0
    assert tail.wait() == 0
    for command in ("pack", "unpack"):
        done = connected.execute("bash", "scripts/sync_results_from_remote.sh", command)
        assert done.returncode == 0, done.stderr
    assert list(connected.root.glob("results_sync_*.tar.gz"))
    assert leaks(connected.root) == []


def test_an_offline_session_leaves_the_key_nowhere(connected: Repository) -> None:
    connected.checkpoint(100)
    done = connected.sidecar("once", *watching(connected), "--wandb-mode", "offline")
    assert done.returncode == 0, done.stderr
    assert list(connected.root.glob("wandb/offline-run-*/*.wandb"))
    assert leaks(connected.root) == []


def test_a_server_that_echoes_the_key_is_quoted_without_it(
    connected: Repository, server: WandbServer
) -> None:
    add_results(connected)
    del connected.extra["WANDB_API_KEY"]
    host = server.url.partition("://")[2]
    (connected.home / ".netrc").write_text(f"machine {host}\n  login user\n  password {KEY}\n")
    server.fault("*", status=403, message=f"refused: Authorization: Basic {ENCODED}, key {KEY}")
    done = connected.sidecar("once", "--results-root", "results")
    assert done.returncode == 1
    assert "***" in done.stderr
    assert not found_in(done.stdout + done.stderr)
    assert leaks(connected.root) == []


@pytest.mark.parametrize(
    ("address", "proxy", "retries", "words"),
    [
        ("http://me:{password}@{host}", "", 1, "http://***@127.0.0.1"),
        ("http://example.invalid", "http://me:{password}@{host}", 0, "not found"),
    ],
    ids=["a server that echoes", "a proxy that refuses"],
)
def test_a_failure_is_told_without_keys_and_passwords(
    tmp_path: Path,
    server: WandbServer,
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    proxy: str,
    retries: int,
    words: str,
) -> None:
    server.fault("*", status=500, message=f"Basic {ENCODED}, key {KEY}")
    with wandb_on(server, tmp_path, retries=retries) as tracker:
        places = {"password": PASSWORD, "host": server.url.partition("://")[2]}
        monkeypatch.setenv("WANDB_BASE_URL", address.format(**places))
        monkeypatch.setenv("HTTP_PROXY", proxy.format(**places))
        spec = spec_of("eval-1")
        for ask in (
            lambda: tracker.read(spec),
            lambda: tracker.send(session_of(spec, None, points_of(100))),
        ):
            with pytest.raises(TrackerError) as caught:
                ask()
            assert words in str(caught.value)
            assert not found_in(str(caught.value))
    assert leaks(tmp_path) == []


def test_an_evaluation_has_the_key_and_what_it_prints_stays_in_its_own_log(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.extra["WANDB_API_KEY"] = KEY
    repository.fail(100)
    # Long enough to be cut in the middle of the key.
    repository.hook(f'printf "%0180d{PASSWORD[:3]} $WANDB_API_KEY" 0 | tee /dev/stderr; echo; exit 7', 100)
    done = repository.once()
    assert done.returncode == 1 and "***" in done.stderr
    told = [done.stdout + done.stderr, repository.state_file.read_text()]
    for command in ("status", "explain"):
        flags = ["--sft-root", str(repository.model_dir), "100"] if command == "explain" else []
        told.append(repository.sidecar(command, *flags).stdout)
    assert KEY[:6] not in "".join(told)
    assert repository.seen_by_script(100)["WANDB_API_KEY"] == KEY
    log = repository.manager / "evaluations" / repository.model / "checkpoint-100.log"
    assert KEY in log.read_text()


def test_a_lock_folder_that_somebody_else_has_laid_out_is_not_used(
    connected: Repository, server: WandbServer
) -> None:
    add_results(connected)
    (connected.root / "trap").mkdir()
    folder = connected.root / "tmp" / f"eval-sidecar-{os.getuid()}"
    folder.symlink_to(connected.root / "trap")
    done = connected.sidecar("once", "--results-root", "results")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert str(folder) in line and "is not trusted" in line and "nothing was sent" in line
    assert (server.requests, list((connected.root / "trap").iterdir())) == ({}, [])
