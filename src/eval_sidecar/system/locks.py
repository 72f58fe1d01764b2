"""Locks that the system frees when their process dies, and folders that only this user can use."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import filelock

from eval_sidecar.errors import LockedError, StateError


@contextlib.contextmanager
def held_lock(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file for the length of a ``with`` block; the system frees it when the process dies.

    Args:
        path: The lock file; made if it is missing, and left there.
        busy: What to say if another process holds it.

    Raises:
        LockedError: at once, if another process holds it.
        StateError: if the lock file cannot be made.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(path, timeout=0)
        lock.acquire()
    except filelock.Timeout as error:
        raise LockedError(busy) from error
    except OSError as error:
        raise StateError(f"{path}: the lock file cannot be made ({error.strerror})") from error
    except NotImplementedError as error:
        raise StateError(
            f"{path}: cannot be locked on this file system (mounted without flock?); use a folder on another",
            setting="state_dir",
        ) from error
    try:
        yield
    finally:
        lock.release()


def private_folder(path: Path) -> Path:
    """Make a folder that only this user can use, in a place where everybody can make one; return it.

    Raises:
        StateError: if it is another user's, a link, or not a folder.
    """
    try:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = path.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
            raise StateError(
                f"{path}: does not belong to this user, so it is not trusted; remove it, or set TMPDIR to a"
                " folder of your own"
            )
        if found.st_mode & 0o077:
            path.chmod(0o700)
    except OSError as error:
        raise StateError(f"{path}: cannot be used ({error.strerror})") from error
    return path
