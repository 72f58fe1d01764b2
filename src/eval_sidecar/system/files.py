"""Atomic JSON and text, locks, and setting aside what cannot be read."""

from __future__ import annotations

import json
import os
import secrets
from pathlib import Path
from typing import Any

from eval_sidecar.errors import StateError

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
