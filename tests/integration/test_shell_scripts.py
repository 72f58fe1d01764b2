"""The shell scripts, with paths and names of every kind: blanks, quotes, line breaks, commands, dashes."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from toolbox import CHECKOUT, Repository, assert_refused, wait_until

#: Everything that a shell could take for something else.
AWKWARD = "-rf 'a' \"b\" $(touch pwned) `touch pwned` $HOME ; touch pwned & *[a-z]? \\n %s\nend"


@pytest.fixture
def awkward(tmp_path: Path) -> Iterator[Repository]:
    """A repository where everything that has a name has an awkward one."""
    made = Repository(tmp_path / f"{AWKWARD}\n", model=AWKWARD)
    (made.root / "scripts").mkdir()
    shutil.copy(CHECKOUT / "scripts/sync_results_from_remote.sh", made.root / "scripts")
    # A relative `cd` would look there first, and say where it went.
    (tmp_path / "cdpath/scripts").mkdir(parents=True)
    made.add_python("-python", (made.home / "bin/python").read_text().partition("\n")[2])
    made.extra.update(CDPATH=str(tmp_path / "cdpath"), PYTHON_BIN="-python")
    yield made
    made.clean_up()
    assert not list(tmp_path.rglob("pwned"))


def test_an_instance_is_managed_with_awkward_names_all_over(awkward: Repository) -> None:
    (awkward.root / "eval_wandb_sidecar.py").rename(awkward.root / f"-{AWKWARD}.py")
    (awkward.root / "eval_wandb_sidecar.sh").rename(awkward.root / "scripts/run it.sh")
    manager = awkward.root / AWKWARD / "log"
    awkward.extra.update(MANAGER_DIR=f"{AWKWARD}/log", INSTANCE=AWKWARD, SIDECAR_PY=f"-{AWKWARD}.py")
    awkward.checkpoint(100)
    flags = [
        *("--sft-root", f"saves/{AWKWARD}", "--repo-root", ".", "--disable-wandb", "--category"),
        *("Instruments_grec", "--python-bin", "python", "--state-dir", AWKWARD),
    ]
    script = ("bash", "scripts/run it.sh")
    started = awkward.execute(*script, "start", *flags)
    assert started.returncode == 0, started.stderr
    (status,) = json.loads(awkward.execute(*script, "status", "--json").stdout)
    assert (status["instance"], status["running"]) == (AWKWARD, True)
    assert Path(status["log"]).parent == manager
    wait_until(awkward.metrics(100).exists, "the result")
    assert "--instance" in awkward.execute(*script, "stop", "-h").stdout
    stopped = awkward.execute(*script, "stop", "--sft-root", AWKWARD)
    assert stopped.stdout.startswith("stopped"), stopped.stdout
    assert awkward.calls == ["checkpoint-100"]
    assert {path.parent for path in manager.glob("*.*")} == {manager}
    assert not [path for path in manager.iterdir() if path.name.startswith("-")]


def test_the_files_of_an_instance_stay_in_the_manager_folder(awkward: Repository) -> None:
    def files() -> set[Path]:
        return {path for path in awkward.root.parent.rglob("*") if "commands" not in path.parts}

    before = files()
    done = awkward.sidecar("start", "--instance", "../../x", "--sft-root", "nowhere")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    new = files() - before
    assert [path.parent for path in new if path.is_file()] == [awkward.manager]


def test_results_are_carried_with_awkward_names_all_over(awkward: Repository) -> None:
    metrics = awkward.root / "-results" / AWKWARD / "checkpoint-100" / "metrics.json"
    metrics.parent.mkdir(parents=True)
    metrics.write_text('{"HR@10": 0.5}')
    (awkward.root / AWKWARD).mkdir()
    sync = ("bash", "scripts/sync_results_from_remote.sh")
    packed = awkward.execute(*sync, "pack", "--results-root=-results", f"--output-dir={AWKWARD}")
    assert packed.returncode == 0, packed.stderr
    (archive,) = (awkward.root / AWKWARD).iterdir()
    shutil.rmtree(awkward.root / "-results")
    unpacked = awkward.execute(*sync, "unpack", "--results-root=-results", "--", f"{AWKWARD}/{archive.name}")
    assert unpacked.returncode == 0, unpacked.stderr
    assert metrics.read_text() == '{"HR@10": 0.5}'


@pytest.mark.parametrize("script", ["eval_wandb_sidecar.sh", "scripts/sync_results_from_remote.sh"])
def test_what_a_script_refuses_is_named_in_one_line(awkward: Repository, script: str) -> None:
    assert_refused(awkward.execute("bash", script, "do\nthis"), "unknown command do?this")
    assert_refused(
        awkward.execute("bash", script, "pack", env={"PYTHON_BIN": "no\npython"}), "no?python: command not"
    )
    assert_refused(
        awkward.execute("bash", script, "pack", env={"SIDECAR_PY": "-no\n.py"}), "./-no?.py: there"
    )


#: Stands for a Python, in whose environments a program names its Python by its path. Notes what pip is asked.
PYTHON = """#!/bin/sh
case "$*" in
    -c*) echo 3.12 ;;
    "-m pip "*) printf '%s\\n' "$*" >>"$PIP_LOG" ;;
    "-m venv "*)
        mkdir -p "$3/bin"
        cp "$0" "$3/bin/python"
        printf '#!%s' "$3/bin/python" > "$3/bin/mypy" ;;
esac
"""


def checkout_with_setup(root: Path, log: Path) -> Callable[..., str]:
    """Make a checkout of scripts/setup at `root`; return what runs it there and returns what it printed."""
    (root / "scripts").mkdir(parents=True)
    for name in ("scripts/setup", "pyproject.toml"):
        shutil.copy(CHECKOUT / name, root / name)
    shutil.copytree(CHECKOUT / "requirements", root / "requirements")
    python = log.with_name("python")
    python.write_text(PYTHON)
    python.chmod(0o755)

    def set_up(checkout: Path, *arguments: str) -> str:
        command = ["bash", str(checkout / "scripts/setup"), *arguments]
        environment = {"PATH": "/usr/bin:/bin", "PYTHON": str(python), "PIP_LOG": str(log)}
        done = subprocess.run(command, env=environment, capture_output=True, check=True, text=True)
        assert done.stderr == ""
        return done.stdout

    return set_up


def test_an_environment_of_the_newest_releases_stays_so_until_the_lock_is_asked_for(tmp_path: Path) -> None:
    log = tmp_path / "pip.log"
    set_up = checkout_with_setup(tmp_path / "a", log)

    def installed(*arguments: str) -> str:
        log.write_text("")
        set_up(tmp_path / "a", *arguments)
        return log.read_text()

    assert installed().count("-c requirements/lock.txt") == 2
    assert installed() == ""
    for _ in range(2):  # what is newest may have moved since
        newest = installed("--newest")
        assert newest.count("--upgrade-strategy eager -c requirements/held.txt") == 2
        assert "lock.txt" not in newest
    assert installed() == "", "scripts that call it without arguments leave it alone"
    assert "requirements/lock.txt" in installed("--locked")
    assert installed() == ""


def test_setup_makes_the_environment_anew_where_the_checkout_has_moved(tmp_path: Path) -> None:
    root, moved = tmp_path / "a", tmp_path / f"{AWKWARD}\n"
    set_up = checkout_with_setup(root, tmp_path / "pip.log")
    assert "making .venv" in set_up(root)
    assert set_up(root) == ""
    root.rename(moved)
    assert "making .venv" in set_up(moved)
    assert (moved / ".venv/bin/mypy").read_text() == f"#!{moved}/.venv/bin/python"
    (moved / "requirements/lock.txt").write_text("")
    printed = set_up(moved)
    assert "installing" in printed and "making .venv" not in printed, "the libraries are not fetched again"
    assert set_up(moved) == ""


def test_the_quickstart_finds_its_checkout_at_any_path(tmp_path: Path) -> None:
    root = tmp_path / f"{AWKWARD}x"
    (root / "scripts").mkdir(parents=True)
    (root / ".venv/bin").mkdir(parents=True)
    (tmp_path / "cdpath/scripts").mkdir(parents=True)
    shutil.copy(CHECKOUT / "scripts/quickstart", root / "scripts")
    setup, python = root / "scripts/setup", root / ".venv/bin/python"
    setup.write_text("#!/bin/sh\n")
    python.write_text('#!/bin/sh\n[ "$1" = -c ] || printf "%s\\0" "$@"\n')
    for program in (setup, python):
        program.chmod(0o755)
    done = subprocess.run(
        ["bash", "scripts/quickstart", AWKWARD],
        cwd=root,
        env={"PATH": "/usr/bin:/bin", "CDPATH": str(tmp_path / "cdpath")},
        capture_output=True,
        check=True,
        text=True,
    )
    assert done.stdout.split("\0")[:2] == [f"{root}/examples/quickstart/run.py", AWKWARD]
    assert not list(tmp_path.rglob("pwned"))


def test_scripts_have_their_run_bit_and_keep_their_line_ends_on_windows() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-s"], cwd=CHECKOUT, capture_output=True, text=True, check=False
    ).stdout.splitlines()
    if not listed:
        pytest.skip("not a git checkout")
    modes = {line.partition("\t")[2]: line.split()[0] for line in listed}
    for name, mode in modes.items():
        path = CHECKOUT / name
        if mode != "120000" and path.is_file() and path.read_bytes()[:2] == b"#!":
            assert mode == "100755", name
    asked = subprocess.run(
        [
            "git",
            "check-attr",
            "eol",
            "--",
            "eval_wandb_sidecar.sh",
            "evaluate_sft_3b.sh",
            "scripts/setup",
            "a.py",
        ],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    assert [line.rpartition(" ")[2] for line in asked] == ["lf"] * 4
