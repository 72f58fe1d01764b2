"""Keeps checkpoints alive while they wait for their evaluation: hard links beside the model dir.

The trainer's rotation then deletes names, not data. Whatever appears is linked at once and judged later
(`eval_sidecar.checkpoints.readiness`): at the moment at which a checkpoint is proved complete it may be
gone. An evaluation gets a copy of its own, in which only the weights are links. `Pins.look` may be called by
any thread.
"""

from __future__ import annotations

import contextlib
import enum
import logging
import shutil
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Callable, Optional

from eval_sidecar.checkpoints.job_copy import is_needed, is_whole_by_itself, make_slim, show, size_of
from eval_sidecar.checkpoints.linking import File, LinksUnsupported, link, list_files, remove, remove_tree
from eval_sidecar.checkpoints.listing import list_checkpoints, list_steps, old_pins_folder
from eval_sidecar.checkpoints.places import PinFolder, checkpoint_in, places
from eval_sidecar.checkpoints.space import Limits, Room
from eval_sidecar.errors import CheckpointError
from eval_sidecar.paths import OWN_FOLDER
from eval_sidecar.types import Checkpoint

log = logging.getLogger(__name__)


class Need(enum.Enum):
    """What is still to be done with a checkpoint."""

    NOTHING = "evaluated"
    EVALUATION = "is to be evaluated"
    RUNNING = "is being evaluated"
    RETRY = "failed, until a user retries it"


class Pins:
    """The pins of one model dir.

    Args:
        model_dir: The folder that holds the checkpoints.
        name: What the model is called.
        elsewhere: A folder to fall back on, if none beside the model dir can be used.
        limits: How much disk space pins may keep in use.
        need: What is still to be done with a step's checkpoint.
        source: Where the trainer's files are read; `model_dir` may be a link that is turned meanwhile.
    """

    def __init__(
        self,
        model_dir: Path,
        name: str,
        *,
        elsewhere: Optional[Path],
        limits: Limits,
        need: Callable[[int], Need],
        source: Optional[Callable[[], Path]] = None,
    ) -> None:
        self._source = source or (lambda: model_dir)
        self._all_places = places(model_dir, name, elsewhere)
        self._barred: dict[PinFolder, OSError] = {}
        self._look_for_bars()
        self._limits = limits
        self._need = need
        self._mutex = threading.RLock()
        self._slim: set[int] = set()
        self._folders: dict[int, tuple[int, int]] = {}  # step: device and inode of the trainer's folder
        self._sizes: dict[int, int] = {}  # of pins whose original is gone
        self._largest = 0
        self._refusals: dict[int, str] = {}
        self._refused: dict[int, frozenset[str]] = {}  # the files that could not be linked
        self._given_up: dict[int, str] = {}
        self._lack = ""
        self._notice = ""

    # -- what is there ------------------------------------------------------------------------------

    def original(self, step: int) -> Checkpoint:
        """Return the trainer's folder of a step, whether it is there or not."""
        return checkpoint_in(self._model_dir, step)

    def held(self) -> dict[int, Checkpoint]:
        """Return the checkpoints that links keep alive, whole or not, by step."""
        found: dict[int, Checkpoint] = {}
        for place in reversed(self._places):
            found.update((checkpoint.step, checkpoint) for checkpoint in list_checkpoints(place.held))
        return found

    def why_not(self, step: int) -> str:
        """Return why a checkpoint that is there is not pinned; nothing if that was not tried."""
        return self._refusals.get(step, "")

    @property
    def lack(self) -> str:
        """Why nothing is pinned at the moment, or nothing."""
        return self._lack

    def take_given_up(self) -> dict[int, str]:
        """Return which pins were given up since the last call, and why."""
        with self._mutex:
            given_up, self._given_up = self._given_up, {}
            return given_up

    @property
    def _model_dir(self) -> Path:
        return self._source()

    @property
    def _places(self) -> list[PinFolder]:
        return [place for place in self._all_places if place not in self._barred]

    def _look_for_bars(self) -> None:
        """Find the places that cannot be read: a folder closed by another user holds no pin of ours."""
        found = ((place, place.why_barred()) for place in self._all_places)
        self._barred = {place: error for place, error in found if error is not None}

    # -- look ---------------------------------------------------------------------------------------

    def look(self, steps: Optional[Collection[int]] = None) -> bool:
        """Link what has appeared in the model dir, and drop what there is no room for.

        Args:
            steps: Look at these only; None means at all that are not evaluated yet.

        Returns:
            Whether there is a file that was not there before.

        Raises:
            CheckpointError: if the model dir cannot be listed.
        """
        with self._mutex:
            self._look_for_bars()
            self._adopt_old()
            present = list_steps(self._model_dir)
            self._forget_deleted(present)
            self._keep_room(set(present))
            chosen = [step for step in present if steps is None or step in steps]
            news = [self._look_at(step) for step in chosen]
            return any(news)

    def _forget_deleted(self, present: Collection[int]) -> None:
        for step in self._folders.keys() - present:
            del self._folders[step]
        for step in self._refusals.keys() - present:
            del self._refusals[step]
            self._refused.pop(step, None)

    def _look_at(self, step: int) -> bool:
        original = self.original(step)
        try:
            if self._need(step) is Need.NOTHING:
                return False
            status = original.path.stat()
            files = list_files(original.path)
        except OSError:
            return False  # deleted meanwhile; one without permission is judged in place
        self._largest = max(self._largest, sum(file.size for file in files.values()))
        if self._lack or not files or self._refused.get(step) == files.keys():
            return False
        folder_id = (status.st_dev, status.st_ino)
        is_another = self._folders.setdefault(step, folder_id) != folder_id
        self._folders[step] = folder_id
        try:
            return self._hold(original, files, is_another=is_another)
        except LinksUnsupported as error:
            self._drop(step)  # what is there in part would be judged instead of the original
            self._refusals[step], self._refused[step] = str(error), frozenset(files)
        except CheckpointError as error:
            self._refusals[step] = str(error)
        return False

    def _hold(self, original: Checkpoint, files: dict[str, File], *, is_another: bool) -> bool:
        """Bring the links up to date with the trainer's folder; what it deletes stays."""
        step = original.step
        held = self._held(step)
        there = list_files(held.path) if held else {}
        if step in self._slim:
            files = {name: file for name, file in files.items() if is_needed(name, there)}
        changed = [name for name, file in files.items() if name in there and not there[name].is_same(file)]
        missing = there.keys() - files.keys()
        if there and (is_another or (changed and missing)):
            # A checkpoint that is written again shares nothing with the old one; an old proof least of all.
            log.info("%s: is being written again", original.name)
            self._drop(step)
            held, there, changed = None, {}, []
            files = list_files(original.path)
        new = {name: file for name, file in files.items() if name not in there or name in changed}
        if not new:
            return False
        if held is not None:
            link(new, held.path)
        else:
            self._hold_first(step, new)
        self._refusals.pop(step, None)
        self._refused.pop(step, None)
        return True

    def _hold_first(self, step: int, files: dict[str, File]) -> None:
        barred = [_as_unsupported(error, place) for place, error in self._barred.items()]
        first_error: Optional[LinksUnsupported] = barred[0] if barred else None
        for place in self._places:
            target = checkpoint_in(place.held, step).path
            try:
                place.make()
                link(files, target)
            except (LinksUnsupported, OSError) as error:
                shutil.rmtree(target, ignore_errors=True)
                place.clear()
                if first_error is None:
                    first_error = _as_unsupported(error, place)
                continue
            if first_error is not None:
                self._notice = f"{first_error}: pins are kept in {place.folder}"
            return
        assert first_error is not None
        raise first_error

    def take_notice(self) -> str:
        """Return, once, the message about where pins are; or nothing."""
        notice, self._notice = self._notice, ""
        return notice

    # -- use ----------------------------------------------------------------------------------------

    @property
    def still(self) -> contextlib.AbstractContextManager[object]:
        """While this is held, no other thread changes a pin."""
        return self._mutex

    def prepare(self, step: int) -> Checkpoint:
        """Drop what no evaluation needs of a complete checkpoint, and show it where evaluations look.

        Raises:
            CheckpointError: if there is no room, or it was dropped meanwhile.
        """
        with self._mutex:
            held, place = self._find(step)
            if step not in self._slim:
                make_slim(held)
                self._slim.add(step)
                self._sizes.pop(step, None)
            used = checkpoint_in(place.used, step)
            return used if used.path.exists() else show(held, place, is_to_be_written=False)

    def check_out(self, step: int) -> Checkpoint:
        """Make a copy that an evaluation may write into, from the files as they are now.

        Raises:
            CheckpointError: if there is no room, or it was dropped meanwhile.
        """
        with self._mutex:
            held, place = self._find(step)
            remove_tree(checkpoint_in(place.used, step).path)
            return show(held, place, is_to_be_written=True)

    def forget_others(self, step: int, names: Collection[str]) -> None:
        """Drop files that a checkpoint, which is whole in the trainer's folder, does not have any more."""
        with self._mutex:
            held = self._held(step)
            if held is not None:
                remove(held.path, list_files(held.path).keys() - set(names))

    def _held(self, step: int) -> Optional[Checkpoint]:
        return next((held for held, _ in self._all_held(step)), None)

    def _find(self, step: int) -> tuple[Checkpoint, PinFolder]:
        for found in self._all_held(step):
            return found
        raise CheckpointError(f"checkpoint-{step}: its pin was given up meanwhile")

    def _all_held(self, step: int) -> Iterator[tuple[Checkpoint, PinFolder]]:
        for place in self._places:
            held = checkpoint_in(place.held, step)
            if held.path.is_dir():
                yield held, place

    # -- let go -------------------------------------------------------------------------------------

    def release(self, step: int) -> None:
        """Remove everything that is kept of a checkpoint. Idempotent.

        Raises:
            CheckpointError: if it cannot be removed, so that it keeps disk space in use.
        """
        with self._mutex:
            self._drop(step)
            for place in self._places:
                remove_tree(checkpoint_in(place.used, step).path)
                place.clear()
            remove_tree(checkpoint_in(old_pins_folder(self._model_dir), step).path)

    def _drop(self, step: int) -> None:
        """Remove the links to the trainer's files, but nothing that an evaluation reads."""
        self._slim.discard(step)
        self._sizes.pop(step, None)
        for place in self._places:
            remove_tree(checkpoint_in(place.held, step).path)
            if self._need(step) is not Need.RUNNING:
                remove_tree(checkpoint_in(place.used, step).path)

    def release_failed(self, steps: Collection[int]) -> list[int]:
        """Give up those of these that the trainer has deleted; return them."""
        with self._mutex:
            orphans = sorted(self.held().keys() & set(steps) - set(list_steps(self._model_dir)))
            for step in orphans:
                self.release(step)
            return orphans

    def _keep_room(self, present: Collection[int]) -> None:
        """Give up pins whose original is gone while there are too many or the disk is nearly full."""
        folder = self._model_dir if self._model_dir.is_dir() else self._model_dir.parent
        if not folder.is_dir():
            return
        room, held = Room.on_disk_of(folder), self.held()
        self._sizes = {
            step: self._sizes.get(step) or size_of(held[step]) for step in held.keys() - set(present)
        }
        problem = self._problem(room)
        if not problem:
            self._lack = ""
            return
        before = sum(self._sizes.values())
        for step in list(self._sizes):
            if step not in self._slim and is_whole_by_itself(held[step]):
                make_slim(held[step])
                self._slim.add(step)
                self._sizes[step] = size_of(held[step])
        victims = [step for step in self._sizes if self._need(step) is not Need.RUNNING]
        for step in sorted(victims, key=lambda step: (self._need(step) is not Need.RETRY, step)):
            # Reckoned: a file system may need a while to count in what was deleted.
            freed = before - sum(self._sizes.values())
            problem = self._problem(Room(room.free + freed, room.total))
            if not problem:
                break
            log.warning("checkpoint-%d: its pin is given up: %s", step, problem)
            self._drop(step)
            self._given_up[step] = problem
        freed = before - sum(self._sizes.values())
        self._lack = Room(room.free + freed, room.total).lack(self._limits.floor, self._largest)
        if self._lack:
            # Not one deletion of the trainer's may be without effect, not even for a moment.
            for step in held.keys() & set(present):
                if self._need(step) is not Need.RUNNING:
                    self._drop(step)

    def _problem(self, room: Room) -> str:
        return room.lack(self._limits.floor, self._largest) or room.excess(
            self._limits, len(self._sizes), sum(self._sizes.values())
        )

    # -- the place of the first versions ------------------------------------------------------------

    def _adopt_old(self) -> None:
        """Take over pins that an earlier version has left in the model dir, and remove its folder."""
        old = old_pins_folder(self._model_dir)
        if not old.parent.is_dir():
            return
        try:
            for checkpoint in list_checkpoints(old):
                self._adopt(checkpoint)
            if not list_checkpoints(old):
                shutil.rmtree(old, ignore_errors=True)
                (self._model_dir / OWN_FOLDER / "lock").unlink(missing_ok=True)
                (self._model_dir / OWN_FOLDER).rmdir()
        except (CheckpointError, OSError) as error:  # another user's, say
            reason = error.strerror if isinstance(error, OSError) else error
            self._notice = f"{old.parent}: left there by an earlier version, and cannot be removed ({reason})"

    def _adopt(self, checkpoint: Checkpoint) -> None:
        need = self._need(checkpoint.step)
        if need is Need.RUNNING:
            return  # a job reads it
        if need is Need.NOTHING or checkpoint.step in self.held():
            remove_tree(checkpoint.path)
            return
        for place in self._places:
            try:
                place.make()
                checkpoint.path.rename(checkpoint_in(place.held, checkpoint.step).path)
                break
            except OSError as error:
                place.clear()
                self._notice = f"{checkpoint.path}: cannot be moved to {place.held} ({error.strerror})"


def _as_unsupported(error: Exception, place: PinFolder) -> LinksUnsupported:
    if isinstance(error, LinksUnsupported):
        return error
    reason = error.strerror if isinstance(error, OSError) else error
    return LinksUnsupported(f"{place.folder}: cannot be made or used ({reason})")
