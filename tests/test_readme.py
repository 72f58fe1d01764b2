"""README does what it says, in both languages: its commands are run, or at least taken by the real parser.

Run for real, in a copy of the repository with small stand-ins: the quick start on one's own training, and the
two machines (against a server of the tests). Parsed by the real commands: Slurm, and every command and flag
within sentences. Only compared with pyproject.toml and the folder of scripts: what installs, the quick start
(`integration/test_real_training.py` trains) and the tests themselves.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import shutil
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import click
import pytest

from eval_sidecar.cli import cli, resolve
from readmes import READMES, ROOT, blocks_of, inline_code, named_in, text_of
from toolbox import CHECKOUT, Repository, wait_until

SCRIPTS, TRAINING, INSTALLATION, CLUSTER, TWO_MACHINES = range(5)
#: Scripts that hand over to the command line.
_ENTRIES = ("eval-sidecar", "eval_wandb_sidecar.sh", "eval_wandb_sidecar.py", "sync_results_from_remote.sh")
_SOURCES = "\n".join(path.read_text("utf-8") for path in sorted((ROOT / "src").rglob("*.py")))


@pytest.fixture
def repository(tmp_path: Path) -> Iterator[Repository]:
    made = Repository(tmp_path / "GenRec")
    (made.root / "scripts").mkdir()
    shutil.copy(CHECKOUT / "scripts/sync_results_from_remote.sh", made.root / "scripts")
    yield made
    made.clean_up()


def words_after_entry(line: str) -> list[str]:
    """What a command line gives to eval-sidecar; empty if it is another program's."""
    words = shlex.split(line)
    places = [number for number, word in enumerate(words) if word.rpartition("/")[2] in _ENTRIES]
    return words[places[0] + 1 :] if places else []


def command_of(name: str) -> click.Command:
    found = cli.get_command(click.Context(cli), name)
    assert found is not None, f"there is no command {name}"
    return found


def flags_of(command: click.Command) -> set[str]:
    return {
        flag
        for option in command.get_params(click.Context(command))
        for flag in (*option.opts, *option.secondary_opts)
    } | {"--help"}


def all_flags() -> set[str]:
    return set().union(*(flags_of(command_of(name)) for name in cli.list_commands(click.Context(cli))))


def files_in(root: Path) -> set[str]:
    """Every file that lies where README's table says that we write."""
    found = set()
    for top in ("results", "state", "log", "saves/.eval-sidecar"):
        for path in (root / top).rglob("*"):
            if path.is_file() or path.is_symlink():
                found.add(str(path.relative_to(root)))
    return found


def not_in_table(root: Path, readme: str) -> set[str]:
    """Files that no row of the table names."""
    patterns = []
    for name in named_in(readme):
        pattern = re.escape(name.replace("<parent>", "saves").replace("…", "ANY"))
        pattern = re.sub(r"<\w+>", r"[^/]+", pattern.replace(r"\<", "<").replace(r"\>", ">"))
        patterns.append(re.compile(pattern.replace("ANY", ".*") + "(/.*)?"))
    return {name for name in files_in(root) if not any(pattern.fullmatch(name) for pattern in patterns)}


# -- what is run ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("readme", READMES)
def test_the_commands_for_ones_own_training_work_as_shown(readme, repository):
    repository.extra["WANDB_MODE"] = "disabled"
    repository.checkpoint(100)
    start, status, tail, stop = (
        line.replace("/path/to", str(repository.root)) for line in blocks_of(readme)[TRAINING]
    )
    started = repository.type(start)
    assert started.returncode == 0, started.stdout + started.stderr
    repository.wait_for_result(100)
    shown = repository.type(status)
    assert shown.returncode == 0
    assert repository.model in shown.stdout
    assert "1/1" in shown.stdout
    following = repository.spawn("bash", "-c", tail)
    wait_until(lambda: "checkpoint-100: HR@10" in following.output, "the log")
    assert not_in_table(repository.root, readme) == set()
    assert repository.type(stop).returncode == 0
    assert following.wait() == 0
    assert repository.seen_by_script(100)["CATEGORY"] == "Instruments_grec"
    assert repository.type(status).returncode == 3


@pytest.mark.wandb
@pytest.mark.parametrize("readme", READMES)
def test_the_five_commands_bring_results_from_one_machine_to_the_server(readme, repository, tmp_path):
    pytest.importorskip("wandb")
    from wandb_server import WandbServer

    for step in (100, 200):
        repository.metrics(step).parent.mkdir(parents=True)
        repository.metrics(step).write_text('{"HR@10": 0.5, "NDCG@10": 0.25}')
    pack, unpack, once, verify, pack_rest = blocks_of(readme)[TWO_MACHINES]
    assert repository.type(pack).returncode == 0
    local = Repository(tmp_path / "local" / "GenRec")
    try:
        shutil.copytree(repository.root / "scripts", local.root / "scripts")
        (local.home / "Downloads").mkdir()
        for archive in repository.root.glob("results_sync_*"):
            archive.replace(local.home / "Downloads" / archive.name)
        with WandbServer() as server:
            local.extra.update(WANDB_BASE_URL=server.url, WANDB_API_KEY=server.key)
            for line in (unpack, once, verify):
                done = local.type(line)
                assert done.returncode == 0, done.stdout + done.stderr
            (run,) = server.runs.values()
            assert [row["checkpoint_step"] for row in run.rows] == [100, 200]
        assert not_in_table(local.root, readme) == set()
        receipt = ".wandb_eval_receipt.json"
        shutil.copy(local.root / "results" / receipt, repository.root / "results" / receipt)
    finally:
        local.clean_up()
    rest = repository.type(pack_rest)
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert not list(repository.root.glob("results_sync_*")), "all of it was confirmed"
    assert not_in_table(repository.root, readme) == set()


# -- what is parsed ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("readme", READMES)
def test_every_command_of_a_block_is_taken_by_the_real_parser(readme, monkeypatch):
    monkeypatch.setattr(os, "environ", {})  # flags, not variables
    parsed = 0
    for line in chain(*blocks_of(readme)):
        words = words_after_entry(line)
        if not words or words[0] in ("unpack", "verify"):
            continue  # run above, with files that are there
        # What `start` is given, `run` gets.
        name, *rest = resolve(["run", *words[1:]] if words[0] == "start" else words)
        command_of(name).make_context(name, rest, resilient_parsing=False)
        parsed += 1
    assert parsed >= 7


@pytest.mark.parametrize("readme", READMES)
def test_every_command_within_a_sentence_exists_and_has_its_flags(readme):
    seen = 0
    for code in inline_code(readme):
        first, *words = code.split()
        if first not in _ENTRIES or not words or not words[0].isidentifier():
            continue
        name = resolve(["run" if words[0] == "start" else words[0], *words[1:]])[0]
        wanted = {word.partition("=")[0] for word in words if word.startswith("--")}
        assert wanted <= flags_of(command_of(name)), code
        seen += 1
    assert seen >= 10


@pytest.mark.parametrize("readme", READMES)
def test_every_flag_within_a_sentence_is_one_of_a_command(readme):
    flags = {word for code in inline_code(readme) for word in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code)}
    of_scripts = {"--checkpoints", "--newest", "--locked", "--trials", "--seed"}
    assert sorted(flags - all_flags() - of_scripts) == []


# -- what is compared -------------------------------------------------------------------------------------


def test_both_languages_show_the_same_commands():
    english, chinese = map(blocks_of, READMES)
    assert len(english) == TWO_MACHINES + 1
    assert english == chinese


@pytest.mark.parametrize("readme", READMES)
def test_scripts_that_are_named_are_there_and_can_be_run(readme):
    lines = [*blocks_of(readme)[SCRIPTS], *inline_code(readme)]
    named = {line.split()[0] for line in lines if re.match(r"scripts/\w+", line)}
    assert len(named) >= 3
    for name in named:
        assert os.access(ROOT / name, os.X_OK), name


@pytest.mark.parametrize("readme", READMES)
def test_what_is_installed_is_what_the_project_calls_it(readme):
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    (version,) = re.findall(r'^version = "(.+)"', project, re.M)
    (extras,) = re.findall(r"^\[project\.optional-dependencies\]\n(.*?)^\[", project, re.M | re.S)
    lines = [line for line in chain(*blocks_of(readme)) if line.startswith("pip install")]
    assert len(lines) >= 4
    for line in lines:
        (asked,) = re.findall(r"\[([\w,]+)\]", line)
        assert set(asked.split(",")) <= set(re.findall(r"^(\w+) = ", extras, re.M)), line
        assert "dist/" not in line or f"eval_sidecar-{version}-py3-none-any.whl" in line


def printed_texts() -> str:
    """Every text of the sources, with the pieces of one message put together."""
    tree = ast.parse(_SOURCES.replace("from __future__ import annotations", ""))
    joined = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    plain = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    return "\n".join([*joined, *(text for text in plain if isinstance(text, str))])


@pytest.mark.parametrize("readme", READMES)
def test_messages_that_are_explained_are_said_like_that(readme):
    titles = re.findall(r"^- \*\*(.+?)\*\*", text_of(readme).partition("doctor` ")[2], re.M)
    quoted = [code for title in titles for code in re.findall(r"`([^`]+)`", title)]
    assert len(quoted) >= 7
    ours, missing = printed_texts(), []
    for message in quoted:
        if message.startswith("python:"):
            continue  # the shell's own
        known = re.sub(r"model\.safetensors|0600", "…", message)
        pieces = [piece.strip() for piece in re.split("…|: ", known)]
        missing += [message for piece in pieces if len(piece) > 4 and piece not in ours]
    assert missing == []
