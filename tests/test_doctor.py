"""``eval-sidecar doctor``: what it says of a machine, on machines of every kind."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from eval_sidecar.cli import show
from eval_sidecar.diagnosis import machine
from eval_sidecar.diagnosis.base import REQUIREMENTS, Finding, Mark, unmet
from eval_sidecar.diagnosis.evaluation import check_gpus, check_libraries, check_python, probe_python
from toolbox import CHECKOUT, Repository, write_checkpoint

KEY = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tmp_path / "GenRec")
    made.script.unlink()
    made.add_python("bare", f"exec '{sys.executable}' -S \"$@\"")
    yield made
    made.clean_up()


def checks(done: subprocess.CompletedProcess[str]) -> dict[str, dict[str, str]]:
    return {check["name"]: check for check in json.loads(done.stdout)["checks"]}


# -- versions --------------------------------------------------------------------------------------------


def test_the_versions_that_are_asked_for_are_those_that_pip_is_given():
    text = (CHECKOUT / "pyproject.toml").read_text()
    for library, requirement in REQUIREMENTS.items():
        assert re.search(rf'"{library}{re.escape(requirement)}"', text), library


@pytest.mark.parametrize(
    ("library", "version", "part"),
    [
        ("torch", "2.3.1+cu121", ">=2.4"),
        ("torch", "2.4.0", ""),
        ("torch", "2.13.0+cpu", ""),
        ("transformers", "4.50.3", ">=4.51"),
        ("transformers", "5.0.0rc1", ""),
        ("wandb", "0.19.9", ">=0.19.10"),
        ("wandb", "0.24.0", "!=0.24.0"),
        ("wandb", "0.24.1", ""),
        ("wandb", "0.27.1", "!=0.27.1"),
        ("wandb", "0.27.2", "!=0.27.2"),
        ("wandb", "0.31.0", ""),
        ("tokenizers", "0.1", ""),
    ],
)
def test_a_version_is_compared_part_by_part(library, version, part):
    assert unmet(library, version) == part


# -- libraries and GPUs ----------------------------------------------------------------------------------


def probe(**libraries: dict[str, str]) -> dict[str, Any]:
    found = {
        "torch": {"version": "2.13.0"},
        "transformers": {"version": "5.1"},
        "tokenizers": {"version": "1"},
    }
    return {"python": "3.11.7", "executable": "/py", "libraries": {**found, "peft": {}, **libraries}}


def marks(findings: list[Finding]) -> dict[str, Mark]:
    return {finding.name: finding.mark for finding in findings}


def test_what_is_missing_old_or_broken_is_said_with_a_command_for_that_python():
    found = probe(
        torch={}, transformers={"version": "4.50.0"}, tokenizers={"version": "1", "error": "OSError: x"}
    )
    findings = check_libraries(found, is_needed=True, has_adapters=True)
    assert {finding.mark for finding in findings} == {Mark.BROKEN}
    assert all(finding.advice.find("/py -m pip install ") >= 0 for finding in findings)
    assert "4.50.0, but transformers>=4.51 is needed" in findings[1].found
    assert "cannot be imported: OSError: x" in findings[2].found


def test_adapters_need_a_library_that_others_do_not():
    assert marks(check_libraries(probe(), is_needed=True, has_adapters=False))["peft"] is Mark.ABSENT
    assert marks(check_libraries(probe(), is_needed=True, has_adapters=True))["peft"] is Mark.BROKEN


def test_a_script_of_others_may_need_none_of_it():
    findings = check_libraries(probe(torch={}), is_needed=False, has_adapters=True)
    assert Mark.BROKEN not in marks(findings).values()


GPU = {"name": "H100", "bytes": 80 * 2**30}


@pytest.mark.parametrize(
    ("found", "driver", "mark", "words"),
    [
        (
            {"gpus": [GPU, GPU], "devices": ["cuda:0"], "cuda": "12.6"},
            2,
            Mark.WORKS,
            "0: H100 (80 GiB), 1: H100",
        ),
        (
            {"gpus": [GPU], "problem": "GPU 3 is not there", "cuda": "12.6"},
            1,
            Mark.BROKEN,
            "GPU 3 is not there",
        ),
        ({"gpus": [], "devices": ["cpu"], "cuda": None}, 0, Mark.ABSENT, "CPU only"),
        ({"gpus": [], "devices": ["cpu"], "cuda": None}, 2, Mark.LIMITED, "shows 2 (Card 0), and torch none"),
        (
            {"gpus": [], "devices": ["cpu"], "cuda": "12.6"},
            1,
            Mark.LIMITED,
            "shows 1 (Card 0), and torch none",
        ),
    ],
)
def test_gpus_of_the_driver_and_of_torch_are_compared(found, driver, mark, words, tmp_path, monkeypatch):
    if driver:
        line = "echo 'GPU {0}: Card {0} (UUID: GPU-{0})'\n"
        names = "".join(map(line.format, range(driver)))
        put_program(tmp_path, "nvidia-smi", names)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    finding = check_gpus(found, "0")
    assert finding.mark is mark and words in finding.found


def put_program(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}")
    path.chmod(0o755)


def test_a_python_that_does_not_run_is_named(tmp_path):
    answer, problem = probe_python("/no/python", "0", tmp_path)
    finding = check_python(answer, problem, "/no/python")
    assert finding.mark is Mark.BROKEN and "/no/python cannot be run: No such file" in finding.found


# -- folders ---------------------------------------------------------------------------------------------


def test_a_folder_that_can_do_all_is_left_as_it_was(tmp_path):
    checkpoint = write_checkpoint(tmp_path, 5)
    finding = machine.check_folder(tmp_path, 0, needs_locks=True, link_from=checkpoint / "config.json")
    assert (finding.mark, finding.advice) == (Mark.WORKS, ""), finding
    assert "free): hard links, notifications and locks work" in finding.found
    assert list(tmp_path.iterdir()) == [checkpoint]
    assert (checkpoint / "config.json").stat().st_nlink == 1


def test_a_folder_that_is_not_there_yet_is_tried_above_and_not_made(tmp_path):
    finding = machine.check_folder(tmp_path / "a/b", 0, needs_locks=False)
    assert finding.mark is Mark.WORKS and str(tmp_path / "a/b") in finding.found
    assert not list(tmp_path.iterdir())


def refuse(*_: object, **__: object) -> None:
    raise OSError(errno.EPERM, "Operation not permitted")


def test_without_hard_links_rotation_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "link", refuse)
    finding = machine.check_folder(tmp_path, 0, needs_locks=True)
    assert finding.mark is Mark.LIMITED and "no hard links" in finding.found
    assert "rotates away" in finding.advice and "Operation not permitted" in finding.advice


def test_without_notifications_polling_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("watchfiles.watch", refuse)
    monkeypatch.setattr(machine, "_NOTICE_SECONDS", 0.05)
    finding = machine.check_folder(tmp_path, 0, needs_locks=True)
    assert finding.mark is Mark.LIMITED and "no notifications" in finding.found
    assert "--poll-interval-seconds" in finding.advice


@pytest.mark.parametrize(("needs_locks", "mark"), [(True, Mark.BROKEN), (False, Mark.LIMITED)])
def test_without_locks_no_ledger_can_be_kept(needs_locks, mark, tmp_path, monkeypatch):
    monkeypatch.setattr("fcntl.flock", refuse)
    finding = machine.check_folder(tmp_path, 0, needs_locks=needs_locks)
    assert finding.mark is mark and "no locks" in finding.found
    assert "--state-dir" in finding.advice


def test_a_full_disk_is_named(tmp_path):
    finding = machine.check_folder(tmp_path, 2**60, needs_locks=True)
    assert finding.mark is Mark.LIMITED and "--min-free-space" in finding.advice


def test_a_folder_that_cannot_be_written_is_broken(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.mkdtemp", refuse)
    finding = machine.check_folder(tmp_path, 0, needs_locks=False)
    assert finding.mark is Mark.BROKEN and "cannot be written: Operation not permitted" in finding.found


# -- Slurm -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sinfo", "mark", "words"),
    [
        ("echo 'gpu* up'; echo 'gpu* up'; echo 'old down'", Mark.WORKS, "slurm 24.05, partitions: gpu"),
        ("echo 'old down'", Mark.LIMITED, "no partition answers"),
        (
            "echo 'sinfo: error: a' >&2; echo 'Unable to contact' >&2; exit 1",
            Mark.LIMITED,
            "Unable to contact",
        ),
    ],
)
def test_slurm_is_asked_for_its_partitions(sinfo, mark, words, tmp_path, monkeypatch):
    put_program(tmp_path, "sbatch", "echo slurm 24.05")
    put_program(tmp_path, "sinfo", sinfo)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    first = machine.check_slurm(is_needed=False)[0]
    assert first.mark is mark and words in first.found
    needed = machine.check_slurm(is_needed=True)[0]
    assert needed.mark is (Mark.BROKEN if mark is Mark.LIMITED else mark)


@pytest.mark.slurm
def test_a_real_slurm_answers(slurm_cluster, monkeypatch):
    for name, value in slurm_cluster.environment.items():
        monkeypatch.setenv(name, value)
    (found,) = machine.check_slurm(is_needed=True)
    assert found.mark is Mark.WORKS
    assert re.match(r"slurm.* \d+\.\d+.*, partitions: main", found.found), found


def test_no_slurm_is_no_failure_unless_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert machine.check_slurm(is_needed=False)[0].mark is Mark.ABSENT
    assert machine.check_slurm(is_needed=True)[0].mark is Mark.BROKEN


# -- the command -----------------------------------------------------------------------------------------


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="the sidecar's own Python has them")
def test_a_python_without_the_libraries_is_a_failure_that_names_what_to_install(repository):
    done = repository.sidecar("doctor", "--python-bin", "bare", "--json", "--disable-wandb")
    assert done.returncode == 1, done.stdout + done.stderr
    assert json.loads(done.stdout)["works"] is False
    found = checks(done)
    for name in ("torch", "transformers", "tokenizers"):
        assert found[name]["mark"] == "broken"
        assert "pip install" in found[name]["advice"] and "[genrec]" in found[name]["advice"]
    assert found["evaluation"]["mark"] == "broken"
    assert found["folder"]["mark"] == "works"


def test_a_script_of_your_own_is_not_tried_and_needs_nothing_of_ours(repository):
    repository.script.write_text("true\n")
    done = repository.sidecar("doctor", "--python-bin", "bare", "--disable-wandb")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    assert f"absent   evaluation: not tried: {repository.script} is a script of your own" in lines
    assert lines[-1] == "all that is needed works"


def test_a_key_is_found_and_never_shown(repository):
    repository.script.write_text("true\n")
    for flags in ([], ["--json"]):
        done = repository.sidecar("doctor", "--python-bin", "bare", *flags, env={"WANDB_API_KEY": KEY})
        assert KEY not in done.stdout + done.stderr
        assert "WANDB_API_KEY" in done.stdout


def test_the_flags_of_a_watch_are_checked(repository):
    repository.script.write_text("true\n")
    flags = [*repository.flags[:-1], "--python-bin", "bare", "--disable-wandb"]
    assert "can be watched" in checks(repository.sidecar("doctor", *flags, "--json"))["flags"]["found"]
    repository.index.unlink()
    done = repository.sidecar("doctor", *flags)
    assert done.returncode == 1
    assert "--index-path" in done.stdout and done.stdout.splitlines()[-1] == "NOT WORKING  flags"


def test_on_a_screen_a_finding_has_a_mark_and_fits_into_80_columns(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm")
    show.finding(
        Finding("transformers", Mark.BROKEN, "4.50.0, " + "words " * 30, "/py -m pip install " + "x" * 90)
    )
    lines = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out).splitlines()
    assert lines[0].startswith(("✗ transformers", "b transformers"))
    assert len(lines) > 4 and max(map(len, lines)) <= 80


@pytest.mark.genrec
def test_a_python_without_the_libraries_gives_way_to_that_of_the_sidecar(repository):
    pytest.importorskip("torch")
    done = repository.sidecar(
        "doctor", "--python-bin", "bare", "--json", "--disable-wandb", "--cuda-list", "cpu"
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = checks(done)
    assert found["Python (eval)"]["mark"] == "limited"
    assert f"{sys.executable} is used" in found["Python (eval)"]["found"]
    assert found["torch"]["mark"] == found["evaluation"]["mark"] == "works"


@pytest.mark.genrec
@pytest.mark.wandb
def test_where_all_is_there_an_evaluation_and_a_session_are_tried_and_nothing_is_left(repository):
    pytest.importorskip("torch")
    pytest.importorskip("wandb")
    before = sorted(repository.root.rglob("*"))
    done = repository.sidecar("doctor", "--cuda-list", "cpu")
    left = [path for path in sorted(repository.root.rglob("*")) if path not in before]
    assert done.returncode == 0, done.stdout + done.stderr
    assert "works    evaluation: a small model was made and evaluated in " in done.stdout
    assert "works    W&B session: a point was written offline" in done.stdout
    assert done.stdout.endswith("all that is needed works\n")
    kept = {repository.home / name for name in (".cache", ".config", ".triton", ".local")}
    assert all(
        "commands" in path.parts or "__pycache__" in path.parts or not kept.isdisjoint({path, *path.parents})
        for path in left
    ), left
