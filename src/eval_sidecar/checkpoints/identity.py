"""What a checkpoint's weights are: a hash of their content, the same for a copy anywhere.

A small file is read whole. Of a large one, what its format says of all of it (the header of a safetensors
file, the directory of a torch file, which has a checksum of each tensor) and blocks from everywhere: from
each tensor its last one, where new tokens of an embedding are. If only blocks were read, the losses in
``trainer_state.json`` tell two trainings apart as well.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import struct
from collections.abc import Iterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.ledger.stamps import folder_stamp
from eval_sidecar.system.digests import SMALL, digest_file
from eval_sidecar.types import Content

#: State of the training that no evaluation reads.
_TRAINING_STATE = re.compile(
    r"optimizer.*|scheduler.*|rng_state.*|scaler\.pt|random_states_.*|training_args\.bin|.*\.tmp.*"
)
#: Where weights lie by their format, the one that counts first: later ones repeat it, or are not kept.
_FORMATS = (
    re.compile(r"[^.].*\.safetensors"),
    re.compile(r"(?!pytorch_model_fsdp)[^.].*\.bin"),
    re.compile(r".*\.(bin|pt|pth|distcp|ckpt|gguf|npz|h5|msgpack)"),
)


def look_at_weights(folder: Path) -> tuple[str, int]:
    """Return what shows, without reading any, that a weights file was written, replaced or added.

    Returns:
        A hash over name, size, times and inode of each, and the newest of their times in ns.

    Raises:
        OSError: if the folder cannot be read.
    """
    seen, newest = [], 0
    names = sorted(_list_files(folder))
    # Without a look into them: whatever may be weights.
    likely = [name for name in names if any(pattern.fullmatch(_last(name)) for pattern in _FORMATS)]
    for name in likely or names:
        status = (folder / name).stat()
        seen.append((name, status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino))
        newest = max(newest, status.st_mtime_ns, status.st_ctime_ns)
    return hashlib.sha256(repr(seen).encode()).hexdigest()[:16], newest


def read_content(folder: Path) -> Optional[Content]:
    """Read what a checkpoint's weights are; None if they change while they are read.

    Raises:
        OSError: if they cannot be read.
    """
    stamp = folder_stamp(folder)
    weights, _ = look_at_weights(folder)
    identity = read_identity(folder)
    if stamp is None or folder_stamp(folder) != stamp or look_at_weights(folder)[0] != weights:
        return None
    written = max(((folder / name).stat().st_mtime for name in _weights_files(folder)), default=0.0)
    since = datetime.fromtimestamp(written, timezone.utc).isoformat(timespec="seconds")
    return Content(identity, stamp, weights, since)


def read_identity(folder: Path) -> str:
    """Return the hash of what a checkpoint's weights are; 16 hex digits.

    Raises:
        OSError: if they cannot be read.
    """
    hashed, is_whole = hashlib.sha256(), True
    for name in _weights_files(folder):
        size = (folder / name).stat().st_size
        hashed.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        hashed.update(digest_file(folder / name))
        is_whole &= size <= SMALL
    if not is_whole:
        hashed.update(_losses(folder / "trainer_state.json"))
    return hashed.hexdigest()[:16]


def _weights_files(folder: Path) -> list[str]:
    """Return the files that hold a checkpoint's weights, relative to it, sorted.

    Raises:
        OSError: if the folder cannot be listed.
    """
    names = sorted(_list_files(folder))
    for pattern in _FORMATS:
        found = [name for name in names if pattern.fullmatch(_last(name))]
        # Weights that were not gathered lie elsewhere; the file that is to hold them has a header alone.
        if found and any(_holds_data(folder / name) for name in found):
            return found
    return names


def _last(name: str) -> str:
    return name.rpartition("/")[2]


def _list_files(folder: Path, under: str = "") -> Iterator[str]:
    with os.scandir(folder / under) as entries:
        for entry in entries:
            if _TRAINING_STATE.fullmatch(entry.name):
                continue
            if entry.is_dir(follow_symlinks=False):
                yield from _list_files(folder, f"{under}{entry.name}/")
            elif entry.is_file():
                yield under + entry.name


def _holds_data(path: Path) -> bool:
    if path.suffix != ".safetensors":
        return True
    with path.open("rb") as file:
        start = file.read(8)
        return len(start) == 8 and file.seek(0, 2) > 8 + struct.unpack("<Q", start)[0]


def _losses(path: Path) -> bytes:
    """Return the losses that the trainer recorded; nothing if they cannot be read."""
    lines: list[Any] = []
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        for line in json.loads(path.read_bytes())["log_history"]:
            if "loss" in line:
                lines.append([line.get(key) for key in ("step", "loss", "grad_norm")])
    return json.dumps(lines).encode()
