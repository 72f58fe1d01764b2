"""Brings a bundle into the results: nothing is touched before all of it was checked.

Which of two versions of a file stays: the one written later, by the clock of the machine that wrote it.
A bundle carries that time, and unpacking gives it to the file, so bundles can be unpacked in any order and as
often as one likes: what is there in the end is the newest that came. A file that is there with other content
and a later time than a member's is kept and named; ``force`` takes the member. Equal content is left
alone; only its time moves forward where the bundle's is later.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Callable, Optional, cast

from eval_sidecar.errors import BundleError, UsageError
from eval_sidecar.files import held_lock
from eval_sidecar.transfer import tar
from eval_sidecar.transfer.find import Found
from eval_sidecar.transfer.index import (
    FULL,
    INDEX_NAME,
    LARGEST_MEMBER,
    MANIFEST_NAME,
    OLDER_TOP,
    TOP,
    Index,
    Member,
    is_hidden,
    parse_index,
    shown,
    why_unsafe,
)
from eval_sidecar.transfer.owners import refuse_other_models
from eval_sidecar.transfer.parts import Chain
from eval_sidecar.transfer.scan import LeftOut, Rules, list_files
from eval_sidecar.transfer.staging import (
    Staged,
    check_places,
    put_in_place,
    remove_files,
    set_time,
    staging_folder,
    write_staged,
)

_LOCK_NAME = ".unpack.lock"
_LARGEST_INDEX = 1 << 29
#: Small files in an archive shrink to a twentieth; nothing honest shrinks to a three-hundredth.
_MOST_EXPANSION, _ALWAYS_ALLOWED = 300, 256 << 20
_IN_MEMORY = 16 << 20

#: Told how many of how many files are done; how many there are is 0 where nobody knows.
Notify = Callable[[int, int], None]


@dataclass
class UnpackReport:
    """What unpacking has done; all names are relative to the results root.

    Attributes:
        new: Files that were not there.
        changed: Files that had other content.
        same: How many were there already.
        kept: Files that are newer here than in the archive, and other.
        removed: Files that the archive does not have (``mirror``).
        ignored: How many hidden files an older archive had.
        index: What the archive says of itself; None for the older layout, which has no checksums.
        has_manifest: Whether a manifest is in the results now.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    same: int = 0
    kept: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    ignored: int = 0
    index: Optional[Index] = None
    has_manifest: bool = False

    @property
    def files(self) -> int:
        """How many files the archive has."""
        return len(self.new) + len(self.changed) + self.same + len(self.kept)


def unpack(
    found: Found,
    results_root: Path,
    *,
    mirror: bool = False,
    force: bool = False,
    moved: bool = False,
    notify: Optional[Notify] = None,
) -> UnpackReport:
    """Unpack an archive into the results.

    Args:
        found: The archive.
        results_root: Made where it is missing.
        mirror: Remove the files that a full archive does not have.
        force: Take the archive's files even where those here are newer.
        moved: Take results of another place under a name that is known here: it is the same training.
        notify: Told how many of how many files are done.

    Raises:
        BundleError: where the archive is damaged or hostile, or cannot be brought in; one line naming what.
        LockedError: where another unpacking is under way.
    """
    root = Path(os.path.realpath(results_root))
    try:
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
        root.mkdir(parents=True, exist_ok=True)
        lock = root / _LOCK_NAME
        with held_lock(lock, f"{results_root}: another unpack is under way there; wait until it is done"):
            try:
                with staging_folder(root) as staging:
                    return _Unpacking(root, staging, force, notify).run(found, mirror, moved)
            finally:
                _clean_up(made, lock)
    except OSError as error:
        raise BundleError(f"{error.filename or found.name}: {error.strerror or error}") from error


def _clean_up(made: list[Path], lock: Path) -> None:
    """Leave no trace of a first unpacking that failed."""
    if made and [path.name for path in made[0].iterdir()] == [lock.name]:
        lock.unlink()
        with contextlib.suppress(OSError):
            for folder in made:
                folder.rmdir()


class _Unpacking:
    """One archive on its way in."""

    def __init__(self, root: Path, staging: Path, force: bool, notify: Optional[Notify]) -> None:
        self._root = root
        self._staging = staging
        self._force = force
        self._notify = notify
        self._staged: list[Staged] = []
        self._later: list[tuple[str, int]] = []  # same content, later time
        self._report = UnpackReport()

    def run(self, found: Found, mirror: bool, moved: bool) -> UnpackReport:
        """Check, stage, and put in place."""
        try:
            names = self._stage(found)
            check_places(self._root, [entry.name for entry in self._staged])
            removed = self._superfluous(names) if mirror else []
            if not (moved or mirror):
                refuse_other_models(self._root, self._staged)
        except (BundleError, UsageError) as error:
            raise BundleError(f"{found.name}: {error}; nothing was changed") from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise BundleError(f"{where}{error.strerror or error}; nothing was changed") from error
        put_in_place(self._root, self._staged)
        for name, mtime_ns in self._later:
            set_time(self._root / name, mtime_ns)
        remove_files(self._root, removed)
        self._report.removed = removed
        self._report.has_manifest = (self._root / MANIFEST_NAME).is_file()
        return self._report

    def _stage(self, found: Found) -> set[str]:
        """Read the archive to its end; what is new waits in the staging folder then."""
        size = sum(path.stat().st_size for path in found.paths)
        seen: set[str] = set()
        with _open(found) as stream:
            reader = tar.Reader(stream, _ALWAYS_ALLOWED + _MOST_EXPANSION * size)
            for number, entry in enumerate(reader):
                if number == 0 and entry.name == f"{TOP}/{INDEX_NAME}":
                    self._report.index = self._read_index(entry, reader)
                    continue
                index = self._report.index
                name = _name_in_results(entry, bundle=index is not None)
                if entry.kind == "folder":
                    continue
                if index is None and is_hidden(name):
                    self._report.ignored += 1
                    continue
                if name in seen:
                    raise BundleError(f"member {shown(entry.name)} is there twice")
                seen.add(name)
                self._take(name, entry, reader)
                if self._notify and len(seen) % 64 == 0:
                    self._notify(len(seen), len(index.members) if index else 0)
        self._check_together(seen)
        return seen

    def _check_together(self, seen: set[str]) -> None:
        index = self._report.index
        missing = sorted(set(index.members) - seen) if index else []
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

    def _read_index(self, entry: tar.Entry, reader: tar.Reader) -> Index:
        if entry.kind != "file" or entry.size > _LARGEST_INDEX:
            raise BundleError(f"{INDEX_NAME} is {entry.kind} of {entry.size} bytes")
        index = parse_index(b"".join(reader.content()))
        return index

    def _take(self, name: str, entry: tar.Entry, reader: tar.Reader) -> None:
        """Read one member, and stage it unless the file that is there is the same or newer."""
        listed = self._report.index.members.get(name) if self._report.index else None
        if entry.size > LARGEST_MEMBER:
            raise BundleError(f"member {shown(entry.name)} has {entry.size} bytes, more than any result")
        if self._report.index and (listed is None or listed.size != entry.size):
            what = "is not in the archive's list" if listed is None else "has another size than is listed"
            raise BundleError(f"member {shown(entry.name)} {what}")
        waiting = self._staging / str(len(self._staged))
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
        if self._is_wanted(name, member):
            if data is not None:
                write_staged(waiting, [data], mtime_ns)
            self._staged.append(Staged(name, waiting))

    def _is_wanted(self, name: str, member: Member) -> bool:
        path = self._root / name
        try:
            status = path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            self._report.new.append(name)
            return True
        if stat.S_ISREG(status.st_mode):
            if status.st_size == member.size and _sha256(path) == member.sha256:
                self._report.same += 1
                if member.mtime_ns > status.st_mtime_ns:
                    self._later.append((name, member.mtime_ns))
                return False
            if status.st_mtime_ns > member.mtime_ns and not self._force:
                self._report.kept.append(name)
                return False
        self._report.changed.append(name)
        return True

    def _superfluous(self, names: set[str]) -> list[str]:
        """The files that the archive would have if they were there where it was packed."""
        index = self._report.index
        if index is None or index.kind != FULL:
            kind = "does not say that it holds everything" if index is None else "is incremental"
            raise BundleError(f"{kind}; --mirror needs a full archive of `pack`")
        doomed, newer = [], list(self._report.kept)
        for seen in list_files(self._root, Rules(index.exclude_names), LeftOut()):
            if seen.name in names or _is_skipped(seen.name, index.skipped):
                continue
            status = Path(seen.path).lstat()
            if status.st_size > index.max_file_size:
                continue
            doomed.append(seen.name)
            if status.st_mtime_ns > index.newest_ns:
                newer.append(seen.name)
        if newer and not self._force:
            raise BundleError(
                f"is older than files that are here ({len(newer)}), such as {shown(newer[0])}; --mirror"
                " would lose them: take a newer archive, or give --force"
            )
        return sorted(doomed)


def _is_skipped(name: str, skipped: tuple[str, ...]) -> bool:
    """Whether packing wanted this file and could not read it, or the folder that it is in."""
    return name in skipped or any(part.endswith("/") and name.startswith(part) for part in skipped)


def _name_in_results(entry: tar.Entry, *, bundle: bool) -> str:
    """A member's name relative to the results root; empty for the root itself and the folders above it.

    Raises:
        BundleError: where it is nothing that may be unpacked.
    """
    if entry.kind not in ("file", "folder"):
        raise BundleError(f"member {shown(entry.name)} is {entry.kind}")
    name = entry.name
    if entry.kind == "folder":
        name = f"/{name.lstrip('/')}" if name.startswith("/") else name.rstrip("/")
    tops: tuple[str, ...] = (TOP,)
    if not bundle:
        tops = (TOP, OLDER_TOP)
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


@contextlib.contextmanager
def _open(found: Found) -> Iterator[BinaryIO]:
    with io.BufferedReader(Chain(found.paths), 1 << 20) as packed, gzip.GzipFile(fileobj=packed) as unpacked:
        yield cast(BinaryIO, io.BufferedReader(cast(io.RawIOBase, unpacked), 1 << 20))


def _hashing(pieces: Iterator[bytes], hashed: hashlib._Hash) -> Iterator[bytes]:
    for piece in pieces:
        hashed.update(piece)
        yield piece


def _sha256(path: Path) -> str:
    hashed = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            hashed.update(piece)
    return hashed.hexdigest()
