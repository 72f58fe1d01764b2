"""Brings a bundle into the results: nothing is touched before all of it was checked.

Which of two versions of a file stays is a matter of the archives' own order (`brought`), never of clocks:
archives can be unpacked in any order and more than once, and the newest version of each file stays. A file
that no archive brought is kept under another name in the same folder. ``force`` takes an old archive anyway.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Optional

from eval_sidecar.errors import BundleError, StateError, UsageError
from eval_sidecar.paths import MANIFEST, ResultPaths
from eval_sidecar.system.locks import held_lock
from eval_sidecar.transfer.arriving import Arrival, Arrived, Notify, hash_of
from eval_sidecar.transfer.brought import Origin, keep_brought, merge_manifests, read_brought
from eval_sidecar.transfer.find import Found
from eval_sidecar.transfer.index import FULL, Index, shown
from eval_sidecar.transfer.owners import refuse_other_models
from eval_sidecar.transfer.scan import KEPT_MARK, LeftOut, Rules, list_files
from eval_sidecar.transfer.staging import (
    Staged,
    check_places,
    move_away,
    move_time,
    put_in_place,
    remove_files,
    staging_folder,
)


@dataclass
class UnpackReport:
    """What unpacking has done; all names are relative to the results root.

    Attributes:
        new: Files that were not there.
        changed: Files that had other content.
        same: How many were there already.
        kept: Files that the archive has, older than those that were unpacked before.
        beside: Files that no archive had brought and that the archive replaces, with the new name of each.
        removed: Files that the archive does not have (``mirror``).
        moved: Those of them that no archive had brought; they are in `ResultPaths.moved_away`.
        ignored: How many hidden files an older archive had.
        index: What the archive says of itself; None for the older layout, which has no checksums.
        has_manifest: Whether a manifest is in the results now.
    """

    new: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    same: int = 0
    kept: list[str] = field(default_factory=list)
    beside: dict[str, str] = field(default_factory=dict)
    removed: list[str] = field(default_factory=list)
    moved: list[str] = field(default_factory=list)
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
        results_root: Created if it is missing.
        mirror: Remove the files that a full archive does not have.
        force: Take the archive's files even if a newer archive was unpacked before.
        moved: Take results of another place under a name that is known here: it is the same training.
        notify: Called with the number of files done and the total.

    Raises:
        BundleError: if the archive is damaged or hostile, or cannot be put in place; one line naming what.
        LockedError: if another unpacking is under way.
    """
    root = Path(os.path.realpath(results_root))
    try:
        made = [folder for folder in (root, *root.parents) if not folder.exists()]
        root.mkdir(parents=True, exist_ok=True)
        lock = ResultPaths(root).unpack_lock
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
        self._arrival = Arrival(root, staging, notify)
        self._brought = read_brought(root)
        self._report = UnpackReport()

    def run(self, found: Found, mirror: bool, moved: bool) -> UnpackReport:
        """Check, stage, and put in place."""
        report, arrival = self._report, self._arrival
        try:
            names = arrival.read(found.paths)
            report.index, report.ignored = arrival.index, arrival.ignored
            origin = arrival.origin
            chosen = (self._choose(file, origin) for file in arrival.files)
            staged = [entry for entry in chosen if entry is not None]
            check_places(self._root, [entry.name for entry in staged])
            removed = self._superfluous(names, origin) if mirror else []
            report.moved = [name for name in removed if not self._is_brought(name)]
            if not (moved or mirror):
                refuse_other_models(self._root, staged)
        except (BundleError, UsageError) as error:
            raise BundleError(f"{found.name}: {error}; nothing was changed") from error
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            raise BundleError(f"{where}{error.strerror or error}; nothing was changed") from error
        self._remember(origin)
        put_in_place(self._root, staged)
        for file in arrival.files:
            if file.waiting is None:
                move_time(self._root / file.name, file.member.mtime_ns)
        move_away(self._root, report.moved)
        remove_files(self._root, removed)
        report.removed = removed
        report.has_manifest = (self._root / MANIFEST).is_file()
        return report

    def _choose(self, file: Arrived, origin: Origin) -> Optional[Staged]:
        """Return how a member is to be put in place; None if the file here is the same or newer."""
        report, brought, name = self._report, self._brought, file.name
        here = file.member.sha256 if file.waiting is None else hash_of(self._root / name)
        is_old = not self._force and brought.is_old(name, origin, is_here=here is not None)
        if is_old and here != file.member.sha256:
            report.kept.append(name)
            return None
        sha256, kept = file.member.sha256, None
        if name == MANIFEST and file.waiting and here and brought.is_from_elsewhere(name, origin):
            sha256 = merge_manifests(self._root / name, file.waiting)
        if file.waiting is None or here == sha256:
            report.same += 1
            if not is_old:
                brought.take(name, origin, sha256)
            return None
        if here is None:
            report.new.append(name)
        else:
            report.changed.append(name)
            if not brought.is_own(name, here):
                kept = report.beside[name] = f"{name.rpartition('/')[2]}{KEPT_MARK}{here[:8]}"
        brought.take(name, origin, sha256)
        return Staged(name, file.waiting, kept)

    def _remember(self, origin: Origin) -> None:
        """Remember what the archive brings before it is in place; else it looks like a user's own files."""
        index, brought = self._report.index, self._brought
        if index is not None and index.kind == FULL and not self._report.kept:
            brought.full = origin if brought.full is None else origin.after(brought.full)
        try:
            keep_brought(self._root, brought, self._staging)
        except (StateError, OSError) as error:
            raise BundleError(f"{error}; nothing was changed") from error

    def _is_brought(self, name: str) -> bool:
        return self._brought.is_own(name, hash_of(self._root / name) or "")

    def _superfluous(self, names: set[str], origin: Origin) -> list[str]:
        """Return the files that the archive would have if the packing machine had them."""
        index = self._report.index
        if index is None or index.kind != FULL:
            kind = "does not say that it holds everything" if index is None else "is incremental"
            raise BundleError(f"{kind}; --mirror needs a full archive of `pack`")
        doomed, newer = [], list(self._report.kept)
        for seen in list_files(self._root, Rules(index.exclude_names), LeftOut()):
            if seen.name in names or _is_skipped(seen.name, index.skipped):
                continue
            if Path(seen.path).lstat().st_size > index.max_file_size:
                continue
            doomed.append(seen.name)
            if self._brought.is_old(seen.name, origin, is_here=True):
                newer.append(seen.name)
        if newer and not self._force:
            raise BundleError(
                f"is older than an archive that was unpacked before: files of that are here ({len(newer)}),"
                f" such as {shown(newer[0])}; --mirror would lose them: take a newer archive, or give --force"
            )
        return sorted(doomed)


def _is_skipped(name: str, skipped: tuple[str, ...]) -> bool:
    """Return whether packing wanted this file and could not read it, or the folder that it is in."""
    return name in skipped or any(part.endswith("/") and name.startswith(part) for part in skipped)
