"""A command's flags: declared once as fields of a class, and given to the command as one object."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Optional

import click
import pytest
from click.testing import CliRunner

from eval_sidecar.cli.flags import LauncherFlags, WatchFlags, flag, message_of, takes
from eval_sidecar.errors import StateError, UsageError


@dataclass(frozen=True)
class Places:
    folder: str = flag("", "Where.", required=True)
    names: tuple[str, ...] = flag((), multiple=True)


@dataclass(frozen=True)
class Everything(LauncherFlags, Places):
    how_many: int = flag(3, "How many.", env="HOW_MANY", type=int)
    note: Optional[str] = flag()


def given(kind: type, *arguments: str, **variables: str) -> Any:
    """What a command is called with."""
    called = []

    @click.command()
    @takes(kind)
    @click.argument("rest", nargs=-1)
    def command(flags: Any, rest: tuple[str, ...]) -> None:
        called.append((flags, rest))

    result = CliRunner().invoke(command, arguments, env={"CUDA_LIST": None, "WANDB_MODE": None, **variables})
    if result.exception:
        raise result.exception if result.exit_code == 1 else AssertionError(result.output)
    return called[0]


def test_a_command_gets_its_flags_as_one_object_and_its_arguments_beside_it():
    flags, rest = given(Everything, "--folder", "a", "--names", "x", "--names", "y", "495")
    assert flags == Everything(folder="a", names=("x", "y"))
    assert rest == ("495",)


def test_a_flag_comes_before_its_variable_and_that_before_the_default():
    arguments = ["--folder", "a"]
    assert given(Everything, *arguments)[0].how_many == 3
    assert given(Everything, *arguments, HOW_MANY="5")[0].how_many == 5
    assert given(Everything, *arguments, "--how-many", "7", HOW_MANY="5")[0].how_many == 7


def test_a_flag_that_is_required_and_missing_is_named():
    with pytest.raises(AssertionError, match="'--folder'"):
        given(Everything)


def test_what_nobody_gives_is_what_the_class_says():
    assert given(WatchFlags)[0] == WatchFlags()


def test_flags_are_not_changed_behind_the_command_line():
    with pytest.raises(dataclasses.FrozenInstanceError):
        WatchFlags().once = True


@pytest.mark.parametrize(("text", "mode"), [("dryrun", "offline"), (" RUN ", "online"), ("", None)])
def test_the_mode_is_taken_in_the_words_of_wandb_too(text, mode):
    assert given(WatchFlags, "--wandb-mode", text)[0].wandb_mode == mode
    assert given(WatchFlags, WANDB_MODE=text)[0].wandb_mode == mode


@pytest.mark.parametrize(("text", "amount"), [("20G", 20 * 2**30), ("5%", 0.05)])
def test_an_amount_of_space_is_a_size_or_a_share(text, amount):
    assert given(WatchFlags, "--min-free-space", text)[0].min_free_space == amount


def test_an_amount_that_is_neither_is_refused_by_the_flags_name():
    with pytest.raises(UsageError) as refused:
        given(WatchFlags, "--max-pin-size", "much")
    assert message_of(refused.value).startswith("--max-pin-size 'much': give a size")


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (UsageError("nowhere: there is no such folder"), "nowhere: there is no such folder"),
        (UsageError("x: is wrong", setting="results_root"), "--results-root x: is wrong"),
        (StateError("use another folder", setting="state_dir"), "use another folder (--state-dir)"),
    ],
)
def test_an_error_names_the_flag_of_the_setting_that_it_is_about(error, text):
    assert message_of(error) == text
