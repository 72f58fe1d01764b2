"""One cause, one line: what a person sees of evaluations that fail alike, and of a missing GPU."""

from __future__ import annotations

import pytest

from toolbox import Repository, wait_until

WORDS = "KeyError: 'item'"


@pytest.fixture
def broken(repository: Repository) -> Repository:
    """A repository with six checkpoints and a script that fails on each."""
    for step in range(100, 700, 100):
        repository.checkpoint(step)
        repository.fail(step, WORDS)
    return repository


def fix(repository: Repository) -> None:
    """Edit the script itself, so that it fails no more."""
    text = repository.script.read_text()
    repository.script.write_text(text.replace("control/hook-$name", "control/nothing-$name"))


def test_a_broken_script_is_tried_on_two_checkpoints_and_told_in_one_line(broken: Repository) -> None:
    done = broken.once()
    assert done.returncode == 1
    assert broken.calls == ["checkpoint-100", "checkpoint-200"]
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("NOT DONE"))
    assert "evaluation is paused: checkpoint-100 and checkpoint-200" in line
    assert f"exit code 7: {WORDS}" in line and "eval-sidecar retry" in line
    again = broken.once()
    assert again.returncode == 1 and "evaluation is paused" in again.stderr
    assert len(broken.calls) == 2


def test_an_edited_script_goes_on_by_itself(broken: Repository) -> None:
    broken.once()
    fix(broken)
    done = broken.once()
    assert done.returncode == 0, done.stderr
    assert broken.processed == [100, 200, 300, 400, 500, 600]
    assert len(broken.calls) == 2 + 6


def test_retry_goes_on_without_an_edit(broken: Repository) -> None:
    broken.once()
    for step in range(100, 700, 100):
        broken.unhook(step)
    assert broken.once().returncode == 1, "the script itself is the same"
    broken.sidecar("retry", "--sft-root", str(broken.model_dir))
    assert broken.once().returncode == 0
    assert broken.processed == [100, 200, 300, 400, 500, 600]


def test_a_running_sidecar_says_that_it_is_paused_keeps_checkpoints_and_goes_on(broken: Repository) -> None:
    broken.start("--poll-interval-seconds", "0.2")
    wait_until(lambda: broken.status()["models"][0]["paused"], "the pause")
    shown = broken.sidecar("status", "--instance", "cb64").stdout
    assert "not started: evaluation is paused: checkpoint-100 and checkpoint-200" in shown
    told = broken.sidecar("explain", "--sft-root", str(broken.model_dir), "300").stdout
    assert "not started  evaluation is paused" in told
    broken.checkpoint(700)
    wait_until(lambda: "700" in broken.state["checkpoints"], "the new checkpoint being seen")
    assert broken.state["checkpoints"]["700"]["pinned"] is True
    fix(broken)
    broken.wait_for_result(100, 200, 300, 400, 500, 600, 700)
    assert broken.status()["models"][0]["paused"] is None


def test_a_script_that_writes_its_numbers_elsewhere_is_told_where_they_lie(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.hook('mkdir -p "results/$name"; echo "{}" >"results/$name/metrics.json"; exit 0')
    done = repository.once()
    assert done.returncode == 1 and repository.calls == ["checkpoint-100"]
    assert f"it wrote {repository.root / 'results/checkpoint-100/metrics.json'}" in done.stderr


# -- the machine -----------------------------------------------------------------------------------------


def test_a_gpu_that_is_not_there_is_said_at_the_start_and_in_status_and_no_refusal(
    repository: Repository,
) -> None:
    repository.add_python("nvidia-smi", "echo 'GPU 0: Card (UUID: GPU-0)'")
    repository.checkpoint(100)
    done = repository.once("--cuda-list", "0-2", env={"CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 0 and repository.processed == [100]
    assert "CUDA_VISIBLE_DEVICES= leaves 0" in done.stderr
    assert repository.seen_by_script(100)["CUDA_LIST"] == "0 1 2"
    arguments = ("--instance", "cb64", *repository.flags, "--cuda-list", "0-2")
    line = "warning: --cuda-list 0 1 2: GPU 1, 2 not found (nvidia-smi shows 1: 0)"
    assert line in repository.sidecar("start", *arguments).stdout
    assert line in repository.sidecar("status", "--instance", "cb64").stdout
