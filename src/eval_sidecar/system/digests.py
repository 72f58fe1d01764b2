"""A hash of a file of any kind: of all of it if it is small, else of blocks from everywhere in it."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

#: Files up to this size are read whole, in bytes.
SMALL = 4 << 20
#: Of a larger file: bytes at its beginning and at its end, blocks at equal distances, blocks at the ends of
#: tensors (of the largest if there are more), and the size of a block.
_ENDS, _SPREAD, _TENSORS, _BLOCK = 64 << 10, 128, 256, 1 << 10
#: The longest header of a safetensors file that is looked into for where its tensors are, in bytes.
_LONGEST_HEADER = 16 << 20


def digest_file(path: Path, whole: int = SMALL) -> bytes:
    """Return a hash of a file of any kind: of all of it if it is small, else of blocks from everywhere in it.

    Args:
        path: The file.
        whole: Up to this size all of it is read, in bytes.

    Raises:
        OSError: if it cannot be read.
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
    """Yield begin and end of what is read of a large file, in order."""
    header, ends = _tensor_ends(file, size)
    yield 0, max(header, _ENDS)
    evenly = [size * number // _SPREAD for number in range(1, _SPREAD)]
    for end in sorted({*ends, *evenly}):
        yield max(0, end - _BLOCK), end
    yield max(0, size - _directory_size(file, size)), size


def _tensor_ends(file: BinaryIO, size: int) -> tuple[int, list[int]]:
    """Return where the header and the largest tensors of a safetensors file end; nothing for another file."""
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
    """Return how many bytes at the end of a file to read: of a zip, all of its directory."""
    file.seek(size - _ENDS)
    end = file.read(_ENDS)
    # The record at a zip's end: its directory's size stands 12 bytes after this mark, 4 bytes long.
    mark = end.rfind(b"PK\x05\x06")
    if mark < 0 or mark + 16 > len(end):
        return _ENDS
    (directory,) = struct.unpack_from("<I", end, mark + 12)
    return int(min(size, _ENDS + (directory if directory != 0xFFFFFFFF else 0)))
