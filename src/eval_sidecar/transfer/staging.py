"""Puts files into the results: first all of them in a staging folder, then one rename each.

Each file of the results is its old self or its new one at any moment. A process that is killed leaves a
staging folder, which the next one removes, and files that its next run finds identical.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from eval_sidecar.errors import BundleError
from eval_sidecar.paths import MANIFEST, MOVED_AWAY, ResultPaths
from eval_sidecar.transfer.index import shown

#: Above this many files, one sync of everything is cheaper than one of each.
_MANY = 100


class Staged(NamedTuple):
    """A file that waits to be renamed.

    Attributes:
        name: Relative to the results root.
        path: Where it waits.
        kept: New name, in the same folder, of the file that is there now; None if that is not kept.
    """

    name: str
    path: Path
    kept: Optional[str] = None


@contextlib.contextmanager
def staging_folder(root: Path) -> Iterator[Path]:
    """Provide an empty folder in the results root, and remove it afterwards with what is left in it."""
    folder = ResultPaths(root).unpack_staging
    if os.path.lexists(folder):
        shutil.rmtree(folder)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_places(root: Path, names: Iterable[str]) -> None:
    """Check that files of these names can be put into the results, before any is.

    Raises:
        BundleError: naming the first that cannot: its folder is a file, a link, or permission is denied.
    """
    known: set[str] = set()
    for name in names:
        folder, _, _ = name.rpartition("/")
        if folder not in known:
            _check_folder(root, folder)
            known.add(folder)
        status = _status(root / name)
        if status is not None and not stat.S_ISREG(status.st_mode):
            what = "a link" if stat.S_ISLNK(status.st_mode) else "no plain file"
            raise BundleError(
                f"member {shown(name)} cannot be unpacked: {shown(str(root / name))} is {what} here"
            )


def _check_folder(root: Path, folder: str) -> None:
    deepest = root
    for part in filter(None, folder.split("/")):
        path = deepest / part
        status = _status(path)
        if status is None:
            break
        if not stat.S_ISDIR(status.st_mode):
            what = "a link" if stat.S_ISLNK(status.st_mode) else "a file"
            raise BundleError(
                f"member {shown(folder)}/ cannot be unpacked: {shown(str(path))} is {what} here; move it away"
            )
        deepest = path
    if not os.access(deepest, os.W_OK | os.X_OK):
        raise BundleError(f"{shown(str(deepest))}: permission denied")


def _status(path: Path) -> Optional[os.stat_result]:
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise BundleError(f"{shown(str(path))}: cannot be read ({error.strerror})") from error


def write_staged(path: Path, pieces: Iterable[bytes], mtime_ns: int) -> None:
    """Write a file with this content and this time.

    Raises:
        OSError: if the disk is full, for example.
    """
    with path.open("wb") as file:
        for piece in pieces:
            file.write(piece)
    set_time(path, mtime_ns)


def set_time(path: Path, mtime_ns: int) -> None:
    """Give a file the time at which its content was written on its own machine."""
    with contextlib.suppress(OverflowError):  # a time that this system has no number for
        os.utime(path, ns=(mtime_ns, mtime_ns))


def move_time(path: Path, mtime_ns: int) -> None:
    """Give a file a later time, if the archive's is later than the one that it has."""
    if mtime_ns > path.stat().st_mtime_ns:
        set_time(path, mtime_ns)


def put_in_place(root: Path, staged: Sequence[Staged]) -> None:
    """Rename files into the results, the manifest last: it never lists a file before that exists.

    Raises:
        BundleError: if a rename fails; those before it are done, all others as they were.
    """
    _sync([entry.path for entry in staged])
    folders = set()
    for number, entry in enumerate(sorted(staged, key=lambda entry: (entry.name == MANIFEST, entry.name))):
        target = root / entry.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if entry.kept is not None:
                keep_beside(target, target.with_name(entry.kept))
            entry.path.replace(target)
        except OSError as error:
            raise BundleError(
                f"{shown(str(target))}: cannot be replaced ({error.strerror}); {number} of {len(staged)}"
                " files are new, the others as they were; unpack the same archive again"
            ) from error
        folders.add(target.parent)
    _sync(list(folders))


def keep_beside(path: Path, kept: Path) -> None:
    """Give a file a second name, which it keeps when another file takes its first.

    Does nothing if it has that name already.

    Raises:
        OSError: if that cannot be done.
    """
    if kept.exists():
        return
    try:
        os.link(path, kept)
    except OSError:  # a file system without links
        temporary = kept.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            shutil.copy2(path, temporary)
            _sync([temporary])
            temporary.replace(kept)
        finally:
            temporary.unlink(missing_ok=True)


def move_away(root: Path, names: Iterable[str]) -> None:
    """Move files of the results, under their names, into a hidden folder of the results.

    Raises:
        BundleError: naming what cannot be moved.
    """
    for name in names:
        try:
            kept = ResultPaths(root).moved_away / name
            kept.parent.mkdir(parents=True, exist_ok=True)
            (root / name).replace(set_free(kept))
        except OSError as error:
            raise BundleError(
                f"{shown(str(root / name))}: cannot be moved to {MOVED_AWAY} ({error.strerror}); run it again"
            ) from error


def set_free(path: Path) -> Path:
    """Return a path like this one that is not taken."""
    number, free = 1, path
    while os.path.lexists(free):
        number += 1
        free = path.with_name(f"{path.name}-{number}")
    return free


def remove_files(root: Path, names: Iterable[str]) -> None:
    """Remove files of the results, and folders that are empty then.

    Raises:
        BundleError: naming what cannot be removed.
    """
    for name in names:
        try:
            (root / name).unlink(missing_ok=True)
        except OSError as error:
            raise BundleError(
                f"{shown(str(root / name))}: cannot be removed ({error.strerror}); run it again"
            ) from error
        folder = name
        while "/" in folder:
            folder = folder.rpartition("/")[0]
            try:
                (root / folder).rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise BundleError(
                        f"{shown(str(root / folder))}: cannot be removed ({error.strerror}); run it again"
                    ) from error
                break


def _sync(paths: Sequence[Path]) -> None:
    """Have files or folders on the disk, so that a power cut cannot leave a name without its content."""
    if len(paths) > _MANY:
        os.sync()
        return
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
