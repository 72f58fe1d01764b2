"""The list of commands, and that a command brings in no more than it needs."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys

import click
import pytest

from eval_sidecar.cli import _COMMANDS, _SECTIONS, cli

_RUN = """
import sys
from eval_sidecar.cli import main
try:
    main(sys.argv[1:])
except SystemExit as end:
    print(end.code, *sys.modules)
"""


@pytest.mark.parametrize("name", _COMMANDS)
def test_the_list_says_of_a_command_what_the_command_says_of_itself(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None and command.name == name
    assert command.help.startswith(_COMMANDS[name][2])


def run(tmp_path, *arguments: str) -> list[str]:
    """Exit code and imported modules of a command."""
    done = subprocess.run(
        [sys.executable, "-c", _RUN, *arguments],
        cwd=tmp_path,
        env={"PYTHONPATH": ":".join(sys.path), "XDG_STATE_HOME": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=60,
    )
    return done.stdout.splitlines()[-1].split()


@pytest.mark.parametrize(
    ("arguments", "code", "unneeded"),
    [
        (["--help"], "0", {"psutil", "filelock", "rich", "watchfiles", "wandb"}),
        (["status"], "3", {"rich", "watchfiles", "wandb", "tarfile"}),
        (["watch", "--help"], "0", {"watchfiles", "wandb", "tarfile"}),
        (
            ["doctor", "--python-bin", "false", "--eval-script", __file__],
            "1",
            {"torch", "transformers", "wandb"},
        ),
    ],
    ids=["help", "status", "watch", "doctor"],
)
def test_a_command_imports_only_what_it_needs(tmp_path, arguments, code, unneeded):
    said, *modules = run(tmp_path, *arguments)
    assert said == code
    assert "eval_sidecar.cli" in modules
    assert unneeded.isdisjoint(modules)


def test_a_command_that_there_is_not_is_refused(tmp_path):
    assert run(tmp_path, "no-such-command")[0] == "2"


# -- help -------------------------------------------------------------------------------------------------


def eval_sidecar(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the command line as it is typed."""
    return subprocess.run(
        [sys.executable, "-m", "eval_sidecar", *arguments],
        env={
            **{name: os.environ[name] for name in ("PATH", "XDG_STATE_HOME")},
            "PYTHONPATH": ":".join(sys.path),
            "COLUMNS": "80",
            **variables,
        },
        capture_output=True,
        check=False,
        text=True,
        timeout=60,
    )


def test_the_help_lists_every_command_once():
    shown = [line.split()[0] for line in eval_sidecar("-h").stdout.splitlines() if line.startswith("  ")]
    assert set(_COMMANDS) <= set(shown)
    assert sorted(name for names in _SECTIONS.values() for name in names) == sorted(_COMMANDS)


@pytest.mark.parametrize("name", ["run", "once", "start", "watch", "upload"])
def test_every_option_is_described_in_a_group(name):
    command = cli.get_command(click.Context(cli), name)
    context = click.Context(command)
    for option in command.get_params(context):
        assert isinstance(option, click.Option) and option.help, option.name
        assert not option.help.startswith("["), option.name
    shown = command.get_help(context)
    groups = ["Evaluation:", "GPUs and cluster:"] if name != "upload" else []
    for group in (*groups, "W&B:", "Files:"):
        assert f"\n{group}\n" in shown


@pytest.mark.parametrize("name", ["run", "once", "start"])
def test_the_help_begins_with_examples_that_are_accepted(name):
    shown = eval_sidecar("help", name).stdout
    assert shown.index("Examples:") < shown.index("--sft-root TEXT") < shown.index("--manifest-path")
    examples = [line.split()[1:] for line in shown.splitlines() if line.startswith("  eval-sidecar ")]
    assert len(examples) >= 2
    for word, *rest in examples:
        command = cli.get_command(click.Context(cli), word)
        assert command.make_context(word, rest).params
    assert all(len(line) <= 80 for line in shown.splitlines())


@pytest.mark.parametrize("arguments", [["help"], ["-h"], ["--help"], ["help", "stop"], ["stop", "-h"]])
def test_help_is_given_in_every_usual_way(arguments):
    done = eval_sidecar(*arguments)
    assert done.returncode == 0 and "Usage: eval-sidecar" in done.stdout
    assert ("--after-current" in done.stdout) == ("stop" in arguments)


def test_the_version_is_told():
    assert eval_sidecar("-V").stdout == eval_sidecar("--version").stdout != ""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["statsu"], "there is no command 'statsu'; did you mean status"),
        (["--sft-rot", "x"], "--sft-root"),
        (["run", "--category", "x"], "--category is for watching a training: give its folder as --sft-root"),
        (["once", "--sft-root", "x", "--workers", "2"], "--workers is for uploading results"),
        (["start", "--nonsense"], "No such option"),
        (
            ["run", "--results-root", "nowhere", "--disable-wandb"],
            "to watch a training instead, give its folder as --sft-root",
        ),
        (["watch"], "to upload results of another machine instead"),
    ],
)
def test_a_mistake_is_answered_with_what_was_probably_meant(arguments, said):
    done = eval_sidecar(*arguments)
    assert done.returncode == 2 and done.stdout == ""
    assert said in done.stderr and len(done.stderr.splitlines()) == 1


def test_results_without_a_manifest_name_both_ways_of_working(tmp_path):
    done = eval_sidecar("once", "--results-root", str(tmp_path), "--wandb-mode", "disabled")
    assert done.returncode == 2
    assert "prepare-manifest" in done.stderr and "--sft-root" in done.stderr


# -- completion -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("eval-sidecar st", {"start", "status", "stop"}),
        ("eval-sidecar run --sft", {"--sft-root"}),
        ("eval-sidecar start --manifest-p", {"--manifest-path"}),
        ("eval-sidecar once --launcher ", {"local", "slurm"}),
        ("eval-sidecar stop --after", {"--after-current"}),
        ("eval-sidecar tail cb", {"cb64"}),
        ("eval-sidecar stop --instance c", {"cb64"}),
    ],
)
def test_a_shell_completes_commands_options_and_names(tmp_path, typed, offered):
    (tmp_path / "cb64.json").write_text("{}")
    words = typed.split(" ")
    done = eval_sidecar(
        _EVAL_SIDECAR_COMPLETE="bash_complete",
        COMP_WORDS=typed,
        COMP_CWORD=str(len(words) - 1),
        MANAGER_DIR=str(tmp_path),
        XDG_STATE_HOME=str(tmp_path),
    )
    assert {line.partition(",")[2] for line in done.stdout.splitlines()} == offered, done.stderr


def test_a_bash_that_reads_the_completion_completes(tmp_path):
    program = tmp_path / "eval-sidecar"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m eval_sidecar "$@"\n')
    program.chmod(0o755)
    script = """
    eval "$(_EVAL_SIDECAR_COMPLETE=bash_source eval-sidecar)"
    complete -p eval-sidecar
    COMP_WORDS=(eval-sidecar resta) COMP_CWORD=1
    _eval_sidecar_completion eval-sidecar && printf '%s\\n' "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["bash", "-c", script],
        env={"PYTHONPATH": ":".join(sys.path), "PATH": f"{tmp_path}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE,
        check=True,
        text=True,
        timeout=60,
    )
    assert "-F _eval_sidecar_completion eval-sidecar" in done.stdout
    assert done.stdout.splitlines()[-1] == "restart"
