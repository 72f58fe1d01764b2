"""An archive as one stream of tar, however it came: in parts, unzipped by a browser, or zipped twice."""

from __future__ import annotations

import contextlib
import gzip
import io
import re
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Optional, cast

from eval_sidecar.errors import BundleError
from eval_sidecar.transfer import tar
from eval_sidecar.transfer.index import INDEX_NAME, LARGEST_INDEX, TOP, Index, parse_index
from eval_sidecar.transfer.parts import Chain

#: Small files in an archive shrink to a twentieth; nothing honest shrinks to a three-hundredth.
_MOST_EXPANSION, _ALWAYS_ALLOWED = 300, 256 << 20
_GZIP = b"\x1f\x8b"
#: What else a download turns out to be, by its first bytes.
_OTHERS = {
    b"PK": "is a zip file: unzip it, and give the .tar.gz that is in it",
    b"7z\xbc\xaf": "is a 7z file: unpack it, and give the .tar.gz that is in it",
    b"Rar!": "is a rar file: unpack it, and give the .tar.gz that is in it",
    b"BZh": "is compressed with bzip2: run `bzip2 -d` on it first",
    b"\xfd7zXZ": "is compressed with xz: run `xz -d` on it first",
    b"\x28\xb5\x2f\xfd": "is compressed with zstd: run `zstd -d` on it first",
    b"<": "is a page of the web (of a login, or an error?), not an archive: load it down again",
}
#: A server that compresses what is compressed already adds one layer.
_MOST_LAYERS = 2
_BUFFER = 1 << 20
#: Members that other systems add to an archive.
_CLUTTER = re.compile(
    r"(?:^|/)(?:\._[^/]*|\.DS_Store|__MACOSX|@eaDir|Thumbs\.db|desktop\.ini)(?:/|$)", re.IGNORECASE
)


def is_clutter(name: str) -> bool:
    """Return whether a member was not packed by us: a file that a Mac, Windows or a NAS adds to a folder."""
    return _CLUTTER.search(name) is not None


@contextlib.contextmanager
def open_archive(paths: Sequence[Path]) -> Iterator[BinaryIO]:
    """Open an archive, or its parts in their order, as the tar that is in it."""
    with contextlib.ExitStack() as stack:
        stream: BinaryIO = stack.enter_context(io.BufferedReader(Chain(paths), _BUFFER))
        for _ in range(_MOST_LAYERS):
            if not _beginning(stream).startswith(_GZIP):
                break
            unpacked = stack.enter_context(gzip.GzipFile(fileobj=stream, mode="rb"))
            stream = cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, unpacked), _BUFFER))
        beginning = _beginning(stream)
        for magic, what in _OTHERS.items():
            if beginning.startswith(magic):
                raise BundleError(what)
        yield stream


def _beginning(stream: BinaryIO) -> bytes:
    try:
        return cast(io.BufferedReader, stream).peek(len(_GZIP))
    except (OSError, EOFError, zlib.error):
        return b""  # damaged: the next read reports it


def peek_index(paths: Sequence[Path]) -> Optional[Index]:
    """Return what an archive says of itself, from its beginning; None if that cannot be read."""
    try:
        with open_archive(paths) as stream:
            for entry in (reader := tar.Reader(stream, LARGEST_INDEX)):
                if is_index(entry):
                    return parse_index(b"".join(reader.content()))
                if entry.kind == "file" and not is_clutter(entry.name):
                    break
    except (BundleError, OSError, EOFError):
        pass  # unpacking reports what is wrong
    return None


def most_unpacked(size: int) -> int:
    """Return the most bytes that an archive of this size may unpack to."""
    return _ALWAYS_ALLOWED + _MOST_EXPANSION * size


def is_index(entry: tar.Entry) -> bool:
    """Return whether a member is the list of all members."""
    return entry.name.removeprefix("./") == f"{TOP}/{INDEX_NAME}" and entry.kind == "file"


def is_whole(path: Path) -> bool:
    """Return whether an archive can be read to its end: a download that broke off cannot."""
    try:
        with open_archive([path]) as stream:
            for _ in tar.Reader(stream, most_unpacked(path.stat().st_size)):
                pass
    except (BundleError, OSError, EOFError):
        return False
    return True
