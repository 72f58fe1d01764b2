"""Every command of the first manual, word for word; only its placeholders are replaced."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from toolbox import CHECKOUT, MODEL, SCRIPT_VARIABLES, Repository, assert_refused, wait_until

ARGUMENTS = r"""  --repo-root . \
  --sft-root /path/to/saves/Instruments-grec-sft-qwen4B-4-64-dsz0 \
  --eval-script evaluate_sft_3b.sh \
  --category Instruments_grec \
  --test-data-path /path/to/data/.../sft/test.json \
  --index-path /path/to/data/.../id2sid.json \
  --cuda-list "0" """.rstrip()

RUN = f"""PYTHON_BIN=python3 bash eval_wandb_sidecar.sh run \\
  --instance cb64 \\
{ARGUMENTS} \\
  --wandb-project MIMIGenRec-Eval \\
  --wandb-mode online"""
START = "PYTHON_BIN=python3 bash eval_wandb_sidecar.sh start --instance cb64 [同上参数...]"
STATUS = "bash eval_wandb_sidecar.sh status --instance cb64"
TAIL = "bash eval_wandb_sidecar.sh tail --instance cb64"
STOP = "bash eval_wandb_sidecar.sh stop --instance cb64"
ONCE = f"""PYTHON_BIN=python3 bash eval_wandb_sidecar.sh once \\
  --instance cb64 \\
{ARGUMENTS}"""


def filled_in(command: str, repository: Repository, more: str = " --disable-wandb") -> str:
    """The command with this repository's paths, and with W&B off where there is no server."""
    return (
        command.replace("[同上参数...]", ARGUMENTS.replace("\\\n", " "))
        .replace("/path/to/saves", str(repository.root / "saves"))
        .replace("/path/to/data/.../sft/test.json", str(repository.test_data))
        .replace("/path/to/data/.../id2sid.json", str(repository.index))
    ) + more


def test_once_evaluates_what_is_there_and_ends(plain_repository: Repository) -> None:
    plain_repository.checkpoint(990)
    plain_repository.checkpoint(495)
    done = plain_repository.type(filled_in(ONCE, plain_repository))
    assert done.returncode == 0, done.stderr
    assert plain_repository.calls == ["checkpoint-495", "checkpoint-990"]
    assert json.loads(plain_repository.metrics(990).read_text())["HR@10"] == 0.0990
    assert plain_repository.processed == [495, 990]


def test_once_again_evaluates_only_what_is_new(plain_repository: Repository) -> None:
    plain_repository.checkpoint(495)
    command = filled_in(ONCE, plain_repository)
    assert plain_repository.type(command).returncode == 0
    plain_repository.checkpoint(990)
    assert plain_repository.type(command).returncode == 0
    assert plain_repository.calls == ["checkpoint-495", "checkpoint-990"]


def test_run_stays_in_the_foreground_and_evaluates_what_appears(plain_repository: Repository) -> None:
    plain_repository.checkpoint(495)
    command = plain_repository.spawn("bash", "-c", filled_in(RUN, plain_repository))
    plain_repository.wait_for_result(495)
    plain_repository.checkpoint(990)
    plain_repository.wait_for_result(495, 990)
    assert plain_repository.type(STATUS).returncode == 0
    command.press_ctrl_c()
    assert command.wait() == 0
    assert "best" in command.output and "0.0990" in command.output
    assert plain_repository.type(STATUS).returncode == 3


def test_start_status_tail_and_stop_handle_a_background_instance(plain_repository: Repository) -> None:
    plain_repository.checkpoint(495)
    started = plain_repository.type(filled_in(START, plain_repository))
    assert started.returncode == 0, started.stderr
    pid = (plain_repository.manager / "cb64.pid").read_text().strip()
    assert f"started cb64 (pid {pid})" in started.stdout
    assert str(plain_repository.manager / "cb64.log") in started.stdout
    plain_repository.wait_for_result(495)

    status = plain_repository.type(STATUS)
    assert status.returncode == 0
    assert f"cb64: running (pid {pid}) since 20" in status.stdout
    assert "1/1" in status.stdout and "HR@10 0.0495 at 495" in status.stdout

    tail = plain_repository.spawn("bash", "-c", TAIL)
    wait_until(lambda: "checkpoint-495: HR@10 0.0495" in tail.output, "the log on the screen")
    stopped = plain_repository.type(STOP)
    assert stopped.returncode == 0 and f"stopped cb64 (pid {pid})" in stopped.stdout
    assert tail.wait() == 0
    assert plain_repository.processes() == []
    assert not (plain_repository.manager / "cb64.pid").exists()
    assert plain_repository.type(STATUS).returncode == 3


def test_the_python_script_watches_without_a_command(repository: Repository) -> None:
    repository.checkpoint(495)
    command = repository.spawn("python3", "eval_wandb_sidecar.py", *repository.flags)
    repository.wait_for_result(495)
    command.press_ctrl_c()
    assert command.wait() == 0


def test_the_python_script_ends_after_one_round_with_once(repository: Repository) -> None:
    repository.checkpoint(495)
    done = repository.execute("python", "eval_wandb_sidecar.py", *repository.flags, "--once")
    assert done.returncode == 0 and repository.processed == [495]


# -- section 5: the run --------------------------------------------------------------------------------


def test_the_run_id_is_the_models_own_unless_it_is_given(repository: Repository) -> None:
    repository.checkpoint(495)
    assert repository.once("--category", "Instruments_grec").returncode == 0
    # SHA-1 of {"cb_setting":"cb64","dataset":"Instruments_grec","eval_split":"test","model_dir":…}
    assert repository.state["run_id"] == "eval-088839ca53b688776ef3"
    given = ("--wandb-run-id", "my-run", "--wandb-run-name", "my name", "--wandb-resume", "allow")
    assert repository.once(*given, "--state-dir", "other").returncode == 0
    (path,) = (repository.root / "other").glob(f"{MODEL}_*.json")
    state = json.loads(path.read_text())
    assert (state["run_id"], state["run_name"]) == ("my-run", "my name")
    assert repository.calls == ["checkpoint-495"]


# -- section 7: variables and flags --------------------------------------------------------------------


def test_every_variable_reaches_the_evaluation_script(repository: Repository) -> None:
    checkpoint = repository.checkpoint(495)
    flags = {
        "--category": "Toys",
        "--cuda-list": "0 1 2 3",
        "--python-bin": "/opt/my python/bin/python",
        "--batch-size": "16",
        "--max-new-tokens": "64",
        "--num-beams": "20",
        "--temperature": "0.7",
        "--do-sample": "True",
        "--length-penalty": "0.5",
        "--sid-levels": "3",
        "--seed": "7",
    }
    given = [word for pair in flags.items() for word in pair]
    done = repository.once(*given)
    assert done.returncode == 0, done.stderr
    seen = repository.seen_by_script(495)
    for flag, value in flags.items():
        assert seen[flag[2:].upper().replace("-", "_")] == value
    assert seen["TEST_DATA_PATH"] == str(repository.test_data)
    assert seen["INDEX_PATH"] == str(repository.index)
    assert Path(seen["CKPT_LIST"]).name == checkpoint.name
    assert Path(seen["CKPT_LIST"]).parent.name == MODEL
    assert Path(seen["PWD"]) == repository.root


def test_variables_have_the_documented_defaults(repository: Repository) -> None:
    repository.checkpoint(495)
    repository.once()
    seen = repository.seen_by_script(495)
    expected = {
        "CATEGORY": "Industrial_and_Scientific",
        "CUDA_LIST": "0",
        "BATCH_SIZE": "8",
        "MAX_NEW_TOKENS": "256",
        "NUM_BEAMS": "50",
        "TEMPERATURE": "1.0",
        "DO_SAMPLE": "False",
        "LENGTH_PENALTY": "0.0",
        "SID_LEVELS": "-1",
        "SEED": "42",
    }
    assert {name: seen[name] for name in expected} == expected
    assert set(SCRIPT_VARIABLES) <= seen.keys()


def test_flags_fall_back_to_the_variables_of_the_same_name(repository: Repository) -> None:
    repository.checkpoint(495)
    given = {
        "CATEGORY": "Instruments_grec",
        "CUDA_LIST": "3",
        "PYTHON_BIN": "python3",
        "TEST_DATA_PATH": "data/Instruments_grec/sft/test.json",
        "INDEX_PATH": "data/Instruments_grec/id2sid.json",
        "BATCH_SIZE": "2",
        "NUM_BEAMS": "10",
        "DO_SAMPLE": "True",
    }
    done = repository.execute(
        *("bash", "eval_wandb_sidecar.sh", "once", "--sft-root", str(repository.model_dir)),
        *("--disable-wandb", "--num-beams", "20"),
        env=given,
    )
    assert done.returncode == 0, done.stderr
    seen = repository.seen_by_script(495)
    absolute = {"TEST_DATA_PATH": str(repository.test_data), "INDEX_PATH": str(repository.index)}
    assert {name: seen[name] for name in given} == {**given, **absolute, "NUM_BEAMS": "20"}


def test_all_flags_of_the_manual_are_understood(repository: Repository) -> None:
    repository.checkpoint(495)
    repository.checkpoint(990)
    done = repository.once(
        *("--eval-script", "evaluate_sft_3b.sh", "--category", "Instruments_grec", "--cuda-list", "0"),
        *("--python-bin", "python3", "--batch-size", "8", "--max-new-tokens", "256", "--num-beams", "50"),
        *("--temperature", "1.0", "--do-sample", "False", "--length-penalty", "0.0", "--sid-levels", "-1"),
        *("--seed", "42", "--poll-interval-seconds", "60", "--checkpoint-ready-seconds", "120"),
        *("--max-pending-per-cycle", "1", "--force-eval", "--once", "--state-dir", "my state"),
        *("--wandb-project", "P", "--wandb-entity", "E", "--wandb-run-id", "I", "--wandb-run-name", "N"),
        *("--wandb-mode", "online", "--wandb-resume", "allow", "--wandb-job-type", "eval"),
    )
    assert done.returncode == 75, done.stderr
    assert repository.calls == ["checkpoint-495"]  # one a cycle
    (path,) = (repository.root / "my state").glob(f"{MODEL}_*.json")
    assert path.with_suffix(".lock").exists()


def test_manager_dir_and_instance_come_from_the_environment(repository: Repository) -> None:
    repository.extra.update(MANAGER_DIR="my manager", INSTANCE="cb128")
    started = repository.sidecar("start", *repository.flags)
    assert started.returncode == 0, started.stderr
    files = {path.name for path in (repository.root / "my manager").iterdir()}
    assert {"cb128.pid", "cb128.log"} <= files
    assert repository.sidecar("status").stdout.startswith("cb128: running")
    assert "stopped cb128" in repository.sidecar("stop").stdout
    assert not repository.manager.exists()


def test_the_flag_beats_the_instance_of_the_environment(repository: Repository) -> None:
    done = repository.sidecar("status", "--instance", "a", env={"INSTANCE": "b"})
    assert done.stdout.startswith("a: not running")


def test_python_bin_and_sidecar_py_say_what_runs(repository: Repository) -> None:
    repository.add_python("my-python", f'echo "$@" >asked; exec {shlex.quote(sys.executable)} "$@"')
    (repository.root / "elsewhere").mkdir()
    (repository.root / "elsewhere/my sidecar.py").symlink_to(CHECKOUT / "eval_wandb_sidecar.py")
    env = {"PYTHON_BIN": "my-python", "SIDECAR_PY": "elsewhere/my sidecar.py"}
    assert repository.sidecar("status", env=env).returncode == 3
    assert (repository.root / "asked").read_text().split() == ["elsewhere/my", "sidecar.py", "status"]


def test_the_script_works_from_another_folder(repository: Repository) -> None:
    repository.checkpoint(495)
    (repository.root / "elsewhere").mkdir()
    root = shlex.quote(str(repository.root))
    flags = shlex.join([*repository.flags, "--repo-root", str(repository.root)])
    done = repository.type(f"cd elsewhere && bash {root}/eval_wandb_sidecar.sh once {flags}")
    assert done.returncode == 0, done.stderr
    assert repository.metrics(495).exists()


def test_a_python_without_the_libraries_hands_over_to_the_one_of_setup(repository: Repository) -> None:
    repository.checkpoint(495)
    repository.add_python("python3", f'exec {shlex.quote(sys.executable)} -I -S "$@"')
    shutil.copytree(repository.home / "bin", repository.root / ".venv/bin")
    shutil.copy(repository.home / "bin/python", repository.root / ".venv/bin/python")
    env = {"PYTHON_BIN": "python3"}
    done = repository.once(env=env)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(repository.root / ".venv")
    assert_refused(repository.once(env=env), "has no click", "scripts/setup")


# -- section 9: daily work -----------------------------------------------------------------------------


def test_switching_the_gpu_is_a_matter_of_cuda_list(repository: Repository) -> None:
    repository.checkpoint(495)
    assert repository.once("--cuda-list", "1").returncode == 0
    assert repository.seen_by_script(495)["CUDA_LIST"] == "1"


def test_force_eval_evaluates_again(repository: Repository) -> None:
    repository.checkpoint(495)
    repository.once()
    assert repository.once("--force-eval").returncode == 0
    assert repository.calls == ["checkpoint-495"] * 2


def test_existing_metrics_are_taken_without_an_evaluation(repository: Repository) -> None:
    repository.checkpoint(495)
    repository.metrics(495).parent.mkdir(parents=True)
    repository.metrics(495).write_text('{"HR@10": 0.25}')
    assert repository.once().returncode == 0
    assert repository.calls == [] and repository.processed == [495]
    assert repository.state["table_rows"][0]["HR@10"] == 0.25


@pytest.mark.wandb
def test_offline_writes_a_run_that_can_be_synced(repository: Repository) -> None:
    repository.checkpoint(495)
    flags = [flag for flag in repository.flags if flag != "--disable-wandb"]
    done = repository.sidecar("once", *flags, "--wandb-mode", "offline")
    assert done.returncode == 0, done.stdout + done.stderr
    assert list(repository.root.glob("wandb/offline-run-*/*.wandb"))
    assert repository.state["checkpoints"]["495"]["delivery"]["status"] == "sent"


@pytest.mark.wandb
def test_the_commands_of_the_manual_report_online(plain_repository: Repository) -> None:
    from wandb_server import WandbServer

    plain_repository.checkpoint(495)
    with WandbServer() as server:
        env = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": server.key}
        first = plain_repository.type(filled_in(ONCE, plain_repository, ""), env)
        assert first.returncode == 0, first.stdout + first.stderr
        plain_repository.checkpoint(990)
        command = plain_repository.spawn("bash", "-c", filled_in(RUN, plain_repository, ""), env=env)
        run = server.run("eval-088839ca53b688776ef3")
        wait_until(lambda: len(run.rows) == 2, "both points on the server")
        command.press_ctrl_c()
        assert command.wait() == 0
    assert [row["checkpoint_step"] for row in run.rows] == [495, 990]
    assert run.rows[1]["eval/HR@10"] == 0.0990


# -- section 11: when something is wrong ---------------------------------------------------------------


def test_a_missing_python_is_said_in_one_line(repository: Repository) -> None:
    done = repository.sidecar("status", env={"PYTHON_BIN": "nonexistent"})
    assert_refused(done, "nonexistent: command not found", "PYTHON_BIN=python3")
    assert done.returncode == 127


def test_python3_is_taken_where_there_is_no_python(repository: Repository) -> None:
    (repository.home / "bin/python").unlink()
    for tool in ("bash", "dirname", "basename", "env", "ls", "mkdir", "mv", "sh"):
        (repository.home / "bin" / tool).symlink_to(str(shutil.which(tool)))
    repository.checkpoint(495)
    done = repository.once(env={"PATH": str(repository.home / "bin")})
    assert done.returncode == 0, done.stderr


def without_wandb(repository: Repository) -> None:
    """Let ``python`` be one that has everything but the W&B client."""
    import click

    installed = Path(click.__file__).parent.parent
    links = repository.root / "libraries"
    links.mkdir()
    for path in installed.iterdir():
        if "wandb" not in path.name:
            (links / path.name).symlink_to(path)
    body = f'PYTHONPATH="$HOME/../libraries" exec {shlex.quote(sys.executable)} -S "$@"'
    repository.add_python("python", body)


def test_a_missing_client_is_said_in_one_line(repository: Repository) -> None:
    without_wandb(repository)
    repository.checkpoint(495)
    flags = [flag for flag in repository.flags if flag != "--disable-wandb"]
    online = ("once", *flags, "--wandb-mode", "online")
    assert_refused(repository.sidecar(*online), "wandb is not installed", "--disable-wandb")
    # Runs leave a folder of that name, which Python takes for a package.
    (repository.root / "wandb/offline-run-1").mkdir(parents=True)
    assert_refused(repository.sidecar(*online), "wandb is not installed", "--disable-wandb")
    assert repository.calls == []
    assert repository.sidecar("once", *flags, "--disable-wandb").returncode == 0
    assert repository.processed == [495]


def test_an_evaluation_script_that_is_not_there_is_named_with_the_root(repository: Repository) -> None:
    repository.script.rename(repository.root / "moved.sh")
    done = repository.once("--eval-script", "evaluate_sft_3b.sh")
    assert_refused(done, f"--eval-script {repository.script}", f"--repo-root is {repository.root}")


def test_the_script_of_the_repository_comes_before_the_one_of_the_package(repository: Repository) -> None:
    repository.checkpoint(495)
    done = repository.once()
    assert "which comes with eval-sidecar" not in done.stderr
    assert repository.calls == ["checkpoint-495"]
    repository.script.unlink()
    assert "evaluate_sft_3b.sh, which comes with eval-sidecar" in repository.once().stderr


def test_other_names_are_no_checkpoints_and_that_is_said(repository: Repository) -> None:
    for name in ("checkpoint_100", "checkpoint-best", "checkpoint-0100", "global_step100"):
        repository.checkpoint(100).rename(repository.model_dir / name)
    done = repository.once()
    assert done.returncode == 1 and repository.calls == []
    assert "no folder named checkpoint-<number>" in done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("NOT DONE")]
    assert "checkpoint-0100, checkpoint_100, global_step100: not taken" in line
    repository.checkpoint(200)
    assert repository.once().returncode == 0  # what lies beside checkpoints is the trainer's business


def test_checkpoints_one_level_deeper_are_named(repository: Repository) -> None:
    repository.checkpoint(100)
    flags = [*repository.flags, "--sft-root", str(repository.model_dir.parent)]
    done = repository.sidecar("once", *flags)
    assert done.returncode == 1 and repository.calls == []
    assert f"one level deeper, in {repository.model}: give that as --sft-root" in done.stderr


def test_once_says_which_checkpoint_waits_and_for_what(repository: Repository) -> None:
    (repository.model_dir / "checkpoint-100").mkdir()
    repository.checkpoint(200, finished=False)
    unprovable = repository.checkpoint(300)
    (unprovable / "trainer_state.json").unlink()
    (unprovable / "optimizer.pt").unlink()
    done = repository.once()
    assert done.returncode == 75 and repository.calls == []
    waiting = [line for line in done.stdout.splitlines() if line.startswith("WAITING")]
    assert "checkpoint-100: partial (the folder is empty)" in waiting[0]
    assert "checkpoint-200: partial (optimizer.pt is there, but trainer_state.json" in waiting[1]
    assert "checkpoint-300: settling" in waiting[2] and "of the 120 s" in waiting[2]


def test_once_ends_with_75_as_long_as_something_waits_that_has_not_failed(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.checkpoint(200)
    repository.checkpoint(300, finished=False)
    assert repository.once("--max-pending-per-cycle", "1").returncode == 75
    assert repository.processed == [100]
    assert repository.once().returncode == 75
    assert repository.processed == [100, 200]
    (repository.model_dir / "checkpoint-300" / "optimizer.pt").unlink()
    assert repository.once("--checkpoint-ready-seconds", "0").returncode == 0
    assert repository.processed == [100, 200, 300]


def test_once_ends_with_75_before_the_first_checkpoint(repository: Repository) -> None:
    repository.model_dir.mkdir(parents=True, exist_ok=True)
    done = repository.once()
    assert done.returncode == 75
    assert f"WAITING      {repository.model_dir}: no checkpoint is in it yet" in done.stdout


def test_once_names_a_checkpoint_that_is_a_link_to_nothing(repository: Repository) -> None:
    repository.checkpoint(100)
    (repository.model_dir / "checkpoint-200").symlink_to("/not/there")
    done = repository.once()
    assert done.returncode == 1 and repository.processed == [100]
    assert "checkpoint-200: is a link to /not/there, which does not exist: restore" in done.stderr


def test_a_pipe_or_a_socket_in_a_checkpoint_is_in_nobodys_way(repository: Repository) -> None:
    os.mkfifo(repository.checkpoint(100) / "control.pipe")
    assert repository.once().returncode == 0
    assert repository.processed == [100]


def test_once_ends_with_75_when_a_checkpoint_is_abandoned(repository: Repository) -> None:
    partial = repository.checkpoint(100, finished=False)
    for path in (*partial.iterdir(), partial):
        os.utime(path, (1_500_000_000, 1_500_000_000))
    done = repository.once()
    assert done.returncode == 75
    assert "WAITING      checkpoint-100: abandoned" in done.stdout


def test_once_ends_with_1_when_something_failed_whatever_else_waits(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.fail(100, "no")
    repository.checkpoint(200, finished=False)
    done = repository.once()
    assert done.returncode == 1
    assert "WAITING      checkpoint-200: partial" in done.stdout
