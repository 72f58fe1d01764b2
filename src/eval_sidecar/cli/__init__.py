"""The command line: the only place that prints, and the only one that knows exit codes.

0: everything that should have been done is done. 1: something is not, and the last lines name it.
2: the command or its input is wrong. 3 (`status`): not running. 75 (`once`): nothing failed, and something
still waits, as the last lines say. 130: interrupted.
"""

from __future__ import annotations

import difflib
import importlib
import os
import sys
from collections.abc import Sequence
from typing import Optional

import click
from click.core import ParameterSource

import eval_sidecar
from eval_sidecar.cli.terminal import accept_any_text, say, say_lines
from eval_sidecar.errors import SidecarError, UsageError

#: Each command: its module, its name in it, and what it does.
_COMMANDS = {
    "doctor": ("doctor", "doctor", "Say what this machine has, try one small evaluation"),
    "evaluate": ("evaluate", "evaluate", "Evaluate the checkpoints of a model once, without a ledger"),
    "explain": ("explain_retry", "explain", "Say where a checkpoint stands, and how that is known."),
    "forget": ("manage", "forget", "Remove what is remembered of an instance that does not run"),
    "once": ("either", "once", "Do what `run` can do now, then end"),
    "pack": ("transfer", "pack_command", "Pack the results and their manifest into one archive"),
    "prepare-manifest": ("manifest", "prepare_manifest", "Write the manifest of the models in results"),
    "receipt": ("upload", "receipt", "Write the receipt of what is confirmed"),
    "retry": ("explain_retry", "retry", "Clear the failures of these checkpoints"),
    "restart": ("manage", "restart", "Stop an instance and start it again"),
    "run": ("either", "run", "Watch a training, or upload results"),
    "show": ("results", "show", "Show the results of models"),
    "start": ("either", "start", "Run in the background, with the flags of `run`"),
    "status": ("manage", "status", "Say what an instance does."),
    "stop": ("manage", "stop", "End an instance with its local evaluations"),
    "tail": ("manage", "tail", "Follow an instance's log for as long as it runs."),
    "unpack": ("transfer", "unpack_command", "Unpack an archive of `pack` into the results"),
    "upload": ("upload", "upload", "Upload the results of a manifest's models"),
    "verify": ("upload", "verify", "Compare ledgers and server, point by point."),
    "watch": ("watch", "watch", "Evaluate the checkpoints of a training as they appear"),
}


#: The commands as the help shows them, the everyday ones first.
_SECTIONS = {
    "Watch a training, or upload results": ("run", "once", "start"),
    "Background instances": ("status", "tail", "stop", "restart", "forget"),
    "Results and checkpoints": ("show", "explain", "retry"),
    "Two machines": ("prepare-manifest", "pack", "unpack", "receipt", "verify"),
    "More": ("doctor", "evaluate", "watch", "upload"),
}


class _Commands(click.Group):
    """Imports a command when it is used: importing all takes longer than most of them run."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(_COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> Optional[click.Command]:
        if cmd_name not in _COMMANDS:
            return None
        module, attribute, _ = _COMMANDS[cmd_name]
        command: click.Command = getattr(importlib.import_module(f"{__name__}.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[Optional[str], Optional[click.Command], list[str]]:
        if args[0] not in _COMMANDS:
            near = difflib.get_close_matches(args[0], [*_COMMANDS, "help"], 3)
            hint = f"; did you mean {' or '.join(near)}?" if near else ""
            raise click.UsageError(f"there is no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for title, names in _SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(name, _COMMANDS[name][2].rstrip(".")) for name in names])


@click.group(
    cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(eval_sidecar.__version__, "-V", "--version", prog_name="eval-sidecar")
def cli() -> None:
    """Evaluate every checkpoint of a training once, on one W&B curve per model.

    `run --sft-root FOLDER` watches a training; `help COMMAND` shows how a command is used.
    """


def resolve(arguments: Sequence[str]) -> list[str]:
    """Turn ``help`` and a bare list of flags into the command that they stand for."""
    words = list(arguments)
    if words[:1] == ["help"]:
        return [*words[1:2], "--help"]
    if words and words[0].startswith("-") and words[0] not in ("-h", "--help", "-V", "--version"):
        return ["run", *words]
    return words


def main(arguments: Optional[Sequence[str]] = None) -> None:
    """Run the command line and exit."""
    words = sys.argv[1:] if arguments is None else arguments
    accept_any_text()
    # No file that we write is writable for everybody, even if the umask allows it.
    os.umask(os.umask(0o077) | 0o002)
    try:
        code = cli.main(resolve(words), prog_name="eval-sidecar", standalone_mode=False, obj=list(words))
    except click.ClickException as error:
        if words:
            say(f"eval-sidecar: {_in_one_line(error)}", err=True, indent=4)
        else:
            error.show()  # no command was given: show the help
        code = error.exit_code
    except (click.Abort, KeyboardInterrupt):
        code = 130
    except SidecarError as error:
        from eval_sidecar.cli.flags import message_of  # it takes longer to import than --help takes

        say(f"eval-sidecar: {message_of(error)}", err=True, indent=4)
        if error.lines:
            say_lines(f"{error.lines}\n", err=True)
        code = 2 if isinstance(error, UsageError) else 1
    except BrokenPipeError:
        sys.stderr.close()  # the reader of our output has closed it
        code = 1
    except OSError as error:  # a disk or a permission that no other error describes
        where = f"{error.filename}: " if error.filename else ""
        say(f"eval-sidecar: {where}{error.strerror or error}", err=True, indent=4)
        code = 1
    sys.exit(code if isinstance(code, int) else 0)


def _in_one_line(error: click.ClickException) -> str:
    context = error.ctx if isinstance(error, click.UsageError) else None
    hint = f" ({context.command_path} --help lists what there is)" if context else ""
    option = error.param if isinstance(error, click.BadParameter) else None
    source = context.get_parameter_source(option.name) if context and option and option.name else None
    if option and source is ParameterSource.ENVIRONMENT:
        hint = f" (from the variable {option.envvar})"
    return " ".join(error.format_message().split()) + hint
