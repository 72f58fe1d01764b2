"""Where the sidecar keeps what belongs to a model dir: never in it, and on its disk if that can be."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from eval_sidecar.checkpoints.listing import list_checkpoints
from eval_sidecar.paths import OWN_FOLDER, PinPaths, short_key
from eval_sidecar.types import Checkpoint


@dataclass(frozen=True)
class PinFolder:
    """A folder of ours for one model.

    ``<folder>/.held/<model dir>/`` holds links that no script sees, ``<folder>/<model>/`` what scripts get.
    """

    folder: Path
    model_dir: Path
    name: str

    @property
    def held(self) -> Path:
        """Where the trainer's files are linked as they appear."""
        return PinPaths(self.folder).held(self.model_dir.name)

    @property
    def used(self) -> Path:
        """Where evaluations get their checkpoints; its name is the model's."""
        return PinPaths(self.folder).pins(self.name)

    def why_barred(self) -> Optional[OSError]:
        """Return why this place cannot be read (another user's folder, for example); None if it can."""
        for folder in (self.held, self.used):
            try:
                os.listdir(folder)  # noqa: PTH208 - nothing is done with the names
            except FileNotFoundError:
                continue
            except OSError as error:
                return error
        return None

    def make(self) -> None:
        """Make the folders.

        Raises:
            OSError: if that is not allowed here.
        """
        for last in (False, False, True):
            try:
                self.held.mkdir(parents=True, exist_ok=True)
                return
            except FileNotFoundError:  # another model's sidecar has just removed what was empty
                if last:
                    raise

    def show_rest(self) -> None:
        """Show the model dir's other files beside the checkpoints that scripts get, as links."""
        if not self.model_dir.is_dir():
            return
        wanted = {}
        with os.scandir(self.model_dir) as entries:
            for entry in entries:
                if not entry.name.startswith((".", "checkpoint-")):
                    wanted[entry.name] = str(self.model_dir / entry.name)
        with os.scandir(self.used) as entries:
            for entry in entries:
                if entry.is_symlink():
                    target = os.readlink(entry.path)  # noqa: PTH115 - as text
                    if wanted.get(entry.name) != target:
                        Path(entry.path).unlink(missing_ok=True)
                    else:
                        del wanted[entry.name]
        for name, target in wanted.items():
            path = self.used / name
            if not path.exists():  # a script's own file in our folder
                path.symlink_to(target)

    def clear(self) -> None:
        """Remove the folders that hold no checkpoint any more, and none that hold anything else."""
        if self.used.is_dir() and not list_checkpoints(self.used):
            for path in self.used.iterdir():
                if path.is_symlink():
                    path.unlink(missing_ok=True)
        for folder in (self.used, self.held, self.held.parent, self.folder):
            try:
                folder.rmdir()
            except OSError:
                continue  # is not there, or still holds something


def places(model_dir: Path, name: str, elsewhere: Optional[Path]) -> list[PinFolder]:
    """Return where pins of a model may be, the best first.

    Args:
        model_dir: The folder that holds the checkpoints; the last part of its path may be a link.
        name: What the model is called.
        elsewhere: A folder to fall back on, if none beside the model dir can be used.
    """
    real = Path(os.path.realpath(model_dir))
    folders = [PinPaths.beside(model_dir).folder, PinPaths.beside(real).folder]
    # Where models of several users lie side by side, that folder belongs to the first of them.
    folders += [folder.with_name(f"{OWN_FOLDER}-{os.getuid()}") for folder in folders]
    if elsewhere is not None:
        folders.append(elsewhere / f"{OWN_FOLDER}-{short_key(model_dir)}")
    return [PinFolder(folder, model_dir, name) for folder in dict.fromkeys(folders)]


def checkpoint_in(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of a step directly in a folder, whether it is there or not."""
    return Checkpoint(step, folder / f"checkpoint-{step}")
