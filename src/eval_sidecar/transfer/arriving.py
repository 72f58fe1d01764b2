"""Reads a bundle to its end and checks it; files that the results lack are staged beside them."""

from __future__ import annotations

import hashlib
import json
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Callable, NamedTuple, Optional

from eval_sidecar.errors import BundleError
from eval_sidecar.paths import MANIFEST
from eval_sidecar.transfer import tar
from eval_sidecar.transfer.brought import Origin
from eval_sidecar.transfer.index import (
    INDEX_NAME,
    LARGEST_INDEX,
    LARGEST_MEMBER,
    OLDER_TOP,
    TOP,
    Index,
    Member,
    is_hidden,
    parse_index,
    shown,
    why_unsafe,
)
from eval_sidecar.transfer.opening import is_clutter, is_index, most_unpacked, open_archive
from eval_sidecar.transfer.staging import write_staged

_IN_MEMORY = 16 << 20

#: Called with the number of files done and the total; the total is 0 if it is not known.
Notify = Callable[[int, int], None]


class Arrived(NamedTuple):
    """A member that was read.

    Attributes:
        name: Relative to the results root.
        member: Its size, time and hash.
        waiting: Where it waits; None if the file that is here is the same.
    """

    name: str
    member: Member
    waiting: Optional[Path]


class Arrival:
    """One archive on its way in.

    Args:
        root: The results root.
        staging: An empty folder for what is not there already.
        notify: Called with the number of files done and the total.

    Attributes:
        files: Its members, in their order.
        index: What it says of itself; None for the older layout, which has no checksums.
        ignored: How many hidden files, or files that other systems add, it had.
    """

    def __init__(self, root: Path, staging: Path, notify: Optional[Notify]) -> None:
        self._root = root
        self._staging = staging
        self._notify = notify
        self._prepared: Optional[str] = None
        self.files: list[Arrived] = []
        self.index: Optional[Index] = None
        self.ignored = 0

    def read(self, paths: Sequence[Path]) -> set[str]:
        """Read the archive to its end; return the names in it.

        Raises:
            BundleError: if it is damaged or hostile. The text does not name the archive.
            OSError: if it cannot be read, or the results folder cannot be written.
        """
        size = sum(path.stat().st_size for path in paths)
        seen: set[str] = set()
        is_first, late = True, b""
        with open_archive(paths) as stream:
            reader = tar.Reader(stream, most_unpacked(size))
            for entry in reader:
                if is_clutter(entry.name):
                    self.ignored += entry.kind != "folder"
                    continue
                if is_index(entry) and is_first:
                    self.index = _read_index(entry, reader)
                    is_first = False
                    continue
                is_first = False
                if is_index(entry) and self.index is None and entry.size <= LARGEST_INDEX:
                    late = b"".join(reader.content())
                name = _name_in_results(entry, bundle=self.index is not None)
                if entry.kind == "folder":
                    continue
                if self.index is None and is_hidden(name):
                    self.ignored += 1
                    continue
                if name in seen:
                    raise BundleError(f"member {shown(entry.name)} appears twice")
                seen.add(name)
                self._take(name, entry, reader)
                if self._notify and len(seen) % 64 == 0:
                    self._notify(len(seen), len(self.index.members) if self.index else 0)
        self._check_together(seen)
        self._believe(late)
        return seen

    def _believe(self, late: bytes) -> None:
        """Take a list that came after some of what it lists, if it is about just that.

        Another program has packed the archive again; it may have added to it, and then the list is old.
        """
        if late:
            try:
                index = parse_index(late)
            except BundleError:
                return
            found = {file.name: file.member.sha256 for file in self.files}
            if found == {name: member.sha256 for name, member in index.members.items()}:
                self.index = index

    def _check_together(self, seen: set[str]) -> None:
        members = self.index.members if self.index else {}
        missing = sorted(set(members) - seen)
        if missing:
            raise BundleError(
                f"is cut short: members are missing ({len(missing)}), such as {shown(missing[0])}"
            )
        if not seen:
            raise BundleError(f"holds no files below {TOP}/ or {OLDER_TOP}/")
        for name in seen:
            folder = name.rpartition("/")[0]
            while folder:
                if folder in seen:
                    raise BundleError(f"member {shown(name)} is below another member that is a file")
                folder = folder.rpartition("/")[0]

    def _take(self, name: str, entry: tar.Entry, reader: tar.Reader) -> None:
        """Read one member, and stage it unless the file that is there is the same."""
        listed = self.index.members.get(name) if self.index else None
        if entry.size > LARGEST_MEMBER:
            raise BundleError(f"member {shown(entry.name)} has {entry.size} bytes, more than any result")
        if self.index and (listed is None or listed.size != entry.size):
            what = "is not in the archive's list" if listed is None else "has another size than is listed"
            raise BundleError(f"member {shown(entry.name)} {what}")
        waiting = self._staging / str(len(self.files))
        hashed = hashlib.sha256()
        mtime_ns = listed.mtime_ns if listed else entry.mtime_ns
        data = None
        if entry.size <= _IN_MEMORY:
            data = b"".join(reader.content())
            hashed.update(data)
        else:
            write_staged(waiting, _hashing(reader.content(), hashed), mtime_ns)
        member = Member(entry.size, mtime_ns, hashed.hexdigest())
        if listed and listed != member:
            raise BundleError(f"member {shown(entry.name)} does not match its SHA-256")
        if name == MANIFEST and data is not None:
            self._prepared = _prepared_at(data)
        is_same = hash_of(self._root / name, member.size) == member.sha256
        if data is not None and not is_same:
            write_staged(waiting, [data], mtime_ns)
        self.files.append(Arrived(name, member, None if is_same else waiting))

    @property
    def origin(self) -> Origin:
        """What the archive says of its place among others."""
        results = [file.member.mtime_ns for file in self.files if file.name != MANIFEST]
        newest = max(results or [file.member.mtime_ns for file in self.files])
        if self.index is not None and self.index.history is not None:
            history = self.index.history
            return Origin(history.id, history.after, True, self._prepared, newest)
        content = json.dumps(sorted((file.name, file.member.sha256) for file in self.files))
        return Origin(hashlib.sha256(content.encode()).hexdigest()[:16], (), False, self._prepared, newest)


def hash_of(path: Path, size: Optional[int] = None) -> Optional[str]:
    """Return the SHA-256 of a plain file; None if there is none, or its size differs."""
    try:
        status = path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(status.st_mode) or (size is not None and status.st_size != size):
        return None
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest()


def _read_index(entry: tar.Entry, reader: tar.Reader) -> Index:
    if entry.size > LARGEST_INDEX:
        raise BundleError(f"{INDEX_NAME} has {entry.size} bytes")
    return parse_index(b"".join(reader.content()))


def _prepared_at(manifest: bytes) -> Optional[str]:
    """Return when a manifest was made, as it says."""
    try:
        value = json.loads(manifest)["generated_at"]
    except (ValueError, TypeError, LookupError, RecursionError):
        return None
    return value if isinstance(value, str) else None


def _name_in_results(entry: tar.Entry, *, bundle: bool) -> str:
    """Return a member's name relative to the results root; empty for the root and the folders above it.

    Raises:
        BundleError: if it must not be unpacked.
    """
    if entry.kind not in ("file", "folder"):
        raise BundleError(f"member {shown(entry.name)} is {entry.kind}")
    name = entry.name
    if entry.kind == "folder":
        name = f"/{name.lstrip('/')}" if name.startswith("/") else name.rstrip("/")
    tops: tuple[str, ...] = (TOP,) if bundle else (TOP, OLDER_TOP)
    name = name[2:] if name.startswith("./") else name
    if name == ".":
        return ""
    problem = why_unsafe(name)
    if problem:
        raise BundleError(f"member {shown(entry.name)} {problem}")
    for top in tops:
        if name.startswith(f"{top}/"):
            return name[len(top) + 1 :]
        if entry.kind == "folder" and f"{top}/".startswith(f"{name}/"):
            return ""
    raise BundleError(f"member {shown(entry.name)} is not below {' or '.join(f'{top}/' for top in tops)}")


def _hashing(pieces: Iterator[bytes], hashed: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        hashed.update(piece)
        yield piece
