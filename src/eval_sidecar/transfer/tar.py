"""The tar format, as much of it as plain files need: written the same way each time, read with bounds.

Ours, because archives come from elsewhere: `tarfile` reads the extended headers of an archive into memory
whatever their size, and takes four times as long over 50,000 small files. Formats: POSIX.1-2017, pax (https://pubs.opengroup.org/onlinepubs/9699919799/
utilities/pax.html), and the GNU extensions for long names.
"""

from __future__ import annotations

import gzip
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple, Optional

from eval_sidecar.errors import BundleError
from eval_sidecar.transfer.index import shown

_BLOCK = 512
END = bytes(2 * _BLOCK)
#: name, mode, uid, gid, size, mtime, checksum, type, link, magic, version, user, group, device (2), prefix
_HEADER = struct.Struct("100s8s8s8s12s12s8sc100s6s2s32s32s8s8s155s12x")
#: What is the same in all headers that are written: mode 644, owner 0 without a name.
_OWNER = b"0000644\x000000000\x000000000\0"
_BETWEEN = bytes(100) + b"ustar\x0000" + bytes(64) + b"0000000\x000000000\0"
_FIXED_SUM = sum(_OWNER) + 8 * ord(" ") + sum(_BETWEEN)
_MOST_OCTAL = 8**11 - 1
#: An extended header holds a few names and numbers.
_LARGEST_EXTENDED_HEADER = 1 << 20
#: tar pads its end to a record, 10 KiB by default.
_LARGEST_PADDING = 1 << 20
_READ_SIZE = 1 << 20

_KINDS = {
    "1": "a hard link",
    "2": "a symbolic link",
    "3": "a device",
    "4": "a device",
    "6": "a fifo",
    "S": "a sparse file",
}


def member(name: bytes, data: bytes, mtime: int) -> bytes:
    """Return one file as it is in an archive: header, content, padding. Owner 0 without a name, mode 644.

    Args:
        name: With ``/`` between its parts.
        data: The content.
        mtime: In seconds since 1970; what the format cannot hold becomes the nearest that it can.
    """
    prefix, base = _split(name)
    if base is not None:
        return _header(prefix, base, len(data), mtime, b"0") + data + _padding(len(data))
    records = b"" if _is_utf8(name) else _record(b"hdrcharset", b"BINARY")
    records += _record(b"path", name)
    extended = _header(b"", b"./pax-header", len(records), 0, b"x") + records + _padding(len(records))
    return extended + _header(b"", name[-100:], len(data), mtime, b"0") + data + _padding(len(data))


def _header(prefix: bytes, name: bytes, size: int, mtime: int, kind: bytes) -> bytes:
    numbers = b"%011o\0%011o\0" % (size, min(max(mtime, 0), _MOST_OCTAL))
    checksum = _FIXED_SUM + sum(name) + sum(numbers) + kind[0] + sum(prefix)
    before = name.ljust(100, b"\0") + _OWNER + numbers + b"%06o\0 " % checksum + kind
    return before + _BETWEEN + prefix.ljust(155, b"\0") + bytes(12)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _split(name: bytes) -> tuple[bytes, Optional[bytes]]:
    """Return a name as its prefix (up to 155 bytes) and the rest (up to 100); None if it does not fit."""
    if len(name) <= 100:
        return b"", name
    cut = name.find(b"/", len(name) - 101)
    return (name[:cut], name[cut + 1 :]) if 0 < cut <= 155 and cut + 1 < len(name) else (b"", None)


def _record(key: bytes, value: bytes) -> bytes:
    """Length of this record in decimal (its own digits counted), blank, key, ``=``, value, newline."""
    rest = b" %s=%s\n" % (key, value)
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


class Entry(NamedTuple):
    """One member of an archive.

    Attributes:
        name: As it is in the archive; bytes that are not UTF-8 are kept as surrogates.
        size: In bytes.
        mtime_ns: In ns since 1970.
        kind: ``file``, ``folder``, or what else it is, in words.
    """

    name: str
    size: int
    mtime_ns: int
    kind: str


class Reader:
    """Reads an archive from its beginning to its end, never more than a limit of it.

    Args:
        stream: The unpacked archive; errors of gzip are taken as damage.
        limit: Most bytes to read in all, headers and padding included.
    """

    def __init__(self, stream: BinaryIO, limit: int) -> None:
        self._stream = stream
        self._left = limit
        self._unread = 0
        self._pad = 0

    def __iter__(self) -> Iterator[Entry]:
        """Yield the members; the content of one can be read until the next is asked for.

        Raises:
            BundleError: if the archive is damaged, cut short, or larger than the limit.
        """
        extended: dict[str, str] = {}
        while True:
            self._skip()
            block = self._take(_BLOCK, "is cut short: its end is missing")
            if not any(block):
                return self._check_end()
            entry = _parse(block)
            if entry.kind in ("x", "g", "L", "K"):
                found = self._extended_header(entry)
                extended.update(found if entry.kind != "g" else {})
                continue
            try:
                size = int(extended.get("size", entry.size))
                mtime_ns = int(float(extended["mtime"]) * 10**9) if "mtime" in extended else entry.mtime_ns
            except (ValueError, OverflowError) as error:
                raise BundleError(f"is damaged: {shown(entry.name)} has no valid header") from error
            if size < 0:
                raise BundleError(f"is damaged: {shown(entry.name)} has no valid header")
            kind = _kind(entry, extended)
            name = extended.get("path", entry.name)
            self._unread = 0 if kind == "folder" else size
            self._pad = -self._unread % _BLOCK
            extended = {}
            yield Entry(name, size, mtime_ns, kind)

    def content(self) -> Iterator[bytes]:
        """Yield the rest of the present member's content, in pieces."""
        while self._unread:
            piece = self._take(min(self._unread, _READ_SIZE), "is cut short in the middle of a member")
            self._unread -= len(piece)
            yield piece

    def _extended_header(self, entry: Entry) -> dict[str, str]:
        if entry.size > _LARGEST_EXTENDED_HEADER:
            raise BundleError(f"has an extended header of {entry.size} bytes, which nothing needs")
        data = self._take(entry.size, "is cut short in the middle of a header")
        self._take(-entry.size % _BLOCK, "is cut short in the middle of a header")
        if entry.kind in ("L", "K"):
            return {"path": _text(data)} if entry.kind == "L" else {}
        return _parse_records(data)

    def _skip(self) -> None:
        for _ in self.content():
            pass
        self._take(self._pad, "is cut short in the middle of a member")
        self._pad = 0

    def _take(self, size: int, complaint: str) -> bytes:
        self._left -= size
        if self._left < 0:
            raise BundleError("unpacks to far more than its size; it is not a bundle of results")
        data = self._read(size)
        if len(data) < size:
            raise BundleError(complaint)
        return data

    def _read(self, size: int) -> bytes:
        try:
            return self._stream.read(size)
        except EOFError as error:
            raise BundleError("is cut short: its end is missing") from error
        except (gzip.BadGzipFile, zlib.error, struct.error) as error:
            raise BundleError(f"is damaged ({error})") from error

    def _check_end(self) -> None:
        """Read to the end of the stream, so that its checksum is compared too."""
        seen = 0
        while piece := self._read(_READ_SIZE):
            seen += len(piece)
            if any(piece) or seen > _LARGEST_PADDING:
                raise BundleError("has data after its end")


def _parse(block: bytes) -> Entry:
    name, _, _, _, size, mtime, checksum, kind, _, magic, _, _, _, _, _, prefix = _HEADER.unpack(block)
    try:
        if _number(checksum) != sum(block[:148]) + 8 * 32 + sum(block[156:]):
            raise ValueError("checksum")
        entry = Entry(_text(name), _number(size), _number(mtime) * 10**9, kind.decode("ascii"))
    except (ValueError, OverflowError) as error:
        raise BundleError("is damaged, or not a tar archive: a header does not match its checksum") from error
    if magic == b"ustar\0" and prefix[:1] != b"\0":
        entry = entry._replace(name=f"{_text(prefix)}/{entry.name}")
    if entry.size < 0:
        raise BundleError(f"is damaged: {shown(entry.name)} has no valid header")
    return entry


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: base 256
        return int.from_bytes(field[1:], "big") if field[0] == 0x80 else -1
    return int(field.strip(b" \0") or b"0", 8)


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "surrogateescape")


def _kind(entry: Entry, extended: dict[str, str]) -> str:
    if any(key.startswith("GNU.sparse") for key in extended):
        return _KINDS["S"]
    if entry.kind == "5":
        return "folder"
    if entry.kind in ("0", "\0", "7"):
        return "folder" if entry.kind == "\0" and entry.name.endswith("/") else "file"
    return _KINDS.get(entry.kind, f"of the unknown type {entry.kind!r}")


def _parse_records(data: bytes) -> dict[str, str]:
    records = {}
    while data.strip(b"\0"):
        digits, _, _ = data.partition(b" ")
        try:
            length = int(digits)
            record = data[len(digits) + 1 : length]
            key, found, value = record.partition(b"=")
            sound = digits.isdigit() and len(digits) < length <= len(data)
            if not (sound and found and record.endswith(b"\n")):
                raise ValueError("length")
        except ValueError as error:
            raise BundleError("is damaged: an extended header has no valid length") from error
        records[_text(key)] = value[:-1].decode("utf-8", "surrogateescape")
        data = data[length:]
    return records
