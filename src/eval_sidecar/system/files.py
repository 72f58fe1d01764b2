"""Atomic JSON and text, locks, and setting aside what cannot be read."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import filelock

from eval_sidecar.errors import LockedError, StateError

#: A line for each value. Indentation would be done in Python, six times as slow.
encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",\n ", ": ")).encode


def write_text(path: Path, text: str) -> None:
    """Replace a file by one with this text; after a crash it holds either the old text or the new.

    The text is on the disk (fsync of the file and of its folder) when this returns.

    Raises:
        StateError: if the folder is read-only, the disk is full, and the like.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # A name that is not UTF-8 has lone surrogates; as JSON's own escapes they survive.
            with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        except BaseException:  # after a signal too, no temporary file is left
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(path.parent)
    except OSError as error:
        raise StateError(f"{path}: cannot be written ({error.strerror}); it is unchanged") from error


def write_json(path: Path, value: Any) -> None:  # noqa: ANN401 - anything that JSON can hold
    """Replace a file by this value as JSON, as `write_text` does."""
    write_text(path, encode(value) + "\n")


def sync_folder(folder: Path) -> None:
    """Make renames and new names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def set_aside(path: Path, reason: str) -> Path:
    """Rename a file that cannot be used, so that it is kept under another name.

    Returns:
        The new path, ``<name>.<reason>`` or, if that is taken, ``<name>.<reason>-2`` and so on.

    Raises:
        StateError: if it cannot be renamed.
    """
    for number in range(1, 10_000):
        kept = path.with_name(f"{path.name}.{reason}" + (f"-{number}" if number > 1 else ""))
        if not kept.exists():
            try:
                path.rename(kept)
            except OSError as error:
                raise StateError(f"{path}: cannot be renamed to {kept.name} ({error.strerror})") from error
            return kept
    raise StateError(f"{path}: there are too many copies named {path.name}.{reason}-*; remove some")


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
    """Make a folder that only this user can use, in a place where every user can write; return it.

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
