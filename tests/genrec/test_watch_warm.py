"""Watching with the evaluator of the project, which is kept: same results, no process left behind."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from eval_sidecar.system.process import wait_for_end
from toolbox import CHECKOUT, MODEL, Repository, assert_refused, finish_checkpoint, printed, wait_until

pytestmark = pytest.mark.genrec

STEPS = (5, 10)


@pytest.fixture
def repository(tiny, tmp_path: Path) -> Iterator[Repository]:
    """A repository with two checkpoints to evaluate."""
    variables = {"NUM_BEAMS": "10", "CUDA_LIST": "cpu", "OMP_WAIT_POLICY": "PASSIVE", "PYTHON_BIN": "python3"}
    repository = Repository(tmp_path / "GenRec", extra=variables)
    shutil.copy(CHECKOUT / "evaluate_sft_3b.sh", repository.script)
    shutil.copy(tiny.folder / "test.json", repository.test_data)
    shutil.copy(tiny.folder / "id2sid.json", repository.index)
    for step in STEPS:
        checkpoint = repository.model_dir / f"checkpoint-{step}"
        shutil.copytree(tiny.checkpoint, checkpoint)
        finish_checkpoint(checkpoint)
    yield repository
    repository.clean_up()


def warm_processes(repository: Repository) -> list[psutil.Process]:
    found = []
    for process in repository.processes():
        try:
            if "eval_sidecar.genrec.server" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found


def at_work(repository: Repository) -> list[psutil.Process]:
    """Warm processes that have taken on an evaluation: a thread of each waits for the end of its client."""
    return [process for process in warm_processes(repository) if process.num_threads() > 2]


def log_of(repository: Repository, step: int) -> str:
    return printed(repository.manager / f"evaluations/{MODEL}/checkpoint-{step}.log")


def test_a_killed_warm_process_costs_its_checkpoint_one_retry_and_nothing_else(repository, tiny):
    command = repository.run("--poll-interval-seconds", "0.1")
    (first,) = wait_until(lambda: at_work(repository), "the first evaluation")
    first.kill()
    repository.wait_for_result(*STEPS)
    (second,) = warm_processes(repository)
    assert "EVAL_SIDECAR_JOB" not in second.environ(), "or it would end with the job that started it"
    command.signal(signal.SIGTERM)
    assert command.wait() == 0, command.output
    assert wait_for_end([second], 60), "it ends with the sidecar"
    assert command.output.count("attempt 1 of 2, will retry") == 1
    assert "attempt 2 of 2" not in command.output
    died = [step for step in STEPS if "died during the evaluation" in log_of(repository, step)]
    assert died == [5]
    ranked = {(repository.results / f"checkpoint-{step}/final_result.json").read_text() for step in STEPS}
    assert len(ranked) == 1, "two copies of one checkpoint"
    assert len(json.loads(ranked.pop())) == len(tiny.rows)


def test_a_warm_process_ends_after_its_sidecar_was_killed_and_the_next_sidecar_loses_nothing(repository):
    command = repository.run("--poll-interval-seconds", "0.1")
    (process,) = wait_until(lambda: at_work(repository), "the first evaluation")
    command.signal(signal.SIGKILL)
    command.wait()
    done = repository.once("--poll-interval-seconds", "0.1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert repository.processed == list(STEPS)
    assert not warm_processes(repository), "the GPUs are free when it has ended"
    assert wait_for_end([process], 60)
    for step in STEPS:
        assert log_of(repository, step).count("10 of 10 rows (100%)") == 1, "nothing is evaluated twice"


def test_stopping_ends_the_evaluation_in_the_warm_process_and_it_stays_pending(repository):
    command = repository.run("--poll-interval-seconds", "0.1")
    (process,) = wait_until(lambda: at_work(repository), "the first evaluation")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0, command.output
    assert wait_for_end([process], 60)
    assert repository.processed == []
    assert not repository.results.exists()


def test_a_copy_of_the_evaluator_under_any_name_is_kept_too(repository):
    repository.script.rename(repository.root / "mine.sh")
    repository.model_dir.joinpath("checkpoint-10").rename(repository.root / "checkpoint-10")
    command = repository.run("--eval-script", "mine.sh", "--poll-interval-seconds", "0.1")
    repository.wait_for_result(5)
    assert len(warm_processes(repository)) == 1
    command.signal(signal.SIGTERM)
    assert command.wait() == 0, command.output
    assert not warm_processes(repository)


def test_where_there_is_no_room_for_its_folder_evaluations_go_on_without_it(repository, tmp_path):
    """The path of a socket must be short, and the temporary folder may be none at all."""
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    done = repository.once("--poll-interval-seconds", "0.1", env={"TMPDIR": str(deep)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "no warm process" not in log_of(repository, 5)


@pytest.mark.parametrize("flags", [("--warm",), ()])
def test_a_script_of_others_learns_of_warm_processes_only_if_they_are_asked_for(repository, flags):
    repository.script.write_text(
        'mkdir -p "results/$(basename "$1")/${CKPT_LIST##*/}"\n'
        'echo \'{"HR@10": 0.5}\' > "results/$(basename "$1")/${CKPT_LIST##*/}/metrics.json"\n'
        'echo "warm: ${EVAL_SIDECAR_WARM-no}"\n'
    )
    done = repository.once(*flags)
    assert done.returncode == 0, done.stdout + done.stderr
    assert repository.processed == list(STEPS)
    assert [log_of(repository, step) == "warm: no\n" for step in STEPS] == [not flags] * 2


def test_warm_does_not_go_with_slurm(repository):
    assert_refused(repository.once("--warm", "--launcher", "slurm"), "--warm", "--launcher slurm")
