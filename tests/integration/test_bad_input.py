"""Bad input gets one clear line and a non-zero exit, and nothing is lost."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Callable

import pytest

from toolbox import Repository, assert_refused

# -- what the command line names -----------------------------------------------------------------------

WRONG_FLAGS: dict[str, tuple[list[str], list[str]]] = {
    "sft-root a file": (["--sft-root", "evaluate_sft_3b.sh"], ["--sft-root", "is a file"]),
    "repo-root missing": (["--repo-root", "no where"], ["--repo-root", "no such folder"]),
    "script missing": (["--eval-script", "no.sh"], ["--eval-script", "no.sh", "no such file"]),
    "script a folder": (["--eval-script", "data"], ["--eval-script", "is not a file"]),
    "data missing": (["--test-data-path", "no.json"], ["--test-data-path", "no.json", "no such file"]),
    "index missing": (["--index-path", "no.json"], ["--index-path", "no.json", "no such file"]),
    "no GPU": (["--cuda-list", " "], ["--cuda-list ' ': name a GPU"]),
    "GPUs that do not divide": (["--gpus-per-eval", "3"], ["--gpus-per-eval 3", "does not divide"]),
    "no number": (["--num-beams", "many"], ["--num-beams", "many"]),
    "no size": (["--min-free-space", "much"], ["--min-free-space", "much"]),
    "unknown flag": (["--bogus"], ["--bogus", "--help"]),
    "unknown mode": (["--wandb-mode", "sometimes"], ["--wandb-mode", "sometimes"]),
}


@pytest.mark.parametrize(("flags", "words"), WRONG_FLAGS.values(), ids=WRONG_FLAGS.keys())
def test_a_wrong_flag_is_named(repository: Repository, flags: list[str], words: list[str]) -> None:
    repository.checkpoint(100)
    done = repository.once(*flags)
    assert_refused(done, *words)
    assert done.returncode == 2 and repository.calls == []


def test_a_checkpoint_is_no_sft_root(repository: Repository) -> None:
    path = repository.checkpoint(100)
    assert_refused(repository.once("--sft-root", str(path)), str(path), "is itself a checkpoint")


def test_a_missing_sft_root_is_asked_for(repository: Repository) -> None:
    done = repository.execute("python3", "eval_wandb_sidecar.py", "watch", "--disable-wandb")
    assert_refused(done, "--sft-root is missing")


def test_a_variable_of_the_wrong_form_is_named(repository: Repository) -> None:
    assert_refused(repository.once(env={"BATCH_SIZE": "many"}), "BATCH_SIZE", "many")


def test_an_unknown_command_is_refused_with_those_that_there_are(repository: Repository) -> None:
    assert_refused(repository.sidecar("begin"), "unknown command begin", "start", "once")
    assert_refused(repository.execute("python3", "eval_wandb_sidecar.py", "begin"), "begin", "--help")


def test_no_command_shows_the_commands(repository: Repository) -> None:
    done = repository.sidecar()
    assert done.returncode == 2 and "start" in done.stdout
    assert repository.sidecar("--help").returncode == 0


@pytest.fixture
def without_privileges(repository: Repository) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run ``once`` bound by the modes of files, which root is not."""
    prefix: list[str] = []
    if os.geteuid() == 0:
        # A new user namespace in which nobody is root: still the owner of the files, but no more than that.
        prefix = ["unshare", "--user"]
        if (
            not shutil.which("unshare")
            or subprocess.run([*prefix, "true"], capture_output=True, check=False).returncode
        ):
            pytest.skip("root is bound by no mode, and unshare --user does not work here")

    def once(*flags: str) -> subprocess.CompletedProcess[str]:
        return repository.execute(*prefix, "bash", "eval_wandb_sidecar.sh", "once", *repository.flags, *flags)

    return once


def test_a_file_that_may_not_be_read_is_named(
    repository: Repository, without_privileges: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    repository.checkpoint(100)
    (repository.root / "secret").touch(mode=0o000)
    for flag in ("--eval-script", "--test-data-path", "--index-path"):
        assert_refused(without_privileges(flag, "secret"), flag, "permission denied")
    assert repository.calls == []


def test_a_folder_of_results_that_may_not_be_written_is_named(
    repository: Repository, without_privileges: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    repository.checkpoint(100)
    (repository.root / "results").mkdir(mode=0o555)
    assert_refused(without_privileges(), str(repository.root / "results"), "Permission denied")
    assert repository.calls == []


def test_a_model_dir_that_may_not_be_written_is_evaluated_where_it_is(
    repository: Repository, without_privileges: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    repository.checkpoint(100)
    repository.model_dir.chmod(0o555)
    done = without_privileges()
    assert done.returncode == 0 and repository.processed == [100], done.stderr


def test_a_manager_dir_that_is_a_file_is_named(repository: Repository) -> None:
    (repository.root / "taken").touch()
    assert_refused(
        repository.sidecar("start", "--instance", "a", *repository.flags, env={"MANAGER_DIR": "taken"}),
        "taken",
    )


# -- what the evaluation leaves ------------------------------------------------------------------------


def assert_failed(repository: Repository, done: subprocess.CompletedProcess[str], *words: str) -> None:
    """Check that checkpoint-100 failed for this reason, in one last line, and 200 came out all right."""
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("NOT DONE")]
    assert len(lines) == 1 and lines[0] == done.stderr.splitlines()[-1]
    log = repository.manager / "evaluations" / repository.model / "checkpoint-100.log"
    for word in ("checkpoint-100", f"log: {log}", *words):
        assert word in lines[0]
    assert log.exists()
    assert repository.calls.count("checkpoint-100") == 2, "two attempts"
    assert repository.processed == [200]
    assert list(repository.state["failed_steps"]) == ["100"]


@pytest.fixture
def two_checkpoints(repository: Repository) -> Repository:
    repository.checkpoint(100)
    repository.checkpoint(200)
    return repository


def test_a_script_that_fails_is_reported_with_its_last_words(two_checkpoints: Repository) -> None:
    two_checkpoints.fail(100, "loading", "RuntimeError: CUDA out of memory")
    done = two_checkpoints.once()
    assert_failed(two_checkpoints, done, "ended with exit code 7", "CUDA out of memory")
    again = two_checkpoints.once()  # it stays failed, and that stays said
    assert_failed(two_checkpoints, again, "CUDA out of memory")


def test_a_script_that_writes_nothing_has_failed(two_checkpoints: Repository) -> None:
    two_checkpoints.hook("exit 0", 100)
    assert_failed(two_checkpoints, two_checkpoints.once(), "exit code 0, but wrote no", "metrics.json")


BAD_METRICS = {
    "empty": ("", "is empty"),
    "truncated": ('{"HR@10": 0.1, "NDCG', "not valid JSON"),
    "a list": ("[0.1]", "JSON list"),
    "without a number": ('{"model": "x", "ok": true}', "has no number"),
    "with NaN": ('{"HR@10": NaN}', "HR@10 (nan, not finite)"),
    "with infinity": ('{"HR@10": 1e999}', "HR@10 (inf, not finite)"),
    "binary": ("\\x00\\xff\\xfe", "metrics.json"),
}


def test_metrics_that_are_no_numbers_have_failed(repository: Repository) -> None:
    for step, (content, _) in enumerate(BAD_METRICS.values(), start=1):
        repository.checkpoint(step)
        repository.hook(f'mkdir -p "$result"; printf \'{content}\' >"$result/metrics.json"; exit 0', step)
    repository.checkpoint(100)
    done = repository.once("--cuda-list", "0 1 2 3 4 5 6 7", "--gpus-per-eval", "1")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("NOT DONE")]
    assert len(lines) == len(BAD_METRICS)
    for step, (line, (_, words)) in enumerate(zip(lines, BAD_METRICS.values()), start=1):
        assert f"checkpoint-{step}: " in line and words in line
        assert f"{repository.metrics(step)}: " in line and f"checkpoint-{step}.log" in line
    assert repository.processed == [100]


def test_bad_metrics_from_earlier_are_kept_aside_and_evaluated_again(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.metrics(100).parent.mkdir(parents=True)
    repository.metrics(100).write_text("{")
    done = repository.once()
    assert done.returncode == 0, done.stderr
    assert repository.processed == [100]
    kept = [path for path in repository.metrics(100).parent.iterdir() if path.read_text() == "{"]
    assert len(kept) == 1


def test_a_result_that_turns_bad_later_does_not_take_away_what_was_known(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.once()
    repository.metrics(100).write_text("")
    done = repository.once()
    assert str(repository.metrics(100)) in done.stderr and "is empty" in done.stderr
    assert repository.state["table_rows"][0]["HR@10"] == 0.01


# -- the state file ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", ["", '{"version": "two"}'])
def test_a_corrupt_state_file_is_kept_aside_and_nothing_is_evaluated_twice(
    repository: Repository, content: str
) -> None:
    repository.checkpoint(100)
    repository.once()
    path = repository.state_file
    path.write_text(content)
    assert_refused(repository.once(), str(path), "corrupt")
    kept = [other for other in path.parent.iterdir() if other.name.startswith(f"{path.name}.corrupt")]
    assert [other.read_text() for other in kept] == [content]
    assert repository.once().returncode == 0
    assert repository.processed == [100] and repository.calls == ["checkpoint-100"]
    assert kept[0].exists()


def test_a_state_file_of_a_newer_version_is_refused_and_left_as_it_is(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.once()
    path = repository.state_file
    path.write_text(json.dumps({**repository.state, "version": 99}))
    before = path.read_text()
    assert_refused(repository.once(), str(path), "version 99", "update eval-sidecar")
    explain = ("explain", "--sft-root", str(repository.model_dir), "100")
    assert_refused(repository.sidecar(*explain), "version 99")
    assert path.read_text() == before


def test_status_shows_a_state_file_that_cannot_be_read(repository: Repository) -> None:
    repository.start()
    repository.sidecar("stop", "--instance", "cb64")
    repository.state_file.write_text("{")
    done = repository.sidecar("status", "--instance", "cb64")
    assert done.returncode == 3 and "corrupt" in done.stdout
    assert repository.state_file.read_text() == "{"


# -- disks ---------------------------------------------------------------------------------------------


def test_results_that_cannot_be_written_are_noticed_before_anything_runs(repository: Repository) -> None:
    repository.checkpoint(100)
    (repository.root / "results").write_text("a file, where the folder should be")
    assert_refused(repository.once(), str(repository.root / "results"), "cannot be written")
    assert repository.calls == []


def test_a_state_folder_that_cannot_be_made_is_named(repository: Repository) -> None:
    (repository.root / "state").write_text("")
    assert_refused(repository.once(), str(repository.root / "state"))


def may_mount() -> bool:
    """Whether a private mount can be made here, one that nobody else sees and that ends by itself."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return False
    test = [unshare, "--user", "--map-root-user", "--mount", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return subprocess.run(test, capture_output=True, check=False).returncode == 0


@pytest.fixture
def privately(repository: Repository) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run shell lines that may mount something; ``once`` stands for the command with all its flags."""
    if not may_mount():
        pytest.skip("no private mounts here (unshare --user --mount)")

    def run(lines: str) -> subprocess.CompletedProcess[str]:
        once = 'once() { bash eval_wandb_sidecar.sh once "$@"; }\nset -- "$@"\n'
        argv = ("unshare", "--user", "--map-root-user", "--mount", "bash", "-euc", once + lines, "bash")
        return repository.execute(*argv, *repository.flags)

    return run


def test_read_only_results_are_noticed_before_anything_runs(
    repository: Repository, privately: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    repository.checkpoint(100)
    (repository.root / "results").mkdir()
    done = privately('mount --bind results results; mount -o remount,ro,bind results; once "$@"')
    assert_refused(done, str(repository.root / "results"), "Read-only file system")
    assert repository.calls == []


def test_a_full_disk_under_the_state_is_said_and_costs_no_result(
    repository: Repository, privately: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    repository.checkpoint(100)
    repository.hook("head -c 1000000 /dev/zero >state/fill 2>/dev/null || true", 100)
    (repository.root / "state").mkdir()
    done = privately(
        'mount -t tmpfs -o size=64k tmpfs state; code=0; once "$@" || code=$?; echo "FIRST $code";'
        ' rm state/fill; once "$@"; cp -r state kept'
    )
    assert "FIRST 1" in done.stdout, done.stdout + done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("eval-sidecar:")]
    assert "cannot be written (No space left on device)" in line
    assert "Traceback" not in done.stderr
    assert done.returncode == 0
    assert repository.calls == ["checkpoint-100"]
    (state,) = (repository.root / "kept/wandb_eval_sidecar").glob("*.json")
    assert json.loads(state.read_text())["processed_steps"] == [100]


def test_a_full_disk_under_the_results_is_a_failure_with_its_reason(
    repository: Repository, privately: Callable[[str], subprocess.CompletedProcess[str]]
) -> None:
    repository.checkpoint(100)
    (repository.root / "results").mkdir()
    repository.hook("head -c 1000000 /dev/zero >results/fill || exit 1", 100)
    done = privately('mount -t tmpfs -o size=64k tmpfs results; once "$@"')
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "NOT DONE" in done.stderr and "No space left on device" in done.stderr


# -- W&B -----------------------------------------------------------------------------------------------


@pytest.mark.wandb
def test_a_wrong_key_is_said_and_the_result_is_delivered_later(repository: Repository) -> None:
    from wandb_server import WandbServer

    repository.checkpoint(100)
    flags = [flag for flag in repository.flags if flag != "--disable-wandb"]
    with WandbServer() as server:
        env = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "0" * 40}
        done = repository.sidecar("once", *flags, "--wandb-mode", "online", env=env)
        assert done.returncode == 1 and "Traceback" not in done.stderr
        last = done.stderr.splitlines()[-1]
        assert last.startswith("NOT DONE") and "1 points not delivered: checkpoint-100" in last
        assert "key" in last
        env["WANDB_API_KEY"] = server.key
        assert repository.sidecar("once", *flags, env=env).returncode == 0
        assert [row["checkpoint_step"] for row in server.run(repository.state["run_id"]).rows] == [100]
    assert repository.calls == ["checkpoint-100"]


def test_results_of_other_models_are_not_touched(repository: Repository) -> None:
    other = repository.root / "results/other/checkpoint-100/metrics.json"
    other.parent.mkdir(parents=True)
    other.write_text("{")
    repository.checkpoint(100)
    assert repository.once().returncode == 0
    assert other.read_text() == "{" and Path(other.parent).exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("import os\nprint(os.environ)\n", "is Python"),
        ("#!/bin/bash\r\nexit 0\r\n", "Windows line ends (CRLF)"),
    ],
)
@pytest.mark.parametrize("command", ["once", "start"])
def test_an_evaluation_script_that_bash_cannot_run_is_refused_at_the_start(
    two_checkpoints: Repository, content: str, words: str, command: str
) -> None:
    two_checkpoints.script.write_bytes(content.encode())
    done = two_checkpoints.sidecar(command, "--instance", "x", *two_checkpoints.flags)
    assert done.returncode != 0
    assert f"--eval-script {two_checkpoints.script}: " in done.stderr and words in done.stderr


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("kill -9 $$", "the evaluation was killed by signal 9 (out of memory?)"),
        ("echo step 5; kill -9 $$", "killed by signal 9 (out of memory?): step 5"),
        ("bash -c 'kill -9 $$'; exit $?", "the evaluation was killed by signal 9 (out of memory?)"),
        ("kill -SEGV $$", "the evaluation was killed by signal 11 (SIGSEGV)"),
        ("exit 7", "ended with exit code 7"),
        ("exit 255", "ended with exit code 255"),
    ],
)
def test_an_evaluation_that_was_killed_says_so_and_not_the_shells_word_for_it(
    repository: Repository, body: str, words: str
) -> None:
    repository.checkpoint(100)
    repository.hook(f"exec 1>&2\n{body}")
    done = repository.once()
    assert done.returncode == 1
    assert words in done.stderr
    assert "Killed" not in done.stderr.splitlines()[-1]
