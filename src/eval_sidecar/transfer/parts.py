"""An archive on disk, whole or in parts that can be carried one by one.

A part is ``<archive>.part-001-of-003``: a note that says which part of which archive it is and the
SHA-256 of the rest, then its share of the archive. Ours, because ``split`` makes parts that do not say what
is missing or damaged; these do, and ``cat`` still joins them.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any, BinaryIO, NamedTuple, Optional

from eval_sidecar.errors import BundleError
from eval_sidecar.system.files import sync_folder
from eval_sidecar.transfer import gzips
from eval_sidecar.transfer.index import shown

#: A part's note takes less than this, whatever the archive's name.
NOTE_ROOM = 4096
SMALLEST_CHUNK = 64 * 1024
#: Second copies have something more in their names: ``x.part-001-of-003 (1)``, ``x (1).part-001-of-003``.
_PART = re.compile(
    r"(.+?)(?: ?\(\d+\))?\.part-(\d{3,})-of-(\d{3,})(?: ?\(\d+\))?(?:\.tar\.gz|\.gz|\.tar|\.txt|\.bin)?",
    re.ASCII | re.DOTALL,
)
_VERSION = 1
_COPY_SIZE = 1 << 20


class Part(NamedTuple):
    """What a part says of itself.

    Attributes:
        archive: Name of the archive that it is a part of.
        identity: Hash of the archive's content.
        number: 1 for the first.
        of: How many parts there are.
        size: Bytes behind the note.
        sha256: Of those bytes, in hex.
    """

    archive: str
    identity: str
    number: int
    of: int
    size: int
    sha256: str


def part_name(archive: str, number: int, count: int) -> str:
    """Return the file name of a part."""
    return f"{archive}.part-{number:03d}-of-{count:03d}"


def name_of_part(name: str) -> Optional[tuple[str, int, int]]:
    """Return archive, number and count in a part's file name; None if it is not one of a part."""
    match = _PART.fullmatch(name)
    return (match[1], int(match[2]), int(match[3])) if match else None


def read_part(path: Path) -> Optional[tuple[Part, int]]:
    """Return what a part says of itself and where its share begins; None if the file is not a sound part."""
    with path.open("rb") as file:
        found = gzips.read_note(file)
    if found is None:
        return None
    value, length = found
    try:
        version = value.pop("version")
        part = Part(**value)
    except (AttributeError, KeyError, TypeError):
        return None
    numbers = (part.number, part.of, part.size)
    if version != _VERSION or not all(type(number) is int and number >= 0 for number in numbers):
        return None
    texts = (part.archive, part.identity, part.sha256)
    return (part, length) if all(isinstance(text, str) for text in texts) else None


def check_part(path: Path, part: Part, start: int) -> None:
    """Compare a part with its SHA-256.

    Raises:
        BundleError: naming the part.
    """
    seen = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        file.seek(start)
        while piece := file.read(_COPY_SIZE):
            seen.update(piece)
            size += len(piece)
    which = f"part {part.number} of {part.of} ({shown(str(path))})"
    if size != part.size:
        raise BundleError(f"{which} has {size} bytes of {part.size}; carry it again")
    if seen.hexdigest() != part.sha256:
        raise BundleError(f"{which} is damaged: its SHA-256 does not match; carry it again")


class Compressed(NamedTuple):
    """An archive before it has a name.

    Attributes:
        sources: Files that are the archive one after the other.
        lengths: Of the gzip members in them, in order.
        identity: Hash of its content.
    """

    sources: Sequence[IO[bytes]]
    lengths: list[int]
    identity: str


def write_archive(folder: Path, name: str, archive: Compressed, chunk_size: int) -> list[Path]:
    """Write an archive beside its place and rename it, or its parts, when all is on the disk.

    Args:
        folder: Where it goes.
        name: The archive's file name.
        archive: What is in it.
        chunk_size: Most bytes of a part; 0 for one file, whatever its size.

    Returns:
        The archive, or its parts in their order.
    """
    for source in archive.sources:
        source.seek(0)
    waiting = list(archive.sources)
    if not chunk_size or sum(archive.lengths) <= chunk_size:
        planned: list[tuple[str, Optional[Part], int]] = [(name, None, sum(archive.lengths))]
    else:
        # Cut at other places, parts of the same content do not belong together.
        identity = f"{archive.identity}-{chunk_size}"
        sizes = list(gzips.pieces(archive.lengths, chunk_size - NOTE_ROOM))
        planned = []
        for number, size in enumerate(sizes, 1):
            part = Part(name, identity, number, len(sizes), size, "0" * 64)
            planned.append((part_name(name, number, len(sizes)), part, size))
    with contextlib.ExitStack() as stack:
        written = []
        for file_name, part_or_none, size in planned:
            temporary = folder / f".{secrets.token_hex(8)}.bundle.tmp"
            stack.callback(temporary.unlink, missing_ok=True)
            _write(temporary, part_or_none, _take(waiting, size))
            written.append((temporary, folder / file_name))
        for temporary, path in written:
            temporary.replace(path)
    sync_folder(folder)
    return [path for _, path in written]


def _take(waiting: list[IO[bytes]], size: int) -> Iterator[bytes]:
    """Yield the next bytes of some files that are read one after the other."""
    while size > 0 and waiting:
        piece = waiting[0].read(min(size, _COPY_SIZE))
        if not piece:
            waiting.pop(0)
            continue
        size -= len(piece)
        yield piece


def _write(path: Path, part: Optional[Part], pieces: Iterator[bytes]) -> None:
    sha256 = hashlib.sha256()
    with path.open("wb") as file:
        file.write(_note(part))
        for piece in pieces:
            file.write(piece)
            sha256.update(piece)
        file.seek(0)
        file.write(_note(part._replace(sha256=sha256.hexdigest()) if part else None))
        file.flush()
        os.fsync(file.fileno())


def _note(part: Optional[Part]) -> bytes:
    return gzips.note({"version": _VERSION, **part._asdict()}) if part else b""


class Chain(io.RawIOBase):
    """Several files read as one."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = list(paths)
        self._file: Optional[BinaryIO] = None

    def readable(self) -> bool:
        """Return True: it can be read."""
        return True

    def readinto(self, buffer: Any) -> int:  # noqa: ANN401 - what `RawIOBase` has
        """Fill a buffer; 0 at the end of the last file."""
        while True:
            if self._file is None:
                if not self._paths:
                    return 0
                self._file = self._paths.pop(0).open("rb")
            piece = self._file.read(len(buffer))
            if piece:
                buffer[: len(piece)] = piece
                return len(piece)
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Close the file that is open."""
        if self._file is not None:
            self._file.close()
            self._file = None
        super().close()
