"""What is promised to the training: nothing is taken from it, left in its folder, or missed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox import Command, Repository, assert_refused, finish_checkpoint, wait_until

WEIGHTS = "model.safetensors"


def watching(repository: Repository, *more: str) -> Command:
    """Watch in the foreground, once it does."""
    command = repository.run("--checkpoint-ready-seconds", "1", *more)
    wait_until(lambda: "watching" in command.output or "waiting for" in command.output, "a greeting")
    return command


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def verdict(repository: Repository, step: int) -> str:
    return repository.state["checkpoints"].get(str(step), {}).get("verdict", "")


# -- the model dir is the trainer's ----------------------------------------------------------------------


def test_nothing_of_ours_lies_in_the_model_dir_at_any_time(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.block(100)
    watching(repository)
    repository.wait_for_call(100)
    repository.checkpoint(200)
    wait_until((repository.pins_folder / "checkpoint-200").is_dir, "the pin of checkpoint-200")
    assert names(repository.model_dir) == {"checkpoint-100", "checkpoint-200"}
    repository.release()
    repository.wait_for_result(100, 200)
    assert names(repository.model_dir) == {"checkpoint-100", "checkpoint-200"}


def test_what_a_start_from_inside_the_model_dir_puts_there_is_said(repository: Repository) -> None:
    repository.checkpoint(100)
    assert "output folder" not in repository.once().stderr
    inside = repository.model_dir / "log"
    done = repository.once("--state-dir", str(inside), env={"MANAGER_DIR": str(inside / "eval_sidecar")})
    assert done.returncode == 0, done.stderr
    said = [line for line in done.stderr.splitlines() if "is in the training's output folder" in line]
    assert len(said) == 2
    assert "--state-dir" in said[0] and "MANAGER_DIR" in said[1]


def test_a_script_sees_the_models_name_and_its_other_files_above_its_checkpoint(
    repository: Repository,
) -> None:
    (repository.model_dir / "tokenizer.json").write_text('"the model\'s"')
    repository.checkpoint(100)
    repository.hook('cp "$CKPT_LIST/../tokenizer.json" control/read; ls "$CKPT_LIST/.." >control/above')
    assert repository.once().returncode == 0
    assert (repository.control / "read").read_text() == '"the model\'s"'
    assert (repository.control / "above").read_text().split() == ["checkpoint-100", "tokenizer.json"]
    assert Path(repository.seen_by_script(100)["CKPT_LIST"]).parent.name == repository.model


def test_a_script_that_repairs_its_config_in_place_keeps_its_result_and_the_trainer_its_file(
    repository: Repository,
) -> None:
    path = repository.checkpoint(100)
    repository.hook(
        """printf '{"repaired": true}' >"$CKPT_LIST/config.json"; rm "$CKPT_LIST/optimizer.pt" || :"""
    )
    done = repository.once()
    assert done.returncode == 0, done.stderr
    assert repository.processed == [100] and repository.calls == ["checkpoint-100"]
    assert (path / "config.json").read_text() == "{}"
    assert names(path) == {"config.json", WEIGHTS, "optimizer.pt", "trainer_state.json"}


def test_a_trainer_that_changes_its_file_meanwhile_gets_another_evaluation(repository: Repository) -> None:
    path = repository.checkpoint(100)
    repository.block(100)
    watching(repository)
    repository.wait_for_call(100)
    (path / "config.json").write_text('{"changed": true}')
    repository.release()
    repository.wait_for_call(100, times=2)
    repository.wait_for_result(100)


# -- no folder yet ---------------------------------------------------------------------------------------


def test_once_says_in_one_line_that_there_is_no_folder_yet_and_does_not_make_it(
    repository: Repository,
) -> None:
    repository.model_dir.rmdir()
    done = repository.once()
    assert_refused(done, str(repository.model_dir), "there is no such folder yet")
    assert done.returncode == os.EX_TEMPFAIL
    assert not repository.model_dir.exists()


@pytest.mark.parametrize("parent", ["is there", "is missing"])
def test_start_waits_for_a_folder_says_so_and_does_not_make_it(repository: Repository, parent: str) -> None:
    repository.model_dir.rmdir()
    if parent == "is missing":
        shutil.rmtree(repository.model_dir.parent)
    done = repository.sidecar("start", "--instance", "cb64", *repository.flags)
    assert done.returncode == 0, done.stderr
    assert f"{repository.model_dir} does not exist yet; waiting for it" in done.stdout
    assert not repository.model_dir.exists()
    assert repository.model_dir.parent.exists() == (parent == "is there")
    repository.checkpoint(100)
    repository.wait_for_result(100)


def test_a_folder_that_appears_behind_a_link_is_evaluated(repository: Repository) -> None:
    shutil.rmtree(repository.model_dir)
    link = repository.model_dir.with_name("latest")
    command = watching(repository, "--sft-root", str(link))
    repository.checkpoint(100)
    link.symlink_to(repository.model_dir.name)
    wait_until((repository.root / "results/latest/checkpoint-100/metrics.json").exists, "the result")
    command.press_ctrl_c()
    command.wait()
    assert "another model" not in command.output
    assert repository.once("--sft-root", str(link)).returncode == 0


def test_a_folder_that_is_deleted_and_made_anew_is_watched_again(repository: Repository) -> None:
    repository.checkpoint(100)
    watching(repository)
    repository.wait_for_result(100)
    shutil.rmtree(repository.model_dir)
    repository.checkpoint(200)
    repository.wait_for_result(100, 200)


# -- nothing is missed -----------------------------------------------------------------------------------

#: Writes checkpoints as Trainer does, each whole for so many seconds before it is deleted.
_TRAINER = """
import shutil, sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from toolbox import write_checkpoint
folder, count, seconds = Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
for step in range(1, count + 1):
    path = write_checkpoint(folder, step)
    time.sleep(seconds)
    shutil.rmtree(path)
"""


def train(repository: Repository, count: int, seconds: float) -> None:
    tests = str(Path(__file__).resolve().parents[1])
    arguments = (tests, str(repository.model_dir), str(count), str(seconds))
    subprocess.run([sys.executable, "-c", _TRAINER, *arguments], check=True, timeout=120)


def test_checkpoints_that_are_whole_for_a_moment_only_are_all_evaluated(repository: Repository) -> None:
    watching(repository)
    train(repository, 20, 0.15)
    repository.wait_for_result(*range(1, 21))
    wait_until(lambda: not repository.pins_folder.exists(), "the pins to be removed")
    assert names(repository.model_dir) == set()


def test_what_settles_is_evaluated_although_it_is_deleted_meanwhile(repository: Repository) -> None:
    watching(repository, "--checkpoint-ready-seconds", "4")
    path = repository.checkpoint(100, finished=False)
    (path / "optimizer.pt").unlink()
    wait_until(lambda: verdict(repository, 100) == "settling", "checkpoint-100 to settle")
    shutil.rmtree(path)
    repository.wait_for_result(100)


def test_a_named_adapter_is_evaluated_although_it_is_deleted_at_once(repository: Repository) -> None:
    watching(repository, "--checkpoint-ready-seconds", "600")
    staged = repository.checkpoint(100)
    (staged / "policy").mkdir()
    (staged / WEIGHTS).rename(staged / "policy" / "adapter_model.safetensors")
    (staged / "config.json").unlink()
    shutil.rmtree(staged)
    path = repository.checkpoint(200, finished=False)
    (path / "policy").mkdir()
    (path / WEIGHTS).rename(path / "policy" / "adapter_model.safetensors")
    (path / "config.json").unlink()
    finish_checkpoint(path)
    repository.wait_for_result(200)


def test_a_retry_has_what_came_after_the_proof(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.hook('[ -e "$CKPT_LIST/preprocessor_config.json" ] || exit 7')
    assert repository.once().returncode == 1
    (repository.model_dir / "checkpoint-100/preprocessor_config.json").write_text("{}")
    repository.sidecar("retry", "--sft-root", str(repository.model_dir))
    assert repository.once().returncode == 0


def test_what_accelerates_save_state_writes_is_evaluated_after_the_quiet_period(
    repository: Repository,
) -> None:
    path = repository.checkpoint(100, finished=False)
    (path / "optimizer.pt").rename(path / "optimizer.bin")
    (path / "random_states_0.pkl").write_bytes(b"x")
    watching(repository)
    repository.wait_for_result(100)


# -- what cannot be read ---------------------------------------------------------------------------------


def test_a_link_that_leads_nowhere_is_shown_with_its_target(repository: Repository) -> None:
    path = repository.checkpoint(100)
    (path / "tokenizer.json").symlink_to("/nowhere/tokenizer.json")
    done = repository.once()
    said = "tokenizer.json is a link to /nowhere/tokenizer.json, which cannot be found"
    assert f"checkpoint-100: partial ({said}" in done.stdout
    assert "deleted" not in done.stderr
    told = repository.sidecar("explain", "--sft-root", str(repository.model_dir), "100")
    assert said in told.stdout


NOBODY = 65534


@contextlib.contextmanager
def as_nobody(repository: Repository) -> Iterator[Repository]:
    """The repository of another user, in a place that everybody can reach."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv")
    with tempfile.TemporaryDirectory(prefix="nobody-", dir="/tmp") as folder:
        Path(folder).chmod(0o755)
        other = Repository(Path(folder) / "GenRec", repository.model, marker=repository.marker)
        become = f"setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups"
        other.add_python("python3", f'exec {become} {sys.executable} "$@"')
        for path in (other.root, *other.root.rglob("*")):
            os.chown(path, NOBODY, NOBODY, follow_symlinks=False)
        if other.execute("python3", "-c", "import click").returncode != 0:
            pytest.skip("another user cannot run this Python")
        yield other


def test_weights_of_another_user_are_denied_and_not_deleted(repository: Repository) -> None:
    with as_nobody(repository) as other:
        path = other.checkpoint(100)
        (path / WEIGHTS).chmod(0o600)
        done = other.once(env={"PYTHON_BIN": "python3"})
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("NOT DONE")]
        assert ".eval-sidecar" not in line, "the folder to change is the trainer's"
        assert f"permission denied: {WEIGHTS} (mode 0600, user id 0) cannot be read by this user" in line
        assert f"chmod -R a+rX {path}" in line
        assert "deleted" not in done.stderr and "WAITING" not in done.stdout
        assert done.returncode == 1
        (path / WEIGHTS).chmod(0o644)
        assert other.once(env={"PYTHON_BIN": "python3"}).returncode == 0


@pytest.mark.parametrize("mode", [0o700, 0o711, 0o755])
def test_a_folder_of_pins_that_another_user_keeps_closed_bars_nobody(
    repository: Repository, mode: int
) -> None:
    with as_nobody(repository) as other:
        closed = other.model_dir.parent / ".eval-sidecar"
        closed.mkdir()
        (closed / "place").write_text("0123456789abcdef")
        closed.chmod(mode)
        path = other.checkpoint(100)
        for part in (path, *path.rglob("*")):
            os.chown(part, NOBODY, NOBODY)
        done = other.once(env={"PYTHON_BIN": "python3"})
        assert done.returncode == 0, done.stderr
        assert f"pins are kept in {closed}-{NOBODY}" in done.stderr
        assert names(closed) == {"place"}
        assert not Path(f"{closed}-{NOBODY}").exists()
        told = other.execute(
            *("python3", "eval_wandb_sidecar.py", "explain", "--sft-root", str(other.model_dir), "100")
        )
        assert told.returncode == 0, told.stderr


@pytest.mark.parametrize("mode", [0o700, 0o755])
def test_what_an_earlier_version_of_another_user_left_in_the_model_dir_bars_nobody(
    repository: Repository, mode: int
) -> None:
    with as_nobody(repository) as other:
        left = other.model_dir / ".eval-sidecar"
        (left / other.model).mkdir(parents=True)
        (left / "lock").touch(0o600)
        left.chmod(mode)
        other.checkpoint(100)
        done = other.once(env={"PYTHON_BIN": "python3"})
        assert done.returncode == 0, done.stderr
        assert "Traceback" not in done.stderr
        assert str(left) in done.stderr


# -- the disk --------------------------------------------------------------------------------------------


def large_checkpoint(repository: Repository, step: int, size: int) -> Path:
    """Write a checkpoint with an optimizer of so many bytes, half of them again in the weights."""
    folder = repository.model_dir / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    header = json.dumps({"w": {"dtype": "U8", "shape": [size // 2], "data_offsets": [0, size // 2]}}).encode()
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + bytes(size // 2))
    (folder / "optimizer.pt").write_bytes(bytes(size))
    finish_checkpoint(folder)
    return folder


@contextlib.contextmanager
def small_disk(repository: Repository, size: str) -> Iterator[None]:
    """A disk of its own under the model dir's parent."""
    disk = repository.model_dir.parent
    if os.getuid() != 0 or shutil.which("mount") is None:
        pytest.skip("needs root, to mount a small disk")
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"no disk can be mounted here: {done.stderr.decode()}")
    try:
        repository.model_dir.mkdir()
        yield
    finally:
        repository.clean_up()
        subprocess.run(["umount", "-l", str(disk)], check=True)


#: Fails in another way for each checkpoint: one cause would pause evaluation.
EACH_FOR_ITSELF = 'tr 0-9 a-j <<<"$name"; exit 7'


@pytest.mark.parametrize("hook", [EACH_FOR_ITSELF, "exit 7"], ids=["each for itself", "one cause"])
def test_a_training_survives_a_script_that_always_fails_on_a_disk_that_it_fits_alone(
    repository: Repository, hook: str
) -> None:
    """Three checkpoints of 3 MB at a time: two that are kept, and the one that is being written."""
    with small_disk(repository, "24M"):
        repository.hook(hook)
        watching(repository)
        for step in range(1, 21):
            large_checkpoint(repository, step, 2 * 2**20)
            if step > 2:
                shutil.rmtree(repository.model_dir / f"checkpoint-{step - 2}")
            wait_until(lambda step=step: str(step) in repository.state["checkpoints"], f"{step} to be seen")
        if hook == EACH_FOR_ITSELF:
            wait_until(lambda: repository.calls.count("checkpoint-20") >= 2, "the last to fail")
        wait_until(
            lambda: "pin given up" in str(repository.state["checkpoints"]["3"].get("evidence")), "3 given up"
        )


def test_no_more_pins_are_kept_than_the_flag_says_and_a_stop_gives_up_those_that_failed(
    repository: Repository,
) -> None:
    repository.hook(EACH_FOR_ITSELF)
    repository.start("--max-pins", "2")
    for step in (1, 2, 3, 4):
        path = repository.checkpoint(step)
        wait_until(
            lambda step=step: (
                repository.calls.count(f"checkpoint-{step}") >= 2
                and repository.status()["models"][0]["failed"] >= step
            ),
            f"{step} to fail",
        )
        shutil.rmtree(path)
    held = repository.pins_folder.parent / ".held" / repository.model
    wait_until(lambda: names(held) == {"checkpoint-3", "checkpoint-4"}, "the oldest two to go")
    repository.sidecar("stop", "--instance", "cb64")
    assert not held.exists() and not repository.pins_folder.exists()
    assert "its pin, the last copy, is removed" in (repository.manager / "cb64.log").read_text()


@pytest.mark.parametrize("flag", ["--max-pin-size", "--min-free-space"])
def test_a_bound_of_the_wrong_form_is_named(repository: Repository, flag: str) -> None:
    assert_refused(repository.once(flag, "much"), flag, "much")


# -- other disks and other places ------------------------------------------------------------------------


def test_a_model_dir_that_is_a_disk_of_its_own_is_evaluated_where_it_is_with_a_word(
    repository: Repository,
) -> None:
    real_parent, model = repository.model_dir.parent, repository.model
    shutil.rmtree(repository.model_dir)
    repository.model = "disk/" + model  # the disk is mounted at the model dir's parent: one level down
    repository.model_dir.parent.mkdir(parents=True)
    with small_disk(repository, "8M"):
        repository.model = "disk"
        repository.checkpoint(100)
        shutil.rmtree(real_parent / "disk" / model)
        done = repository.once()
        assert done.returncode == 0, done.stderr
        assert repository.seen_by_script(100)["CKPT_LIST"] == str(repository.model_dir / "checkpoint-100")
        assert done.stderr.count("no hard links can be made here") == 1
        assert names(repository.model_dir) == {"checkpoint-100"}


def test_a_link_to_a_model_dir_on_another_disk_is_pinned_beside_its_target(repository: Repository) -> None:
    shutil.rmtree(repository.model_dir)
    repository.model = "disk/run-7"
    repository.model_dir.parent.mkdir(parents=True)
    with small_disk(repository, "8M"):
        repository.checkpoint(100)
        link = repository.root / "saves" / "latest"
        link.symlink_to(repository.model_dir)
        done = repository.once("--sft-root", str(link))
        assert done.returncode == 0, done.stderr
        own = repository.model_dir.parent / ".eval-sidecar"
        given = Path(repository.seen_by_script(100)["CKPT_LIST"])
        assert given == own / "latest" / "checkpoint-100"
        assert (repository.root / "results/latest/checkpoint-100/metrics.json").exists()
        assert "pins are kept in" in done.stderr


def test_a_second_sidecar_is_refused_by_whatever_path_the_folder_is_named(repository: Repository) -> None:
    repository.checkpoint(100)
    repository.block(100)
    repository.start()
    link = repository.root / "saves" / "latest"
    link.symlink_to(repository.model_dir)
    done = repository.once("--sft-root", str(link), "--state-dir", "other-state")
    assert done.returncode == 1
    assert "another sidecar already watches this folder" in done.stderr


def test_pins_that_an_earlier_version_left_in_the_model_dir_are_used_and_their_folder_goes(
    repository: Repository,
) -> None:
    path = repository.checkpoint(100)
    old = repository.model_dir / ".eval-sidecar" / repository.model
    old.mkdir(parents=True)
    (old.parent / "lock").touch()
    path.rename(old / "checkpoint-100")
    done = repository.once()
    assert done.returncode == 0, done.stderr
    assert repository.processed == [100]
    assert names(repository.model_dir) == set()
    assert not repository.pins_folder.exists()
