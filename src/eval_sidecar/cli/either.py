"""``run``, ``once`` and ``start``: with ``--sft-root`` they watch a training, else they upload results."""

from __future__ import annotations

import copy
import difflib
import importlib
import time
from collections.abc import Sequence
from typing import Any, Optional

import click

from eval_sidecar.cli.choosing import DEFAULT
from eval_sidecar.cli.destination import say_destination
from eval_sidecar.cli.groups import GroupedCommand
from eval_sidecar.cli.running import manager_folder
from eval_sidecar.cli.status import instance_facts
from eval_sidecar.cli.terminal import say
from eval_sidecar.system import instances
from eval_sidecar.system.instances import Instance

#: Of the options that both jobs have, those whose help is about one of them.
_OF_BOTH = {
    "sft_root": "Watch this folder, which holds the checkpoint-* folders. Without it, results are uploaded.",
    "state_dir": "Where the ledgers are.  [default: state/wandb_eval_sidecar in REPO_ROOT; uploads:"
    " state/wandb_eval_uploader]",
    "wandb_mode": "Send points, keep them in wandb/ (offline), or neither.  [default: online if a key is"
    " configured, else offline; uploads: online]",
}


class Either(GroupedCommand):
    """A command that is `watch` or `upload`, depending on its flags. Its help describes both.

    Args:
        name: What it is called.
        adds: Flags that it adds to those that are given.
        hides: Options that its help does not show.
        settings: As `GroupedCommand` takes them.
    """

    def __init__(
        self,
        name: str,
        *,
        adds: Sequence[str] = (),
        hides: Sequence[str] = (),
        **settings: Any,  # noqa: ANN401 - as click takes them
    ) -> None:
        super().__init__(name, **settings)
        self._adds = adds
        self._hides = hides

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return the options of both jobs, for the help and for completion."""
        if not self.params:
            watching = _job("watch").params
            names = {parameter.name for parameter in watching}
            uploading = [parameter for parameter in _job("upload").params if parameter.name not in names]
            self.params = [self._described(parameter) for parameter in (*watching, *uploading)]
        return super().get_params(ctx)

    def make_context(
        self,
        info_name: Optional[str],
        args: list[str],
        parent: Optional[click.Context] = None,
        **extra: Any,  # noqa: ANN401 - as click takes them
    ) -> click.Context:
        """Return the context of the job that the flags ask for."""
        if extra.get("resilient_parsing"):
            return super().make_context(info_name, args, parent, **extra)
        if {"-h", "--help"} & set(args):
            super().make_context(info_name, list(args), parent, **extra)  # ends with the help, if asked for
        watches = any(word == "--sft-root" or word.startswith("--sft-root=") for word in args)
        try:
            return _job("watch" if watches else "upload").make_context(
                info_name, [*args, *self._adds], parent, **extra
            )
        except click.NoSuchOption as error:
            others = _job("upload" if watches else "watch").params
            if not any(error.option_name in parameter.opts for parameter in others):
                names = [name for one in self.get_params(click.Context(self)) for name in one.opts]
                near = difflib.get_close_matches(error.option_name, names, 3)
                raise click.NoSuchOption(error.option_name, possibilities=near, ctx=error.ctx) from None
            text = (
                f"{error.option_name} is for uploading results: it has no effect with --sft-root"
                if watches
                else f"{error.option_name} is for watching a training: give its folder as --sft-root"
            )
            raise click.UsageError(text, error.ctx) from None

    def _described(self, parameter: click.Parameter) -> click.Parameter:
        if not isinstance(parameter, click.Option):
            return parameter
        shown = copy.copy(parameter)
        shown.help = _OF_BOTH.get(shown.name or "", shown.help)
        shown.hidden = shown.name in self._hides
        return shown


class _Start(Either):
    """Checks the flags, then runs in the background what they ask for."""

    def make_context(
        self,
        info_name: Optional[str],
        args: list[str],
        parent: Optional[click.Context] = None,
        **extra: Any,  # noqa: ANN401 - as click takes them
    ) -> click.Context:
        """Return a context that holds the flags as they were given."""
        given = list(args)
        job = super().make_context(info_name, args, parent, **extra)
        if extra.get("resilient_parsing"):
            return job
        context = click.Context(self, parent, info_name)
        context.params = {"instance": job.params["instance"], "arguments": given}
        return context


def _job(name: str) -> click.Command:
    command: click.Command = getattr(importlib.import_module(f"eval_sidecar.cli.{name}"), name)
    return command


def say_started(chosen: Instance, pid: int) -> None:
    """Print what a started instance is called, and why it cannot evaluate yet, if so."""
    say(f"started {chosen.name} (pid {pid}), log: {chosen.log_file}", indent=4)
    for model in instance_facts(chosen, time.time()).models:
        if model.ledger.busy:
            say(f"not started: {model.ledger.busy}", fg="yellow")
        for warning in model.warnings:
            say(f"warning: {warning}", fg="yellow")
    say_destination(chosen)


def _start(instance: Optional[str], arguments: Sequence[str]) -> None:
    chosen = Instance(DEFAULT if instance is None else instance, manager_folder())
    say_started(chosen, instances.start(chosen, ["run", "--instance", chosen.name, *arguments]))


run = Either(
    "run",
    help="Watch a training, or upload results, in this terminal until Ctrl-C.",
    examples=[
        ("run --sft-root saves/my-model", "evaluate each checkpoint as it appears"),
        ("run --sft-root saves/my-model --disable-wandb", "the same, without W&B"),
        ("run --results-root results", "upload results that were evaluated elsewhere"),
    ],
)
once = Either(
    "once",
    adds=["--once"],
    hides=["once", "instance"],
    help="Do what `run` can do now, then end. Exit code 0: all is done; 75: some wait; 1: some failed.",
    examples=[
        ("once --sft-root saves/my-model", "evaluate the checkpoints that are there"),
        ("once --results-root results", "upload what is new in results"),
    ],
)
start = _Start(
    "start",
    hides=["once"],
    callback=_start,
    help="Run in the background, with the flags of `run`; returns after the first pass.",
    examples=[
        ("start --instance cb64 --sft-root saves/my-model", "watch, under the name cb64"),
        ("status cb64", "what it does now; `tail cb64` its log, `stop cb64` its end"),
    ],
)
