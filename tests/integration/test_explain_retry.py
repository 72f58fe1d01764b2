"""One checkpoint's story, and another chance for those that failed, with and without a sidecar running."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess

import pytest

from toolbox import Repository, assert_refused, wait_until


def explain(repository: Repository, step: str, *more: str) -> subprocess.CompletedProcess[str]:
    return repository.sidecar("explain", "--sft-root", str(repository.model_dir), *more, step)


def retry(repository: Repository, *steps: str) -> subprocess.CompletedProcess[str]:
    return repository.sidecar("retry", "--sft-root", str(repository.model_dir), *steps)


def told(repository: Repository, step: str, *more: str) -> str:
    done = explain(repository, step, *more)
    assert done.returncode == 0, done.stderr
    return done.stdout


# -- explain -------------------------------------------------------------------------------------------


def test_explain_tells_a_result_and_how_far_it_came(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.once()
    text = told(repository, "100")
    assert str(repository.model_dir / "checkpoint-100") in text
    assert "verdict      complete" in text and "trainer_state.json says step 100" in text
    assert str(repository.metrics(100)) in text and "HR@10 0.01" in text
    assert "delivery     pending" in text and repository.state["run_id"] in text


def test_explain_tells_what_an_unfinished_checkpoint_lacks(repository: Repository) -> None:
    repository.checkpoint(100, finished=False)
    text = told(repository, "checkpoint-100")  # no sidecar has ever run
    assert "verdict      partial" in text
    assert "trainer_state.json, written last, is not" in text


def test_explain_tells_how_long_an_unprovable_checkpoint_has_to_wait(repository: Repository) -> None:
    path = repository.checkpoint(100)
    (path / "trainer_state.json").unlink()
    (path / "optimizer.pt").unlink()
    assert "verdict      settling" in told(repository, "100")
    assert "verdict      quiet" in told(repository, "100", "--checkpoint-ready-seconds", "0")


def test_explain_tells_a_failure_with_its_log(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.fail(100, "CUDA out of memory")
    repository.once()
    text = told(repository, "100")
    assert "exit code 7: CUDA out of memory" in text
    assert "2 attempts" in text and "retry" in text
    assert str(repository.manager / "evaluations" / repository.model / "checkpoint-100.log") in text


def test_explain_tells_of_an_evaluation_under_way_and_of_a_pin(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.block(100)
    repository.start()
    repository.wait_for_call(100)
    shutil.rmtree(repository.model_dir / "checkpoint-100")
    text = told(repository, "100")
    assert "evaluation   running since" in text
    assert f"pinned       {repository.pins_folder}/checkpoint-100" in text
    assert f"folder       {repository.model_dir}" not in text


def test_explain_remembers_a_checkpoint_that_was_deleted_too_early(repository: Repository) -> None:
    path = repository.checkpoint(100, finished=False)
    repository.once()
    shutil.rmtree(path)
    done = repository.once()
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        "NOT DONE     checkpoint-100: was deleted before it could be evaluated"
    )
    assert "last verdict gone" in told(repository, "100")


@pytest.mark.parametrize("step", ["100", "checkpoint-x", "²"])
def test_explain_refuses_what_it_does_not_know(repository: Repository, step: str) -> None:
    done = explain(repository, step)
    assert_refused(done, step.rpartition("-")[2])
    assert done.returncode == 2


# -- retry ---------------------------------------------------------------------------------------------


def test_retry_gives_failed_checkpoints_another_chance(repository: Repository) -> None:
    for step in (100, 200, 300):
        repository.checkpoint(step)
    repository.fail(100, "no")
    repository.fail(200, "never")
    assert repository.once().returncode == 1
    repository.unhook(100)
    repository.unhook(200)
    done = retry(repository, "100")
    assert done.returncode == 0 and "cleared: checkpoint-100" in done.stdout
    assert "checkpoint-200" not in done.stdout
    assert repository.once().returncode == 1
    assert repository.processed == [100, 300]
    assert "cleared: checkpoint-200" in retry(repository).stdout
    assert repository.once().returncode == 0
    assert repository.processed == [100, 200, 300]
    assert repository.calls.count("checkpoint-300") == 1


def test_retry_reaches_a_sidecar_that_runs(repository: Repository) -> None:
    for step, said in ((100, "no"), (200, "never")):  # one cause would pause evaluation
        repository.checkpoint(step)
        repository.fail(step, said)
    pid = repository.start()
    wait_until(lambda: len(repository.state["failed_steps"]) == 2, "both failures")
    wait_until(lambda: repository.status()["models"][0]["failed"] == 2, "both to be final")
    repository.unhook(100)
    repository.unhook(200)
    done = retry(repository, "100")
    assert done.returncode == 0
    assert "the running sidecar has been asked and will retry" in done.stdout
    repository.wait_for_result(100)
    assert repository.processed == [100]
    retry(repository)
    repository.wait_for_result(100, 200)
    status = repository.status()
    assert status["pid"] == pid and status["models"][0]["failed"] == 0


def test_requests_that_follow_each_other_are_all_met(repository: Repository) -> None:
    for step, said in ((100, "no"), (200, "never"), (300, "not at all")):
        repository.checkpoint(step)
        repository.fail(step, said)
    repository.once()
    repository.unhook(100)
    repository.unhook(200)
    repository.hook("while [ ! -e control/go ]; do sleep 0.02; done; exit 1", 300)
    pid = repository.start()
    sidecar_stops(pid)
    retry(repository, "100")
    retry(repository, "200")
    sidecar_goes_on(pid)
    repository.wait_for_result(100, 200)
    assert list(repository.state["failed_steps"]) == ["300"]


def sidecar_stops(pid: int) -> None:
    """Freeze a sidecar, so that it takes no request."""
    import psutil

    process = psutil.Process(pid)
    process.suspend()
    wait_until(lambda: process.status() == psutil.STATUS_STOPPED, "the sidecar to be frozen")


def sidecar_goes_on(pid: int) -> None:
    import psutil

    psutil.Process(pid).resume()


def test_retry_gives_up_by_name_what_was_started_on_another_machine(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.block()
    sidecar = repository.run()
    repository.wait_for_call(100)
    os.killpg(sidecar.pid, signal.SIGKILL)
    sidecar.wait()
    repository.clean_up()
    state = repository.state
    state["checkpoints"]["100"]["running"]["handle"].update(host="another", boot="another boot")
    repository.state_file.write_text(json.dumps(state))
    repository.start()
    wait_until(lambda: "runs on another, or did" in repository.sidecar("status").stdout, "status telling it")
    repository.release()
    assert "nothing had failed" in retry(repository).stdout
    assert repository.calls == ["checkpoint-100"]
    assert "cleared: checkpoint-100" in retry(repository, "100").stdout
    repository.wait_for_result(100)
    assert repository.calls == ["checkpoint-100"] * 2


def test_retry_without_failures_says_so(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.once()
    done = retry(repository)
    assert done.returncode == 0 and "nothing had failed" in done.stdout
    assert retry(repository, "100").returncode == 0
    repository.once()
    assert repository.calls == ["checkpoint-100"]


def test_retry_refuses_what_no_ledger_knows(repository: Repository) -> None:
    assert_refused(retry(repository, "100"), "there is no ledger")
    repository.checkpoint(100)
    repository.fail(100, "no")
    repository.once()
    repository.once("--wandb-run-id", "another")
    done = retry(repository, "100", "500")
    assert_refused(done, "500", "no ledger knows it", "nothing was cleared")
    assert list(repository.root.glob("state/*/*.json")) and "500" not in done.stdout
    done = retry(repository, "100")
    assert done.returncode == 0 and done.stdout.count("cleared: checkpoint-100") == 2


def test_explain_says_first_what_the_folder_is_now_not_what_the_last_pass_found(repository):
    repository.checkpoint(100)
    state = repository.model_dir / "checkpoint-100/trainer_state.json"
    kept = state.read_text()
    state.unlink()
    repository.once()
    assert "partial" in explain(repository, "100").stdout
    state.write_text(kept)
    first = explain(repository, "100").stdout.splitlines()[0]
    assert "waits to be evaluated: complete" in first
