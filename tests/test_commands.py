"""The list of commands, and that a command brings in no more than it needs."""

from __future__ import annotations

import subprocess
import sys

import click
import pytest

from eval_sidecar.cli import _COMMANDS, cli

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
        env={"PYTHONPATH": ":".join(sys.path)},
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
