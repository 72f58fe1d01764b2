"""Which checkpoints there are: names, and one listing of a model dir. Says nothing about completeness."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Callable, Union

from eval_sidecar.errors import CheckpointError
from eval_sidecar.paths import OWN_FOLDER
from eval_sidecar.types import Checkpoint, step_of


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Return the checkpoints directly in a folder, by step; none if the folder is missing.

    Raises:
        CheckpointError: if the folder cannot be listed.
    """
    return [Checkpoint(step, folder / f"checkpoint-{step}") for step in list_steps(folder)]


def list_steps(folder: Path) -> list[int]:
    """Return the steps of the checkpoints directly in a folder, ascending; none if the folder is missing.

    Raises:
        CheckpointError: if the folder cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            return sorted(
                step for entry in entries if (step := step_of(entry.name)) is not None and _is_folder(entry)
            )
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be listed ({error.strerror})") from error


def walk_files(folder: Path, is_left_out: Callable[[str], bool]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """Go through the files of one checkpoint.

    A link to a folder is told like a file, and not followed: it may lead to a whole data set.

    Args:
        folder: The checkpoint.
        is_left_out: Says for a path in the checkpoint, with slashes, whether it is passed by.

    Yields:
        Each file's path in the checkpoint, and the file.

    Raises:
        OSError: if a folder cannot be listed.
    """
    return _walk(folder, "", is_left_out)


def _walk(
    folder: Union[Path, str], prefix: str, is_left_out: Callable[[str], bool]
) -> Iterator[tuple[str, os.DirEntry[str]]]:
    with os.scandir(folder) as entries:
        for entry in entries:
            name = f"{prefix}{entry.name}"
            if is_left_out(name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _walk(entry.path, f"{name}/", is_left_out)
            else:
                yield name, entry


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False  # a link in a circle, say


def old_pins_folder(model_dir: Path) -> Path:
    """Return where the first versions kept their pins: in the model dir itself."""
    return model_dir / OWN_FOLDER / model_dir.name


def remove_links(folder: Path, name: str, checkpoint: str) -> None:
    """Remove what `folder_of_links` has made, if it has."""
    shutil.rmtree(folder / name / checkpoint, ignore_errors=True)
    for empty in (folder / name, folder):
        with contextlib.suppress(OSError):  # not there, or still holds others
            empty.rmdir()


def folder_of_links(folder: Path, name: str, checkpoint: Checkpoint) -> Checkpoint:
    """Return a checkpoint below a folder of the model's name, for one that is evaluated where it is.

    Args:
        folder: Where to make it.
        name: The model's name.
        checkpoint: Where the files are; the links follow them when they are rewritten.

    Raises:
        CheckpointError: if it cannot be made.
    """
    made = Checkpoint(checkpoint.step, folder / name / checkpoint.name)
    try:
        shutil.rmtree(made.path, ignore_errors=True)
        made.path.mkdir(parents=True)
        for path in checkpoint.path.iterdir():
            (made.path / path.name).symlink_to(path)
    except OSError as error:
        raise CheckpointError(f"{made.path}: links cannot be made there ({error.strerror})") from error
    return made
