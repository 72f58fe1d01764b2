"""Copies of a checkpoint's folder that cost nothing: hard links, and copies for scripts that write.

Knows files and folders, and nothing of what is in them but which names no evaluation reads.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import stat
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from eval_sidecar.checkpoints.completeness import INCOMPLETE_MARKER
from eval_sidecar.checkpoints.listing import walk_files
from eval_sidecar.checkpoints.weights import CONTAINERS
from eval_sidecar.errors import CheckpointError

#: What a writer renames or removes before it has finished.
_TEMPORARY = re.compile(r"\.tmp.*|.*\.tmp|tmp-.*|.*~|\.nfs.*|.*\.lock|.*\.incomplete")
#: A file that is not known to hold weights is copied up to this size, in bytes: tokenizers reach 30 MB.
_MOST_COPIED = 64 * 2**20
#: What the system says of a disk that is full.
_FULL = (errno.ENOSPC, errno.EDQUOT)


class LinksUnsupported(CheckpointError):
    """The file system does not support hard links here; the checkpoint is evaluated in place."""


@dataclass(frozen=True)
class File:
    """One file of a checkpoint.

    Attributes:
        path: Where it is.
        status: Of what it leads to; None of a link that leads nowhere.
        is_link: Whether it is a symbolic link.
    """

    path: Path
    status: Optional[os.stat_result]
    is_link: bool

    @property
    def size(self) -> int:
        """Bytes."""
        return self.status.st_size if self.status else 0

    @property
    def is_folder(self) -> bool:
        """Whether it is a link to a folder."""
        return self.status is not None and stat.S_ISDIR(self.status.st_mode)

    def target(self) -> str:
        """Return what a link in a copy of the checkpoint has to say to lead where this one does."""
        said = os.readlink(self.path)  # noqa: PTH115 - as text
        is_inside = not os.path.isabs(said) and ".." not in Path(said).parts  # noqa: PTH117
        return said if is_inside and self.is_folder else os.path.realpath(self.path)

    def is_same(self, other: File) -> bool:
        """Return whether both lead to the same file, or links to the same folder."""
        if self.status is None or other.status is None:
            return self.status is other.status
        if self.is_folder or other.is_folder:
            return self.is_link and other.is_link and self.target() == other.target()
        return (self.status.st_dev, self.status.st_ino) == (other.status.st_dev, other.status.st_ino)


def list_files(folder: Path) -> dict[str, File]:
    """Return the files of a checkpoint by their path in it, without those that a writer will rename.

    Raises:
        OSError: if a folder in it is missing or cannot be listed.
    """
    found = {}
    for name, entry in walk_files(folder, _is_passing):
        try:
            status: Optional[os.stat_result] = entry.stat()
        except OSError:
            if not entry.is_symlink():
                continue  # deleted meanwhile
            status = None
        if status is not None and not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            continue  # a pipe or socket of a process: it has no content to keep
        found[name] = File(Path(entry.path), status, entry.is_symlink())
    return found


def _is_passing(name: str) -> bool:
    """Return whether a writer will rename or remove a file of this name."""
    base = name.rpartition("/")[2]
    return base == INCOMPLETE_MARKER or bool(_TEMPORARY.fullmatch(base))


def link(files: Mapping[str, File], target: Path) -> bool:
    """Link files into a folder, in the place of what is there under their names.

    Returns:
        Whether all of them were still there.

    Raises:
        LinksUnsupported: if hard links cannot be made here.
        CheckpointError: if the disk is full.
    """
    is_all = True
    for name, file in files.items():
        path = target / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _link_one(file, path)
        except FileNotFoundError:
            is_all = False
        except OSError as error:
            if error.errno in _FULL:
                raise CheckpointError(f"{path}: cannot be made ({error.strerror})") from error
            # Linux lets only the owner link a file that is not writable (fs.protected_hardlinks).
            whose = "; are its files another user's?" if error.errno == errno.EPERM else ""
            raise LinksUnsupported(
                f"{target.parent}: no hard links can be made here ({error.strerror}{whose})"
            ) from error
    return is_all


def _link_one(file: File, path: Path) -> None:
    # To a link's target: the link itself may be relative to its folder.
    source = file.target() if file.is_link else file.path
    temporary = path.with_name(f"{path.name}.linking.tmp")
    temporary.unlink(missing_ok=True)
    if file.status is None or file.is_folder:
        temporary.symlink_to(source)
    else:
        try:
            os.link(source, temporary)
        except FileNotFoundError:
            raise
        except OSError:
            if not file.is_link:
                raise
            temporary.symlink_to(source)  # on another disk, where rotation does not come
    temporary.replace(path)


def copy_for_use(files: Mapping[str, File], target: Path) -> None:
    """Copy files so that a script may write into them; weights are still linked.

    Raises:
        OSError: if it cannot be done.
    """
    for name, file in files.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        is_linked = file.status is None or file.is_folder or file.path.suffix in CONTAINERS
        if is_linked or file.size > _MOST_COPIED:
            _link_one(file, path)
        else:
            shutil.copy2(file.path, path)


def remove(folder: Path, names: Iterable[str]) -> None:
    """Remove files from a folder of links, and the folders in it that are empty then."""
    for name in names:
        path = folder / name
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent == folder or any(parent.iterdir()):
                break
            parent.rmdir()


def remove_tree(folder: Path) -> None:
    """Remove a folder of ours, if it is there.

    Raises:
        CheckpointError: if it cannot be removed, so that it keeps disk space in use.
    """
    try:
        shutil.rmtree(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be removed ({error.strerror})") from error
