"""Names from disk and what scripts print: shown as escapes, on their own line, and unaltered as data."""

from __future__ import annotations

import json
import os
import pty
import shlex
import shutil
import subprocess
import unicodedata
from collections.abc import Iterator
from pathlib import Path

import pytest

from toolbox import CHECKOUT, Repository, assert_refused, wait_until

FORGED = "2026-01-01 00:00:00 INFO checkpoint-999: all is well"
#: A terminal's title, colours, rich's markup, a line of somebody else, text from right to left.
NAME = f"Toys-sft-\x1b]0;mine\x07\x1b[31m[red][link=x]\r\n{FORGED}\n\u202e\u2028\x9b2J"
SHOWN = ascii(NAME)[1:-1]


@pytest.fixture
def hostile(tmp_path: Path) -> Iterator[Repository]:
    """A repository whose model dir has the worst of names."""
    made = Repository(tmp_path / "GenRec", model=NAME)
    (made.root / "scripts").mkdir()
    shutil.copy(CHECKOUT / "scripts/sync_results_from_remote.sh", made.root / "scripts")
    yield made
    made.clean_up()


def assert_harmless(text: str) -> None:
    """Check that a text obeys no terminal, and that no line of it is anybody else's."""
    for char in text:
        assert char == "\n" or unicodedata.category(char) not in ("Cc", "Cf", "Cs", "Zl", "Zp"), ascii(text)
    assert not [line for line in text.splitlines() if line.startswith(FORGED)], text


def said(done: subprocess.CompletedProcess[str]) -> str:
    assert "Traceback" not in done.stderr, done.stderr
    assert_harmless(done.stdout + done.stderr)
    return done.stdout + done.stderr


def test_a_watched_model_of_any_name_is_shown_on_one_line_and_keeps_its_name(hostile: Repository) -> None:
    hostile.checkpoint(100)
    hostile.checkpoint(200)
    hostile.fail(200, "\x1b[2J\u202eout of memory " + FORGED)
    done = hostile.once("--instance", "cb64")
    assert done.returncode == 1
    assert SHOWN in said(done) and r"\x1b[2J\u202eout of memory" in done.stderr
    assert (hostile.state["model_dir"], hostile.state["run_name"]) == (NAME, f"{NAME}-eval")
    explained = said(hostile.sidecar("explain", "--sft-root", str(hostile.model_dir), "200"))
    assert SHOWN in explained and r"\x1b[2J" in explained

    assert SHOWN in said(hostile.sidecar("start", "--instance", NAME, *hostile.flags))
    tail = hostile.spawn("bash", "eval_wandb_sidecar.sh", "tail", "--instance", NAME)
    wait_until(lambda: "watching" in tail.output, "the log on the screen")
    assert SHOWN in said(hostile.sidecar("status"))
    (state,) = json.loads(said(hostile.sidecar("status", "--json")))
    assert (state["instance"], state["models"][0]["model"]) == (NAME, NAME)
    assert SHOWN in said(hostile.sidecar("stop", "--instance", NAME))
    assert tail.wait() == 0
    assert_harmless(tail.output)
    assert SHOWN in tail.output


@pytest.mark.wandb
def test_a_models_name_survives_manifest_pack_unpack_and_upload(hostile: Repository) -> None:
    metrics = hostile.metrics(100)
    metrics.parent.mkdir(parents=True)
    metrics.write_text(json.dumps({"HR@10": 0.5}))
    (metrics.parent / "broken\n\x1b[31m").symlink_to("nowhere")
    broken = hostile.metrics(200)
    broken.parent.mkdir()
    broken.write_text("{")
    sync = ("bash", "scripts/sync_results_from_remote.sh")
    assert SHOWN in said(hostile.execute(*sync, "pack"))
    shutil.rmtree(hostile.results)
    assert hostile.execute(*sync, "unpack").returncode == 0
    assert json.loads(metrics.read_text()) == {"HR@10": 0.5}
    (model,) = json.loads((hostile.root / "results/.wandb_eval_manifest.json").read_text())["models"]
    assert (model["model_dir"], model["wandb_run_name"]) == (NAME, f"{NAME}-eval")
    done = hostile.sidecar("once", "--results-root", "results", "--disable-wandb")
    assert done.returncode == 1 and SHOWN in said(done)
    wrong = hostile.sidecar("once", "--results-root", "results", "--model-filter", f"{NAME}!")
    assert wrong.returncode == 2 and SHOWN in said(wrong)


def test_the_names_of_metrics_are_shown_on_a_screen_as_they_are(hostile: Repository) -> None:
    metrics = hostile.metrics(100)
    metrics.parent.mkdir(parents=True)
    metrics.write_text(json.dumps({"[red]a\x1b[31m": 0.5, "[/b]": 0.25}))
    line = shlex.join(["bash", "eval_wandb_sidecar.sh", "once", *hostile.flags])
    screen, program = pty.openpty()
    with os.fdopen(program, "wb") as out:
        process = subprocess.Popen(
            ["bash", "-c", line],
            cwd=hostile.root,
            env=hostile.environment({"TERM": "dumb", "COLUMNS": "200"}),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
        )
    shown = b""
    while True:
        try:
            shown += (got := os.read(screen, 65536))
        except OSError:  # how a terminal's end looks on Linux
            break
        if not got:
            break
    os.close(screen)
    assert process.wait() == 0, shown
    text = shown.decode()
    assert r"[red]a\x1b[31m" in text and "[/b]" in text
    assert "\x1b]0;" not in text and "\x1b[31m[red]" not in text


def test_a_path_that_is_no_utf8_is_carried_and_shown(tmp_path: Path) -> None:
    repository = Repository(tmp_path / os.fsdecode(b"caf\xe9 \xff"))
    try:
        repository.checkpoint(100)
        assert r"\udce9" in said(repository.once())
        assert repository.processed == [100]
        explained = said(repository.sidecar("explain", "--sft-root", str(repository.model_dir), "100"))
        assert str(repository.metrics(100)).encode("ascii", "backslashreplace").decode() in explained
    finally:
        repository.clean_up()


def test_a_model_whose_name_is_no_utf8_is_refused_in_one_line(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "GenRec", model=os.fsdecode(b"Toys-\xff"))
    repository.results.mkdir(parents=True)
    assert_refused(repository.once(), r"--sft-root 'Toys-\udcff'", "not valid UTF-8", "rename")
    assert_refused(repository.sidecar("prepare-manifest"), r"'Toys-\udcff'", "not valid UTF-8", "rename")


def test_a_terminal_without_our_characters_gets_escapes(tmp_path: Path) -> None:
    repository = Repository(tmp_path / "GenRec", model="模型-sft")
    repository.checkpoint(100)
    done = repository.once(env={"PYTHONIOENCODING": "latin-1"})
    assert done.returncode == 0, done.stderr
    assert r"\u6a21\u578b-sft" in done.stdout
