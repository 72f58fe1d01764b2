"""Keeps a checkpoint alive while it waits for its evaluation: hard links beside the trainer's folders.

The trainer's rotation then deletes names, not data. A pin is whole or not there: it is linked under a
temporary name, judged again, and renamed.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path
from typing import Callable, Optional, Union

from eval_sidecar.checkpoints import OWN_FOLDER, pins_folder
from eval_sidecar.errors import CheckpointError, UsageError
from eval_sidecar.types import Checkpoint

#: State of the training that no evaluation reads, and that makes up most of a checkpoint.
_TRAINING_STATE = re.compile(
    r"optimizer.*|scheduler.*|rng_state.*|scaler\.pt|random_states_.*|global_step\d+|zero_to_fp32\.py|latest"
    r"|.*_optim_states\.pt|optimizer_\d+|pytorch_model_fsdp_\d+_optim.*"
)
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([KMGT]?)i?B?", re.IGNORECASE)
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}

#: Free space to keep: a number of bytes, or a share of the disk between 0 and 1.
Floor = Union[int, float]


class PinsUnsupported(CheckpointError):
    """The file system makes no hard links; the checkpoint has to be evaluated where it is."""


def parse_floor(text: str) -> Floor:
    """Read ``--min-free-space``: ``20G``, ``500M``, ``1048576`` or ``5%``.

    Raises:
        UsageError: where it is neither a size nor a share.
    """
    if text.endswith("%"):
        try:
            share = float(text[:-1]) / 100
        except ValueError:
            share = -1.0
        if 0 <= share < 1:
            return share
    elif match := _SIZE.fullmatch(text.strip()):
        return int(float(match[1]) * _UNITS[match[2].upper()])
    raise UsageError(f"--min-free-space {text!r}: give a size such as 20G or a share such as 5%")


def space_is_short(folder: Path, floor: Floor) -> bool:
    """Whether the disk under a folder has less free space than the floor."""
    usage = shutil.disk_usage(folder)
    return usage.free < (floor * usage.total if isinstance(floor, float) else floor)


def pin(
    model_dir: Path,
    checkpoint: Checkpoint,
    is_ready: Callable[[Checkpoint], bool],
    name: Optional[str] = None,
) -> Checkpoint:
    """Link what an evaluation needs of a checkpoint; return the pinned checkpoint.

    Args:
        model_dir: The folder that holds the checkpoints.
        checkpoint: A checkpoint that may be evaluated.
        is_ready: Judges the linked copy: the trainer may have deleted some of it meanwhile.
        name: The model's name, where it is not the folder's.

    Raises:
        PinsUnsupported: where hard links cannot be made here.
        CheckpointError: where the checkpoint was deleted or changed before it was whole.
    """
    folder = pins_folder(model_dir, name)
    pinned = Checkpoint(checkpoint.step, folder / checkpoint.name)
    if pinned.path.exists():
        return pinned
    # Inside a folder of its own, so that the copy has its final name when it is judged.
    temporary = folder / f".linking-{os.getpid()}" / checkpoint.name
    try:
        for leftover in folder.glob(".linking-*"):  # of a process that was killed: it keeps disk space in use
            shutil.rmtree(leftover, ignore_errors=True)
        _link_tree(checkpoint.path, temporary)
        if not is_ready(Checkpoint(checkpoint.step, temporary)):
            raise CheckpointError(f"{checkpoint.name}: was deleted or rewritten while it was being pinned")
        temporary.rename(pinned.path)
    except FileNotFoundError as error:
        raise CheckpointError(f"{checkpoint.name}: was deleted while it was being pinned") from error
    except OSError as error:
        raise PinsUnsupported(f"{folder}: no hard links can be made here ({error.strerror})") from error
    finally:
        shutil.rmtree(temporary.parent, ignore_errors=True)
    return pinned


def is_outdated(pinned: Checkpoint, original: Checkpoint) -> bool:
    """Whether the trainer has written a checkpoint anew since it was pinned.

    Deleting the original, or half of it, does not make the pin outdated; another file in the place of
    one that was linked does.
    """
    for path in pinned.path.rglob("*"):
        try:
            if path.is_file() and not path.samefile(original.path / path.relative_to(pinned.path)):
                return True
        except FileNotFoundError:
            continue
    return False


def unpin(model_dir: Path, step: int, name: Optional[str] = None) -> None:
    """Remove a checkpoint's links, and the folders above them where they are empty. Idempotent.

    Raises:
        CheckpointError: where they cannot be removed, so that they keep disk space in use.
    """
    folder = pins_folder(model_dir, name)
    try:
        shutil.rmtree(folder / f"checkpoint-{step}")
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{folder}/checkpoint-{step}: cannot be removed ({error.strerror})") from error
    for empty in (folder, model_dir / OWN_FOLDER):
        try:
            empty.rmdir()
        except OSError:
            return  # still holds other pins


def _link_tree(source: Path, target: Path) -> None:
    target.mkdir(parents=True)
    for path in source.iterdir():
        if _TRAINING_STATE.fullmatch(path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            _link_tree(path, target / path.name)
        else:
            # A link to a symbolic link's target: the link itself may be relative to its folder.
            os.link(path.resolve(strict=True), target / path.name)
