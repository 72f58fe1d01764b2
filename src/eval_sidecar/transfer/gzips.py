"""Compression in blocks: an archive is a row of gzip members, each of which can begin a part.

Ours, because the same results must make the same bytes on every machine and Python, and no library cuts a
gzip between members. RFC 1952: members may follow each other, and what they unpack to is one stream. So the
list of members can be put before what was compressed earlier, parts can be cut between members, and ``cat``
of all parts is an archive again.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Optional

#: Uncompressed bytes to a gzip member: enough for the compression to be as good as in one piece.
BLOCK_SIZE = 1 << 20
#: A fifth larger than at level 6, in a third of the time.
_LEVEL = 3
_MOST_WAITING = 4
#: magic, method, flags, time, extra flags, system (255: unknown)
_FIXED = struct.Struct("<2sBBIBB")
#: length of all, name of the field, its length, checksum of its text
_EXTRA = struct.Struct("<H2sHI")
_HAS_EXTRA = 4
_FIELD = b"ES"
_NOTE = _FIXED.pack(b"\x1f\x8b", 8, _HAS_EXTRA, 0, 0, 255)
_EMPTY = b"\x03\x00" + bytes(8)


def compress(data: bytes) -> bytes:
    """Return one gzip member, without time and name: the same bytes for the same data."""
    squeeze = zlib.compressobj(_LEVEL, zlib.DEFLATED, -zlib.MAX_WBITS)
    body = squeeze.compress(data) + squeeze.flush()
    end = struct.pack("<II", zlib.crc32(data), len(data) & 0xFFFFFFFF)
    return _FIXED.pack(b"\x1f\x8b", 8, 0, 0, 0, 255) + body + end


class BlockWriter:
    """Compresses what it is given into a file, in a second thread: zlib releases the interpreter lock.

    Attributes:
        lengths: Of the gzip members in the file, in order; complete after the ``with`` block.
    """

    def __init__(self, file: BinaryIO, block_size: int) -> None:
        self.lengths: list[int] = []
        self._file = file
        self._block_size = block_size
        self._buffer = bytearray()
        self._waiting: deque[Future[bytes]] = deque()
        self._pool = ThreadPoolExecutor(1)

    def __enter__(self) -> BlockWriter:
        return self

    def __exit__(self, failed: Optional[type[BaseException]], *_: object) -> None:
        try:
            if failed is None:
                if self._buffer:
                    self._submit(len(self._buffer))
                self._store(0)
        finally:
            self._pool.shutdown()

    def write(self, data: bytes) -> None:
        """Add to what is compressed."""
        self._buffer += data
        while len(self._buffer) >= self._block_size:
            self._submit(self._block_size)
            self._store(_MOST_WAITING)

    def _submit(self, size: int) -> None:
        self._waiting.append(self._pool.submit(compress, bytes(self._buffer[:size])))
        del self._buffer[:size]

    def _store(self, left: int) -> None:
        while len(self._waiting) > left:
            member = self._waiting.popleft().result()
            self._file.write(member)
            self.lengths.append(len(member))


def note(value: dict[str, Any]) -> bytes:
    """Return a gzip member that unpacks to nothing and carries a JSON value in its header's extra field."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    extra = _EXTRA.pack(len(text) + 8, _FIELD, len(text) + 4, zlib.crc32(text)) + text
    return _NOTE + extra + _EMPTY


def read_note(file: BinaryIO) -> Optional[tuple[Any, int]]:
    """Return the value of a `note` at a file's beginning and the note's length; None if it has none."""
    head = file.read(len(_NOTE) + _EXTRA.size)
    if len(head) < len(_NOTE) + _EXTRA.size or not head.startswith(_NOTE):
        return None
    whole, field, length, checksum = _EXTRA.unpack_from(head, len(_NOTE))
    text = file.read(max(0, length - 4))
    sound = (field, whole, zlib.crc32(text)) == (_FIELD, length + 4, checksum)
    if not sound or file.read(len(_EMPTY)) != _EMPTY:
        return None
    try:
        return json.loads(text), len(head) + len(text) + len(_EMPTY)
    except (ValueError, RecursionError):
        return None


def pieces(lengths: list[int], most: int) -> Iterator[int]:
    """Yield the number of bytes for each part: at most ``most``, and members stay whole."""
    size = 0
    for length in lengths:
        if size and size + length > most:
            yield size
            size = 0
        size += length
    yield size
