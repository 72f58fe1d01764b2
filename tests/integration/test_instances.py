"""Background instances, and what happens to evaluations when a sidecar ends, one way or another."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Optional

import psutil
import pytest

from eval_sidecar.system.instances import Instance, find_process, list_instances, stop
from eval_sidecar.system.logs import FULL
from toolbox import Repository, assert_refused, finish_checkpoint, wait_until


def evaluation_processes(repository: Repository) -> list[psutil.Process]:
    """Everything alive that belongs to an evaluation."""
    found = []
    for process in repository.processes():
        with contextlib.suppress(psutil.Error):  # ended meanwhile
            if "EVAL_SIDECAR_JOB" in process.environ():
                found.append(process)
    return found


def kill_sidecar(pid: int) -> None:
    """Kill a sidecar so that it can do nothing more, and wait until it is gone."""
    process = psutil.Process(pid)
    process.kill()
    wait_until(
        lambda: not process.is_running() or process.status() == psutil.STATUS_ZOMBIE, "the sidecar's end"
    )


# -- start ---------------------------------------------------------------------------------------------


def test_a_second_start_is_refused_and_the_first_goes_on(repository: Repository) -> None:
    pid = repository.start()
    done = repository.sidecar("start", "--instance", "cb64", *repository.flags)
    assert_refused(done, "instance cb64: is already running", f"pid {pid}")
    repository.checkpoint(100)
    repository.wait_for_result(100)
    assert repository.status()["pid"] == pid


def test_a_start_that_dies_at_once_shows_why(repository: Repository) -> None:
    done = repository.sidecar("start", "--instance", "cb64", *repository.flags, "--index-path", "nowhere")
    assert done.returncode == 1 and "started" not in done.stdout
    assert "instance cb64: ended at once with exit code 2" in done.stderr
    assert str(repository.manager / "cb64.log") in done.stderr
    assert done.stderr.splitlines()[-1].startswith("eval-sidecar: --index-path")
    assert "Traceback" not in done.stderr
    assert repository.sidecar("status", "--instance", "cb64").returncode == 3


def test_a_start_that_dies_shows_nothing_of_earlier_runs(repository: Repository) -> None:
    repository.start()
    repository.sidecar("stop", "--instance", "cb64")
    done = repository.sidecar("start", "--instance", "cb64", *repository.flags, "--index-path", "nowhere")
    assert "there is no such file" in done.stderr and "SIGTERM" not in done.stderr
    # What the last run that began knows is still there to be seen.
    assert repository.status()["models"][0]["model"] == repository.model


def test_a_second_sidecar_on_the_same_state_or_folder_is_refused(repository: Repository) -> None:
    pid = repository.start()
    same_state = repository.once("--instance", "cb128")
    assert_refused(same_state, "another process works on this model", f"pid {pid}", "instance cb64")
    same_folder = repository.once("--state-dir", "other")
    assert_refused(same_folder, str(repository.model_dir), "another sidecar already watches this folder")
    assert repository.status()["running"]


def test_two_models_run_side_by_side(repository: Repository) -> None:
    first = repository.start()
    repository.model = "Other-sft-qwen"
    repository.checkpoint(100)
    second = repository.start(instance="other")
    both = json.loads(repository.sidecar("status", "--json").stdout)
    assert [(state["instance"], state["pid"]) for state in both] == [("cb64", first), ("other", second)]
    repository.sidecar("stop", "--instance", "cb64")
    assert repository.status("other")["running"]
    assert repository.sidecar("status").returncode == 0


# -- status --------------------------------------------------------------------------------------------


def test_status_says_why_a_checkpoint_waits_that_was_taken_away(repository: Repository) -> None:
    repository.checkpoint(100, finished=False)
    repository.start()
    repository.sidecar("stop", "--instance", "cb64")
    state = repository.state
    state["checkpoints"]["100"]["evictions"] = ["Monday Slurm job 7: PREEMPTED", "Tuesday NODE_FAIL"]
    repository.state_file.write_text(json.dumps(state))
    shown = repository.sidecar("status", "--instance", "cb64").stdout
    assert "waiting checkpoint-100 (partial): interrupted 2 times, last Tuesday NODE_FAIL" in shown


def test_status_says_what_a_person_wants_to_know(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.checkpoint(200)
    repository.fail(200, "CUDA out of memory")
    repository.once()
    repository.checkpoint(300)
    repository.block(300)
    repository.checkpoint(400, finished=False)
    repository.start()
    repository.wait_for_call(300)
    log = repository.manager / "evaluations" / repository.model / "checkpoint-200.log"

    state = wait_until(lambda: (now := repository.status())["models"][0]["running"] and now, "300 to run")
    (model,) = state["models"]
    assert state["running"] and time.time() - state["since"] < 60
    assert (model["evaluated"], model["pending"], model["failed"], model["undelivered"]) == (1, 2, 1, 1)
    assert model["running"][0]["checkpoint"] == "checkpoint-300"
    assert model["waiting"] == [
        {
            **{"checkpoint": "checkpoint-400", "step": 400, "verdict": "partial", "pinned": False},
            "evictions": [],
        }
    ]
    assert model["best"]["HR@10"] == {"step": 100, "value": 0.01}
    assert "checkpoint-200" in model["last_error"] and "CUDA out of memory" in model["last_error"]
    assert str(log) in model["last_error"]

    done = repository.sidecar("status", "--instance", "cb64")
    assert done.returncode == 0
    for words in (
        "cb64: running",
        "1/4",
        "evaluating checkpoint-300",
        "waiting checkpoint-400 (partial)",
        "problem  checkpoint-200: ",
        str(repository.state_file),
    ):
        assert words in done.stdout


def test_an_instance_that_never_was_is_not_running(repository: Repository) -> None:
    done = repository.sidecar("status", "--instance", "nobody")
    assert done.returncode == 3
    assert f"was never started from here ({repository.manager})" in done.stdout
    state = repository.status("nobody")
    assert (state["running"], state["known"]) == (False, False)
    everything = repository.sidecar("status")
    assert everything.returncode == 3 and str(repository.manager) in everything.stdout
    assert json.loads(repository.sidecar("status", "--json").stdout) == []
    stopped = repository.sidecar("stop", "--instance", "nobody")
    assert stopped.returncode == 0 and "nobody is not running" in stopped.stdout
    assert_refused(repository.sidecar("tail", "--instance", "nobody"), "has no log", "MANAGER_DIR")


def test_an_instance_of_another_machine_is_left_to_it(repository: Repository) -> None:
    repository.start()
    record = repository.manager / "cb64.json"
    there = {"host": "node17", "boot": "another boot", "since_boot": "another-boot 17"}
    record.write_text(json.dumps({**json.loads(record.read_text()), **there}))
    done = repository.sidecar("status", "--instance", "cb64")
    assert done.returncode == 3 and "started on node17" in done.stdout
    assert_refused(repository.sidecar("stop", "--instance", "cb64"), "was started on node17")
    assert len(repository.processes()) == 1


@pytest.mark.parametrize("version", ["this one", "the one before"])
def test_an_instance_is_found_and_stopped_after_its_host_got_another_name(
    repository: Repository, version: str
) -> None:
    pid = repository.start()
    file = repository.manager / "cb64.json"
    record = {**json.loads(file.read_text()), "host": "name-before"}
    if record["since_boot"] is None:
        pytest.skip("this system does not tell one boot from another")
    if version == "the one before":
        del record["boot"]
    file.write_text(json.dumps(record))
    assert repository.status("cb64")["running"] is True
    assert f"stopped cb64 (pid {pid})" in repository.sidecar("stop", "--instance", "cb64").stdout
    assert repository.processes() == []


# -- pid files that lie --------------------------------------------------------------------------------


@contextmanager
def stranger(*command: str, cwd: Optional[Path] = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has nothing to do with us, until the end of the block."""
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        yield process
        process.kill()


def assert_left_alone(repository: Repository, process: subprocess.Popen[bytes]) -> None:
    """Check that the instance counts as not running, and that nothing is done to the process."""
    assert repository.sidecar("status", "--instance", "cb64").returncode == 3
    assert "is not running" in repository.sidecar("stop", "--instance", "cb64").stdout
    assert process.poll() is None


def test_a_reused_pid_is_recognised_by_its_start(repository: Repository) -> None:
    pid = repository.start()
    kill_sidecar(pid)
    record = repository.manager / "cb64.json"
    with stranger("cat") as process:
        (repository.manager / "cb64.pid").write_text(f"{process.pid}\n")
        record.write_text(json.dumps({**json.loads(record.read_text()), "pid": process.pid}))
        assert_left_alone(repository, process)
        assert repository.start() != process.pid
        assert process.poll() is None


@pytest.mark.parametrize(
    "command",
    [
        ["cat"],
        ["tail", "-f", "eval_sidecar.log"],
        ["tail", "-f", "eval_wandb_sidecar.py"],
        [sys.executable, "-c", "input()", "log/eval_sidecar"],
    ],
    ids=["cat", "tail of its log", "tail of the script", "python in its folder"],
)
def test_a_pid_file_of_an_older_script_never_points_at_a_stranger(tmp_path: Path, command: list[str]) -> None:
    for name in ("eval_sidecar.log", "eval_wandb_sidecar.py"):
        (tmp_path / name).touch()
    instance = Instance("cb64", tmp_path)
    with stranger(*command, cwd=tmp_path) as process:
        instance.pid_file.write_text(str(process.pid))
        assert find_process(instance) is None
        assert stop(instance) is None
        assert process.poll() is None


def test_an_older_scripts_sidecar_is_found_by_its_pid_file(repository: Repository) -> None:
    repository.manager.mkdir(parents=True)
    (repository.root / "old").mkdir()
    (repository.root / "old/eval_wandb_sidecar.py").write_text("input()")
    with stranger(sys.executable, str(repository.root / "old/eval_wandb_sidecar.py")) as process:
        pid_file = repository.manager / "cb64.pid"
        pid_file.write_text(str(process.pid))
        os.utime(pid_file, (1, 1))  # written before this process began: then it is another one
        assert_left_alone(repository, process)
        pid_file.write_text(str(process.pid))
        assert repository.sidecar("status", "--instance", "cb64").returncode == 0
        assert f"stopped cb64 (pid {process.pid})" in repository.sidecar("stop", "--instance", "cb64").stdout
        assert process.wait() == -signal.SIGTERM


@pytest.mark.parametrize("content", ["", "-1", "0", "99999999999999999999", "none\n"])
def test_a_senseless_pid_file_is_nobodys(tmp_path: Path, content: str) -> None:
    instance = Instance("cb64", tmp_path)
    instance.pid_file.write_text(content)
    instance.record_file.write_text("{")
    assert find_process(instance) is None


# -- names ---------------------------------------------------------------------------------------------


NAMES = ["../../x", "/etc/passwd", "..", "-rf", 'it\'s "me" $HOME `id`\n%2F;#*', "模型 甲", "a.json"]


@pytest.mark.parametrize("name", NAMES)
def test_the_files_of_any_name_are_in_the_manager_folder(tmp_path: Path, name: str) -> None:
    instance = Instance(name, tmp_path)
    for path in (instance.pid_file, instance.record_file, instance.log_file):
        assert path.parent == tmp_path and path.resolve().parent == tmp_path.resolve()
        assert not path.name.startswith(("-", "."))
    instance.pid_file.touch()
    assert list_instances(tmp_path) == [instance]
    assert Instance("模型 甲", tmp_path).log_file.name == "模型 甲.log"


@pytest.mark.parametrize("name", ["../../x", '-rf it\'s "me" $HOME `id`\n%2F;#* 模型'])
def test_an_instance_of_any_name_is_started_found_and_stopped(repository: Repository, name: str) -> None:
    before = {path.name for path in repository.root.iterdir()}
    pid = repository.start(instance=name)
    record = repository.sidecar("status", "--json")
    assert [(state["instance"], state["pid"]) for state in json.loads(record.stdout)] == [(name, pid)]
    assert repository.sidecar("stop", "--instance", name).returncode == 0
    written = {path.name for path in repository.root.iterdir()} - before
    assert written == {"commands", "log", "state", "results"}
    assert {path.name for path in repository.manager.parent.iterdir()} == {"eval_sidecar"}


@pytest.mark.parametrize("name", ["", "x" * 300])
def test_a_name_that_cannot_be_a_file_is_refused(repository: Repository, name: str) -> None:
    for command in ("start", "stop"):
        flags = repository.flags if command == "start" else []
        assert_refused(repository.sidecar(command, "--instance", name, *flags), "--instance")


# -- stop ----------------------------------------------------------------------------------------------

LEAVES_CHILDREN = """
(setsid bash -c 'echo $$ >control/grandchild; while :; do sleep 0.1; done' &)
bash -c 'while :; do sleep 0.1; done' &
while [ ! -e control/grandchild ]; do sleep 0.02; done
"""


def test_stop_ends_the_evaluation_with_all_its_children(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.hook(f"{LEAVES_CHILDREN}\ntouch control/running; while :; do sleep 0.02; done", 100)
    repository.start()
    wait_until((repository.control / "running").exists, "the evaluation")
    assert len(evaluation_processes(repository)) >= 4
    done = repository.sidecar("stop", "--instance", "cb64")
    assert done.returncode == 0 and "stopped cb64" in done.stdout
    assert repository.processes() == []  # at once: it returns when all is done
    model = repository.status()["models"][0]
    assert (model["pending"], model["failed"], model["running"]) == (1, 0, [])
    repository.unhook(100)
    assert repository.once().returncode == 0
    assert repository.calls == ["checkpoint-100"] * 2 and repository.processed == [100]


def test_children_of_an_evaluation_that_has_ended_by_itself_do_not_keep_stop_waiting(
    repository: Repository,
) -> None:
    repository.checkpoint(100)
    repository.hook("(trap '' HUP; while [ ! -e control/go ]; do sleep 0.05; done) &", 100)
    repository.start()
    repository.wait_for_result(100)
    assert repository.sidecar("stop", "--instance", "cb64").returncode == 0
    assert repository.sidecar("status", "--instance", "cb64").returncode == 3
    repository.release()


# -- a sidecar that is killed --------------------------------------------------------------------------


def killed_during_an_evaluation(repository: Repository) -> None:
    """Leave an evaluation of checkpoint-100 running whose sidecar has been killed."""
    repository.checkpoint(100)
    repository.block(100)
    pid = repository.start()
    repository.wait_for_call(100)
    wait_until(lambda: "pid" in repository.state["checkpoints"]["100"]["running"]["handle"], "the job's pid")
    kill_sidecar(pid)


def test_the_next_start_goes_on_with_an_evaluation_whose_sidecar_was_killed(repository: Repository) -> None:
    killed_during_an_evaluation(repository)
    done = repository.sidecar("status", "--instance", "cb64")
    assert done.returncode == 3
    assert "cb64: not running" in done.stdout and "left behind" in done.stdout
    repository.start()
    repository.release()
    repository.wait_for_result(100)
    assert repository.calls == ["checkpoint-100"]


def test_a_result_that_came_while_no_sidecar_ran_is_taken(repository: Repository) -> None:
    killed_during_an_evaluation(repository)
    repository.release()
    wait_until(lambda: not evaluation_processes(repository), "the evaluation's end")
    assert repository.once().returncode == 0
    assert repository.calls == ["checkpoint-100"] and repository.processed == [100]


def test_stop_ends_an_evaluation_whose_sidecar_was_killed(repository: Repository) -> None:
    killed_during_an_evaluation(repository)
    done = repository.sidecar("stop", "--instance", "cb64")
    assert done.returncode == 0
    assert "cb64 is not running" in done.stdout
    assert "checkpoint-100: evaluation stopped, the checkpoint stays pending" in done.stdout
    assert repository.processes() == []
    assert repository.status()["models"][0]["running"] == []
    repository.release()
    assert repository.once().returncode == 0 and repository.processed == [100]


def test_after_a_crash_of_everything_the_checkpoint_is_evaluated_again(repository: Repository) -> None:
    killed_during_an_evaluation(repository)
    for process in evaluation_processes(repository):
        process.kill()
    wait_until(lambda: not evaluation_processes(repository), "the evaluation's end")
    repository.release()
    repository.start()
    repository.wait_for_result(100)
    assert repository.calls == ["checkpoint-100"] * 2
    assert repository.status()["models"][0]["failed"] == 0


# -- a training that goes on ---------------------------------------------------------------------------


def test_a_checkpoint_that_appears_during_an_evaluation_is_not_forgotten(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.block(100)
    repository.start()
    repository.wait_for_call(100)
    repository.checkpoint(200)
    repository.release()
    repository.wait_for_result(100, 200)
    assert repository.calls == ["checkpoint-100", "checkpoint-200"]


def test_a_checkpoint_is_evaluated_once_its_last_file_is_there(repository: Repository) -> None:
    unfinished = repository.checkpoint(100, finished=False)
    repository.start("--checkpoint-ready-seconds", "0")
    assert repository.status()["models"][0]["waiting"][0]["verdict"] == "partial"
    assert repository.calls == []
    finish_checkpoint(unfinished)
    repository.wait_for_result(100)


def test_a_rotating_trainer_costs_no_checkpoint(repository: Repository) -> None:
    """As with save_total_limit=1: each checkpoint is deleted as soon as the next one is there."""

    def is_pinned(step: int) -> bool:
        entry = repository.state["checkpoints"].get(str(step), {})
        return bool(entry.get("pinned"))

    repository.block(100)
    first = repository.checkpoint(100)
    repository.start()
    repository.wait_for_call(100)
    second = repository.checkpoint(200)
    shutil.rmtree(first)
    wait_until(lambda: is_pinned(200), "checkpoint-200 to be pinned")
    third = repository.checkpoint(300)
    shutil.rmtree(second)
    wait_until(lambda: is_pinned(300), "checkpoint-300 to be pinned")
    shutil.rmtree(third)
    repository.release()
    repository.wait_for_result(100, 200, 300)
    for step in (100, 200, 300):
        seen = (repository.control / f"files-checkpoint-{step}").read_text().split()
        assert {"config.json", "model.safetensors", "trainer_state.json"} <= set(seen)
    assert repository.calls == ["checkpoint-100", "checkpoint-200", "checkpoint-300"]
    wait_until(lambda: not list(repository.pins_folder.glob("checkpoint-*")), "the pins to be removed")


def test_gpus_are_shared_out_among_evaluations_at_a_time(repository: Repository) -> None:
    repository.block()
    for step in (100, 200, 300):
        repository.checkpoint(step)
    repository.start("--cuda-list", "0 1 2 3", "--gpus-per-eval", "2")
    repository.wait_for_call(100)
    repository.wait_for_call(200)
    lists = {repository.seen_by_script(step)["CUDA_LIST"] for step in (100, 200)}
    assert lists == {"0 1", "2 3"}
    assert sorted(repository.calls) == ["checkpoint-100", "checkpoint-200"]
    repository.release()
    repository.wait_for_result(100, 200, 300)


# -- the foreground ------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_foreground_run_in_order(repository: Repository, number: signal.Signals) -> None:
    repository.checkpoint(100)
    repository.block(100)
    command = repository.run()
    repository.wait_for_call(100)
    command.signal(number)
    assert command.wait() == 0
    assert f"{number.name}: ending" in command.errors
    assert "WAITING      checkpoint-100" in command.output
    assert "Traceback" not in command.output
    assert repository.processes() == []
    assert repository.state["checkpoints"]["100"].get("running") is None
    assert repository.state["failed_steps"] == {}


def test_once_that_is_interrupted_does_not_claim_success(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.block(100)
    command = repository.spawn("bash", "eval_wandb_sidecar.sh", "once", *repository.flags)
    repository.wait_for_call(100)
    command.press_ctrl_c()
    assert command.wait() == 130
    assert "WAITING      checkpoint-100" in command.output


@pytest.mark.skipif(
    sys.implementation.name == "pypy", reason="PyPy does not tell which signals were ignored at its start"
)
def test_nohup_protects_from_a_closed_terminal(repository: Repository) -> None:
    root = shlex.join(["bash", "eval_wandb_sidecar.sh", "run", *repository.flags])
    command = repository.spawn("bash", "-c", f"exec nohup {root}")
    repository.checkpoint(100)
    repository.wait_for_result(100)
    command.signal(signal.SIGHUP)
    repository.checkpoint(200)
    repository.wait_for_result(100, 200)
    command.signal(signal.SIGTERM)
    assert command.wait() == 0


def test_a_foreground_run_with_a_name_is_found_and_stopped_by_it(repository: Repository) -> None:
    command = repository.run("--instance", "cb64")
    wait_until(lambda: repository.status()["pid"] == command.pid, "the instance")
    assert f"stopped cb64 (pid {command.pid})" in repository.sidecar("stop", "--instance", "cb64").stdout
    assert command.wait() == 0


# -- tail ----------------------------------------------------------------------------------------------


def test_tail_begins_with_the_last_lines_and_follows(repository: Repository) -> None:
    repository.start()
    (log,) = repository.manager.glob("*.log")
    with log.open("a") as file:
        file.writelines(f"line {number}\n" for number in range(100))
    tail = repository.spawn("bash", "eval_wandb_sidecar.sh", "tail", "--instance", "cb64", "-n", "5")
    wait_until(lambda: "line 99" in tail.output, "the end of the log")
    assert tail.output.splitlines() == [f"line {number}" for number in range(95, 100)]
    repository.checkpoint(100)
    wait_until(lambda: "checkpoint-100: HR@10 0.01" in tail.output, "what came after")
    repository.sidecar("stop", "--instance", "cb64")
    assert tail.wait() == 0


def test_a_log_that_is_full_is_set_aside_and_tail_goes_on(repository: Repository) -> None:
    repository.manager.mkdir(parents=True)
    log = repository.manager / "cb64.log"
    log.write_bytes(b"of an earlier run\n")
    os.truncate(log, FULL)
    repository.start()
    tail = repository.spawn("bash", "eval_wandb_sidecar.sh", "tail", "--instance", "cb64")
    full = log.with_name("cb64.log.1")
    wait_until(full.exists, "the full log to be set aside")
    assert full.stat().st_size > FULL, "the greeting is in it: the first pass came after"
    repository.checkpoint(100)
    wait_until(lambda: "checkpoint-100: HR@10 0.01" in tail.output, "what came after")
    assert "checkpoint-100: HR@10 0.01" in log.read_text() and log.stat().st_size < FULL
    assert "watching" in tail.output
    repository.sidecar("stop", "--instance", "cb64")
    assert tail.wait() == 0
    assert [state["instance"] for state in json.loads(repository.sidecar("status", "--json").stdout)] == [
        "cb64"
    ]


def test_a_start_that_dies_tells_why_beside_a_full_log(repository: Repository) -> None:
    repository.manager.mkdir(parents=True)
    log = repository.manager / "cb64.log"
    log.write_bytes(b"of an earlier run\n")
    os.truncate(log, FULL)
    done = repository.sidecar("start", "--instance", "cb64", *repository.flags, "--index-path", "nowhere")
    assert done.returncode == 1
    assert "there is no such file" in done.stderr and "earlier" not in done.stderr
