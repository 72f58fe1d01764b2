"""What an evaluation gets of a checkpoint: its weights and small files, without the state of the training."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Collection

from eval_sidecar.checkpoints import weights
from eval_sidecar.checkpoints.linking import copy_for_use, link, list_files, remove
from eval_sidecar.checkpoints.places import PinFolder, checkpoint_in
from eval_sidecar.errors import CheckpointError
from eval_sidecar.types import Checkpoint

log = logging.getLogger(__name__)

_MAKING = ".making-"


def is_needed(name: str, there: Collection[str]) -> bool:
    """Return whether an evaluation needs a file besides those that `make_slim` has left."""
    first = name.partition("/")[0]
    if weights.is_training_state(first):
        return False
    return not weights.is_weights_elsewhere(first) or any(
        weights.is_weights_elsewhere(other.partition("/")[0]) for other in there
    )


def make_slim(held: Checkpoint) -> None:
    """Drop what no evaluation reads; shards of weights go only if there are whole weights beside them."""
    is_whole = weights.has_whole_weights(held.path)
    remove(
        held.path,
        [
            name
            for name in list_files(held.path)
            if weights.is_training_state(first := name.partition("/")[0])
            or (is_whole and weights.is_weights_elsewhere(first))
        ],
    )


def is_whole_by_itself(held: Checkpoint) -> bool:
    """Return whether nothing is left to be proved by what `make_slim` drops."""
    return (held.path / "trainer_state.json").is_file() and weights.has_whole_weights(held.path)


def show(held: Checkpoint, place: PinFolder, *, is_to_be_written: bool) -> Checkpoint:
    """Show a checkpoint where evaluations look, whole or not at all.

    Args:
        held: A folder of links.
        place: Where it is.
        is_to_be_written: Whether a script gets it now: all but the weights is then copied.

    Raises:
        CheckpointError: if it cannot be made.
    """
    used = checkpoint_in(place.used, held.step)
    # Not among the held ones: those are listed by name, and this one is not whole yet.
    making = place.held / f"{_MAKING}{os.getpid()}"
    there = list_files(held.path)
    try:
        place.used.mkdir(parents=True, exist_ok=True)
        for left in place.held.glob(f"{_MAKING}*"):  # of a process that was killed
            shutil.rmtree(left, ignore_errors=True)
        files = {name: file for name, file in there.items() if is_needed(name, there)}
        making.mkdir()
        copy_for_use(files, making) if is_to_be_written else link(files, making)
        making.rename(used.path)
    except OSError as error:
        raise CheckpointError(f"{used.path}: cannot be made ({error.strerror})") from error
    finally:
        shutil.rmtree(making, ignore_errors=True)
    try:
        place.show_rest()
    except OSError as error:
        log.warning("%s: does not show all other files of the model dir (%s)", place.used, error.strerror)
    return used


def size_of(held: Checkpoint) -> int:
    """Return how many bytes are kept of a checkpoint."""
    return sum(file.size for file in list_files(held.path).values())
