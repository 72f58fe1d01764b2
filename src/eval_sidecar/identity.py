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
from typing import Any, BinaryIO, Optional

from eval_sidecar.types import Content

#: Files up to this size are read whole, in bytes.
_SMALL = 4 << 20
#: Of a larger file: bytes at its beginning and at its end, blocks at equal distances, blocks at the ends of
#: tensors (of the largest where there are more), and the size of a block.
_ENDS, _SPREAD, _TENSORS, _BLOCK = 64 << 10, 128, 256, 1 << 10
#: The longest header of a safetensors file that is looked into for where its tensors are, in bytes.
_LONGEST_HEADER = 16 << 20

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

#: Of a folder: inode, mtime and ctime in ns.
FolderStamp = tuple[int, int, int]


def folder_stamp(folder: Path) -> Optional[FolderStamp]:
    """What shows, at the cost of one look, that a folder was made anew or that names in it have changed.

    None where it is missing, or where the file system does not say.
    """
    try:
        status = os.stat(folder)  # noqa: PTH116 - one for each checkpoint in each pass
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns


def look_at_weights(folder: Path) -> tuple[str, int]:
    """What shows, without reading any, that a weights file was written, replaced or added.

    Returns:
        A hash over name, size, times and inode of each, and the newest of their times in ns.

    Raises:
        OSError: where the folder cannot be looked at.
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
    """Read what a checkpoint's weights are; None where they change while they are read.

    Raises:
        OSError: where they cannot be read.
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
    """The hash of what a checkpoint's weights are; 16 hex digits.

    Raises:
        OSError: where they cannot be read.
    """
    hashed, is_whole = hashlib.sha256(), True
    for name in _weights_files(folder):
        size = (folder / name).stat().st_size
        hashed.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        hashed.update(digest_file(folder / name))
        is_whole &= size <= _SMALL
    if not is_whole:
        hashed.update(_losses(folder / "trainer_state.json"))
    return hashed.hexdigest()[:16]


def digest_file(path: Path, whole: int = _SMALL) -> bytes:
    """A hash of a file of any kind: of all of it where it is small, else of blocks from everywhere in it.

    Args:
        path: The file.
        whole: Up to this size all of it is read, in bytes.

    Raises:
        OSError: where it cannot be read.
    """
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        size = file.seek(0, 2)
        for begin, end in [(0, size)] if size <= whole else _pieces(file, size):
            file.seek(begin)
            for start in range(begin, end, 1 << 20):
                hashed.update(file.read(min(1 << 20, end - start)))
    return hashed.digest()


def _pieces(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Begin and end of what is read of a large file, in order."""
    header, ends = _tensor_ends(file, size)
    yield 0, max(header, _ENDS)
    evenly = [size * number // _SPREAD for number in range(1, _SPREAD)]
    for end in sorted({*ends, *evenly}):
        yield max(0, end - _BLOCK), end
    yield max(0, size - _directory_size(file, size)), size


def _tensor_ends(file: BinaryIO, size: int) -> tuple[int, list[int]]:
    """Of a safetensors file, where its header and its largest tensors end; nothing of any other."""
    file.seek(0)
    (length,) = struct.unpack("<Q", file.read(8))
    if length > min(_LONGEST_HEADER, size):
        return 0, []
    try:
        header = json.loads(file.read(length))
        found = [tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"]
        largest = sorted(found, key=lambda place: int(place[0]) - int(place[1]))[:_TENSORS]
        return 8 + length, [8 + length + int(end) for _, end in largest]
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError):
        return 0, []


def _directory_size(file: BinaryIO, size: int) -> int:
    """How many bytes at the end of a file to read: of a zip, all of its directory."""
    file.seek(size - _ENDS)
    end = file.read(_ENDS)
    # The record at a zip's end: its directory's size stands 12 bytes after this mark, 4 bytes long.
    mark = end.rfind(b"PK\x05\x06")
    if mark < 0 or mark + 16 > len(end):
        return _ENDS
    (directory,) = struct.unpack_from("<I", end, mark + 12)
    return int(min(size, _ENDS + (directory if directory != 0xFFFFFFFF else 0)))


def _weights_files(folder: Path) -> list[str]:
    """The files that hold a checkpoint's weights, relative to it, sorted.

    Raises:
        OSError: where the folder cannot be listed.
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
    """What the trainer wrote down of its losses; nothing where that cannot be read."""
    lines: list[Any] = []
    with contextlib.suppress(OSError, ValueError, TypeError, LookupError, AttributeError, RecursionError):
        for line in json.loads(path.read_bytes())["log_history"]:
            if "loss" in line:
                lines.append([line.get(key) for key in ("step", "loss", "grad_norm")])
    return json.dumps(lines).encode()
