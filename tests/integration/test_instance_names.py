"""Which instance is meant: by its name, from every folder, or the only one; and what else is done to one."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from toolbox import Repository, assert_refused, wait_until


@pytest.fixture
def other(repository: Repository, tmp_path: Path) -> Iterator[Repository]:
    """Another project of the same user."""
    made = Repository(tmp_path / "other project", extra={"HOME": str(repository.home)})
    yield made
    made.clean_up()


def listed(errors: str) -> list[str]:
    """The names in a list of instances below an error."""
    first, *rest = errors.splitlines()
    assert first.startswith("eval-sidecar: "), errors
    return [line.split(":")[0].strip() for line in rest]


# -- names -----------------------------------------------------------------------------------------------


def test_a_name_is_an_argument_of_every_command_about_an_instance(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.fail(100, "no")
    pid = repository.start()
    wait_until(lambda: repository.status()["models"][0]["failed"] == 1, "the failure to be final")
    assert f"cb64: running (pid {pid})" in repository.sidecar("status", "cb64").stdout
    assert "checkpoint-100: failed" in repository.sidecar("explain", "cb64", "100").stdout
    repository.unhook(100)
    assert "cleared: checkpoint-100" in repository.sidecar("retry", "cb64", "100").stdout
    repository.wait_for_result(100)
    assert f"stopped cb64 (pid {pid})" in repository.sidecar("stop", "cb64").stdout
    assert "100" in repository.sidecar("tail", "cb64").stdout
    assert "checkpoint-100: evaluated" in repository.sidecar("explain", "cb64", "checkpoint-100").stdout


@pytest.mark.parametrize("command", ["stop", "status", "tail", "restart", "forget"])
def test_an_unknown_flag_and_a_second_word_are_refused(repository: Repository, command: str) -> None:
    pid = repository.start()
    for words in (["--instanc", "cb64"], ["cb64", "cb65"], ["cb64", "--instance", "cb65"]):
        done = repository.sidecar(command, *words)
        assert_refused(done)
        assert done.returncode == 2
    assert psutil.pid_exists(pid) and repository.status()["pid"] == pid


@pytest.mark.parametrize("command", ["stop", "status", "tail", "restart", "forget", "explain"])
def test_a_wrong_name_lists_what_runs(repository: Repository, command: str) -> None:
    repository.start()
    done = repository.sidecar(command, "cb46", *(["100"] if command == "explain" else []))
    assert done.returncode == 2 and "no instance is called cb46" in done.stderr
    assert listed(done.stderr) == ["cb64"] and str(repository.manager) in done.stderr
    assert repository.status()["running"]


def test_without_a_name_the_only_running_one_is_meant(repository: Repository) -> None:
    repository.checkpoint(100)
    pid = repository.start()
    repository.wait_for_result(100)
    assert "checkpoint-100: evaluated" in repository.sidecar("explain", "100").stdout
    assert "nothing had failed" in repository.sidecar("retry").stdout
    assert f"stopped cb64 (pid {pid})" in repository.sidecar("stop").stdout
    again = repository.sidecar("stop")
    assert again.returncode == 0 and again.stdout == "cb64 is not running\n"


def test_without_a_name_several_are_listed_and_left_alone(repository: Repository) -> None:
    repository.start()
    repository.model = "Other-sft-qwen"
    repository.checkpoint(100)
    repository.start(instance="other")
    for command in ("stop", "tail", "restart"):
        done = repository.sidecar(command)
        assert done.returncode == 2 and listed(done.stderr) == ["cb64", "other"]
    assert repository.status()["running"] and repository.status("other")["running"]
    stopped = repository.sidecar("stop", "--all")
    assert stopped.returncode == 0
    assert "stopped cb64" in stopped.stdout and "stopped other" in stopped.stdout
    assert repository.processes() == []
    assert repository.sidecar("stop", "--all").stdout == "no instance runs\n"


# -- from every folder -----------------------------------------------------------------------------------


def test_an_instance_is_found_from_another_folder(repository: Repository, other: Repository) -> None:
    repository.checkpoint(100)
    pid = repository.start()
    repository.wait_for_result(100)
    assert f"cb64: running (pid {pid})" in other.sidecar("status").stdout
    assert "checkpoint-100: evaluated" in other.sidecar("explain", "cb64", "100").stdout
    tail = other.spawn("bash", "eval_wandb_sidecar.sh", "tail", "cb64")
    wait_until(lambda: "checkpoint-100: HR@10 0.01" in tail.output, "the log")
    stopped = other.sidecar("stop")
    assert stopped.returncode == 0
    assert stopped.stdout == f"stopped cb64 of {repository.manager} (pid {pid})\n"
    assert tail.wait() == 0 and repository.processes() == []


def test_one_name_in_two_folders_is_listed_elsewhere_and_means_the_one_here(
    repository: Repository, other: Repository, tmp_path: Path
) -> None:
    first, second = repository.start(), other.start()
    third = Repository(tmp_path / "third", extra={"HOME": str(repository.home)})
    for words in (["cb64"], ["--instance", "cb64"], []):
        done = third.sidecar("stop", *words)
        assert done.returncode == 2 and listed(done.stderr) == ["cb64", "cb64"]
        assert str(repository.manager) in done.stderr and str(other.manager) in done.stderr
    assert f"stopped cb64 (pid {second})" in other.sidecar("stop", "cb64").stdout
    # Here it has stopped, and there one of that name runs: neither may be taken for the other.
    done = other.sidecar("stop", "cb64")
    assert done.returncode == 2 and f"running (pid {first})" in done.stderr
    assert repository.status()["pid"] == first
    chosen = {"MANAGER_DIR": str(repository.manager)}
    assert f"stopped cb64 (pid {first})" in third.sidecar("stop", "cb64", env=chosen).stdout


def test_a_home_that_cannot_be_written_costs_only_the_other_folders(
    repository: Repository, other: Repository
) -> None:
    for home in (repository.home / "python", Path("/proc")):
        repository.extra["XDG_STATE_HOME"] = str(home)
        home.exists() or home.write_text("a file, not a folder")
        pid = repository.start()
        assert f"stopped cb64 (pid {pid})" in repository.sidecar("stop").stdout
    assert "no instance runs" in other.sidecar("status").stdout


def test_what_is_noted_of_a_folder_that_is_gone_is_removed(repository: Repository, other: Repository) -> None:
    other.start()
    other.sidecar("stop", "cb64")
    notes = repository.home / ".local/state/eval-sidecar/instances"
    (note,) = notes.iterdir()
    assert json.loads(note.read_text())["manager_dir"] == str(other.manager)
    shutil.rmtree(other.manager)
    assert repository.sidecar("status").returncode == 3
    assert list(notes.iterdir()) == []


# -- restart, forget, after the current evaluation -----------------------------------------------------------


def test_restart_goes_on_with_the_flags_and_variables_of_the_start(
    repository: Repository, other: Repository
) -> None:
    repository.checkpoint(100)
    repository.extra["CATEGORY"] = "Instruments_grec"
    pid = repository.start("--batch-size", "3")
    repository.wait_for_result(100)
    other.extra.update(CATEGORY="Another", BATCH_SIZE="9", NUM_BEAMS="7", WANDB_API_KEY="k" * 40)
    done = other.sidecar("restart", "cb64")
    assert done.returncode == 0, done.stderr
    assert (
        f"stopped cb64 of {repository.manager} (pid {pid})" in done.stdout and "started cb64" in done.stdout
    )
    repository.checkpoint(200)
    repository.wait_for_result(100, 200)
    first, second = (repository.seen_by_script(step) for step in (100, 200))
    names = ("CATEGORY", "BATCH_SIZE", "CUDA_LIST", "NUM_BEAMS")
    assert [first[name] for name in names] == [second[name] for name in names]
    assert second["BATCH_SIZE"] == "3" and second["WANDB_API_KEY"] == "k" * 40
    record = (repository.manager / "cb64.json").read_text()
    assert "k" * 40 not in record and repository.status()["pid"] != pid


def test_restart_refuses_what_it_cannot_do_and_stops_nothing(repository: Repository) -> None:
    repository.extra["WANDB_BASE_URL"] = "http://me:a-long-password@127.0.0.1:9"
    pid = repository.start()
    assert "a-long-password" not in (repository.manager / "cb64.json").read_text()
    assert_refused(repository.sidecar("restart", "cb64"), "WANDB_BASE_URL held a secret")
    record = json.loads((repository.manager / "cb64.json").read_text())
    (repository.manager / "cb64.json").write_text(json.dumps({**record, "left_out": [], "arguments": []}))
    assert_refused(repository.sidecar("restart", "cb64"), "start it again with its flags")
    assert repository.status()["pid"] == pid


def test_after_the_current_evaluation_an_instance_ends_and_starts_no_other(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.checkpoint(200)
    repository.block(100)
    pid = repository.start()
    repository.wait_for_call(100)
    done = repository.sidecar("stop", "cb64", "--after-current")
    assert done.returncode == 0
    assert done.stdout == f"cb64 (pid {pid}) ends after checkpoint-100\n"
    words = "ends when the running evaluations have"
    wait_until(lambda: words in repository.sidecar("status").stdout, "status telling it")
    repository.release()
    wait_until(lambda: not repository.status()["running"], "its end")
    assert repository.processed == [100] and repository.calls == ["checkpoint-100"]
    assert repository.processes() == []
    assert repository.status()["models"][0]["failed"] == 0
    assert repository.sidecar("stop", "cb64", "--after-current").stdout == "cb64 is not running\n"


def test_an_instance_that_idles_ends_at_once_after_the_current(repository: Repository) -> None:
    repository.start()
    assert "nothing is being evaluated" in repository.sidecar("stop", "--after-current").stdout
    wait_until(lambda: not repository.status()["running"], "its end")


def test_a_stop_is_still_a_stop_after_the_current_was_asked_for(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.block(100)
    pid = repository.start()
    repository.wait_for_call(100)
    repository.sidecar("stop", "--after-current")
    assert f"stopped cb64 (pid {pid})" in repository.sidecar("stop").stdout
    assert repository.processes() == [] and repository.status()["models"][0]["pending"] == 1


def test_a_version_that_cannot_end_after_the_current_is_not_killed_by_asking(repository: Repository) -> None:
    pid = repository.start()
    file = repository.manager / "cb64.json"
    record = json.loads(file.read_text())
    del record["can_finish"]
    file.write_text(json.dumps(record))
    assert_refused(repository.sidecar("stop", "--after-current"), "without --after-current")
    assert repository.status()["pid"] == pid


def test_forget_removes_what_is_remembered_and_keeps_the_log(repository: Repository) -> None:
    repository.checkpoint(100)
    pid = repository.start()
    repository.wait_for_result(100)
    assert_refused(repository.sidecar("forget", "cb64"), f"runs (pid {pid})", "stop it first")
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: not repository.status()["running"], "its end")
    assert "forgot cb64" in repository.sidecar("forget", "cb64").stdout
    assert (repository.manager / "cb64.log").exists() and repository.metrics(100).exists()
    assert list((repository.home / ".local/state/eval-sidecar/instances").iterdir()) == []
    assert json.loads(repository.sidecar("status", "--json").stdout) == []
    assert_refused(repository.sidecar("forget", "cb64"), "forgotten already")
    assert_refused(repository.sidecar("forget"), "give the name")


def test_show_finds_the_models_of_instances_from_every_folder(
    repository: Repository, other: Repository
) -> None:
    repository.checkpoint(100)
    repository.start()
    repository.wait_for_result(100)
    wait_until(lambda: repository.status()["models"][0]["evaluated"] == 1, "the ledger to have it")
    for word in ("cb64", repository.model):
        shown = other.sidecar("show", word)
        assert shown.returncode == 0 and " 100  0.0100" in shown.stdout, shown.stderr
    assert_refused(other.sidecar("show", "no-such-model"), "no results and no ledgers")


def test_show_finds_two_instances_of_one_name_and_a_model_beside_an_instance(
    repository: Repository, other: Repository, tmp_path: Path
) -> None:
    other.model = "Other-model"
    for place in (repository, other):
        place.checkpoint(100)
        place.start()
        place.wait_for_result(100)
    third = Repository(tmp_path / "third project", extra={"HOME": str(repository.home)})
    for words in (["cb64"], [], ["cb64", "Other-model"]):
        shown = third.sidecar("show", *words)
        assert repository.model in shown.stdout and "Other-model" in shown.stdout, shown.stderr
