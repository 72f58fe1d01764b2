"""Which instance a command means: by its name, or the only one that runs, in whatever folder it was started.

An instance of the folder that the command is given in (``MANAGER_DIR``) goes before those of other folders. A
name that could mean two is refused with a list of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Callable, Optional

import click
from click.shell_completion import CompletionItem

from eval_sidecar.cli.running import manager_folder
from eval_sidecar.errors import UsageError
from eval_sidecar.system.instances import Instance, find_instances, find_process, other_machine

#: The name of an instance that was given none.
DEFAULT = "default"


def takes_name(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command an instance's name, as an argument and as a flag."""
    argument = click.argument("name", required=False, shell_complete=_complete)
    option = click.option("--instance", envvar="INSTANCE", shell_complete=_complete, help="The same as NAME.")
    # The first scripts were given the same flags with each of their commands.
    manual = click.option("--sft-root", hidden=True, expose_value=False)
    return argument(option(manual(command)))


def name_of(name: Optional[str], instance: Optional[str]) -> Optional[str]:
    """Return the name that was given, one way or the other.

    Raises:
        UsageError: if two were.
    """
    source = click.get_current_context().get_parameter_source("instance")
    is_flag = source is not None and source.name == "COMMANDLINE"
    if name is not None and is_flag and name != instance:
        raise UsageError(f"two names: {name} and --instance {instance}; give one")
    return instance if name is None else name


def choose(name: Optional[str]) -> Instance:
    """Return the instance that is meant.

    Args:
        name: Its name; None for the only one that runs.

    Raises:
        UsageError: if it could be several, or if nothing has this name while others run.
    """
    folder = manager_folder()
    known = find_instances(folder)
    if name is not None:
        return _choose_named(Instance(name, folder), known)
    alive = [one for one in known if is_alive(one)]
    here = [one for one in known if one.folder == folder]
    alive_here = [one for one in here if one in alive]
    if len(alive_here) == 1:
        return alive_here[0]
    if alive_here or (alive and (here or len(alive) > 1)):
        raise _unclear("which instance is meant? give its name", alive, known)
    if alive:
        return alive[0]
    default = Instance(DEFAULT, folder)
    candidates = here or known
    if len(candidates) > 1 and default not in candidates:
        raise _unclear("no instance runs; give the name of the one that is meant", alive, known)
    return candidates[0] if len(candidates) == 1 else default


def _choose_named(here: Instance, known: Sequence[Instance]) -> Instance:
    named = [one for one in known if one.name == here.name]
    alive = [one for one in named if is_alive(one)]
    if here in alive or not named:
        others = [one for one in known if is_alive(one)]
        if not named and others:
            raise _unclear(f"no instance is called {here.name}", others, known)
        return here
    if len(alive) == 1 and here not in named:
        return alive[0]
    if alive or (here not in named and len(named) > 1):
        raise _unclear(
            f"instances of several folders are called {here.name}: give the command in the folder of the one"
            " that is meant, or set MANAGER_DIR",
            alive,
            named,
        )
    return here if here in named else named[0]


def is_alive(instance: Instance) -> bool:
    """Return whether it runs, here or, as far as is known, on another machine."""
    return find_process(instance) is not None or other_machine(instance) is not None


def _unclear(message: str, alive: Sequence[Instance], known: Sequence[Instance]) -> UsageError:
    lines = [f"  {one.name}: {state(one)}, in {one.folder}" for one in known if one in alive]
    lines += [f"  {one.name}: {state(one)}, in {one.folder}" for one in known if one not in alive]
    return UsageError(message, lines="\n".join(lines))


def state(instance: Instance) -> str:
    """Return in a few words whether it runs."""
    process, host = find_process(instance), other_machine(instance)
    if process is not None:
        return f"running (pid {process.pid})"
    return f"started on {host}" if host else "not running"


def _complete(_context: click.Context, _parameter: click.Parameter, text: str) -> list[CompletionItem]:
    names = {one.name for one in find_instances(manager_folder())}
    return [CompletionItem(name) for name in sorted(names) if name.startswith(text)]
