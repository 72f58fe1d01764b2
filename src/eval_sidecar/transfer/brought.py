"""What was unpacked into the results before: which archive brought each file, and which are older than that.

Two archives are compared by what they say of themselves (`history`). One of an older version says nothing: it
has the time at which its manifest was made, and that of its newest result, by the clock of the machine that
packed both. Times of files on this machine decide nothing.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Optional

from eval_sidecar.errors import BundleError
from eval_sidecar.paths import ResultPaths
from eval_sidecar.system.files import set_aside, sync_folder, write_text

log = logging.getLogger(__name__)

_VERSION = 1
#: Older archives that are remembered of one.
_LONGEST = 2000
_FIELDS = ("id", "older", "speaks", "prepared", "newest_ns")


@dataclass(frozen=True)
class Origin:
    """An archive as it is remembered.

    Attributes:
        id: Of the archive; of one of an older version, a hash of what it holds.
        older: Ids of archives that are older, or that it came after.
        speaks: Whether it says itself which archives are older.
        prepared: When its manifest was made, as that says it; None if it does not.
        newest_ns: When its newest result was written, by the clock of the machine that packed it.
    """

    id: str
    older: tuple[str, ...] = ()
    speaks: bool = True
    prepared: Optional[str] = None
    newest_ns: int = 0

    @functools.cached_property
    def _known(self) -> frozenset[str]:
        return frozenset(self.older)  # looked up for every file

    def is_behind(self, other: Origin) -> bool:
        """Return whether the other one names this one as older."""
        return self.id in other._known

    def is_older_than(self, other: Origin) -> bool:
        """Return whether the other one was packed later, as far as the two say."""
        if self.id == other.id or other.is_behind(self):
            return False
        if self.is_behind(other):
            return True
        if self.speaks and other.speaks:
            return False  # of two machines: the one that is unpacked now is taken
        if self.prepared and other.prepared and self.prepared != other.prepared:
            return self.prepared < other.prepared
        return self.newest_ns < other.newest_ns

    def replaces(self, other: Origin) -> bool:
        """Return whether this archive follows the other one and everything that had come before that."""
        return {other.id, *other.older} <= {self.id, *self.older}

    def after(self, other: Origin) -> Origin:
        """Return this archive, having replaced another one."""
        if other.id == self.id:
            return other
        older = dict.fromkeys((*other.older, other.id, *self.older))
        older.pop(self.id, None)
        return Origin(self.id, tuple(older)[-_LONGEST:], self.speaks, self.prepared, self.newest_ns)


class File(NamedTuple):
    """A file that an archive has brought.

    Attributes:
        origin: The archive.
        sha256: Of the file, as that has it.
        before: The same of what another archive had brought before; a killed unpacking leaves either.
    """

    origin: Origin
    sha256: str
    before: Optional[str] = None


@dataclass
class Brought:
    """The memory of one results root.

    Attributes:
        files: By name, relative to the results root.
        full: The full archive that was unpacked last: a file that only an older one has was deleted since.
    """

    files: dict[str, File] = field(default_factory=dict)
    full: Optional[Origin] = None
    _joined: dict[tuple[str, int], Origin] = field(default_factory=dict)

    def is_own(self, name: str, sha256: str) -> bool:
        """Return whether a file that is here is as an archive has brought it."""
        known = self.files.get(name)
        return known is not None and sha256 in (known.sha256, known.before)

    def is_old(self, name: str, origin: Origin, *, is_here: bool) -> bool:
        """Return whether what an archive has of a file is older than what was brought."""
        known = self.files.get(name)
        if known is not None:
            return origin.is_older_than(known.origin)
        return not is_here and self.full is not None and origin.is_behind(self.full)

    def is_from_elsewhere(self, name: str, origin: Origin) -> bool:
        """Return whether a file is here from another line of archives, which this one does not follow."""
        known = self.files.get(name)
        return known is not None and origin.speaks and not origin.replaces(known.origin)

    def take(self, name: str, origin: Origin, sha256: str) -> None:
        """Remember that an archive brings a file."""
        known = self.files.get(name)
        before = (known.before if known.sha256 == sha256 else known.sha256) if known else None
        self.files[name] = File(self._join(origin, known.origin) if known else origin, sha256, before)

    def _join(self, origin: Origin, other: Origin) -> Origin:
        """Return the same object for the same two: thousands of files have them in common."""
        key = (origin.id, id(other))
        if key not in self._joined:
            self._joined[key] = origin.after(other)
        return self._joined[key]


def read_brought(root: Path) -> Brought:
    """Read the memory of a results root; empty if nothing was unpacked there.

    Raises:
        BundleError: if it is from a newer version.
    """
    path = ResultPaths(root).unpacked
    try:
        value = json.loads(path.read_bytes())
        if value["version"] > _VERSION:
            raise BundleError(f"{path}: is of version {value['version']}; install a newer eval-sidecar")
        origins = [_origin(item) for item in value["archives"]]
        files = {
            str(name): File(origins[number], str(sha256), before)
            for name, (number, sha256, before) in value["files"].items()
        }
        full = value["full"]
        return Brought(files, None if full is None else origins[full])
    except FileNotFoundError:
        return Brought()
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        kept = set_aside(path, "unreadable")
        log.warning("%s: cannot be used (%s); it is kept as %s", path, error, kept.name)
        return Brought()


def keep_brought(root: Path, brought: Brought, staging: Path) -> None:
    """Write the memory down, before the files that it speaks of are put in place.

    Args:
        root: The results root.
        brought: The memory.
        staging: A temporary folder on the same disk.

    Raises:
        StateError, OSError: if it cannot be written.
    """
    origins: dict[int, Origin] = {}
    numbers: dict[int, int] = {}

    def number_of(origin: Origin) -> int:
        origins[id(origin)] = origin
        return numbers.setdefault(id(origin), len(numbers))

    files = {
        name: [number_of(file.origin), file.sha256, file.before]
        for name, file in sorted(brought.files.items())
    }
    full = None if brought.full is None else number_of(brought.full)
    archives = [{name: getattr(origin, name) for name in _FIELDS} for origin in origins.values()]
    value = {"version": _VERSION, "archives": archives, "full": full}
    text = json.dumps({**value, "files": files}, separators=(",", ":"))
    path = ResultPaths(root).unpacked
    try:
        same = path.read_text(encoding="utf-8", errors="surrogateescape") == text
    except OSError:
        same = False
    if not same:
        write_text(staging / path.name, text)
        (staging / path.name).replace(path)
        sync_folder(root)


def merge_manifests(here: Path, arrived: Path) -> str:
    """Add to a manifest that has arrived the models of the one that is here; return its SHA-256.

    Two training machines know of different models, and a manifest that took the other's place would end
    the uploads of half of them. What both have is as the one that arrives says.
    """
    text = arrived.read_bytes()
    try:
        known, news = json.loads(here.read_bytes()), json.loads(text)
        listed = {model["model_dir"] for model in news["models"]}
        others = [model for model in known["models"] if model["model_dir"] not in listed]
        if others and known["version"] == news["version"]:
            news["models"] += others
            text = (json.dumps(news, ensure_ascii=False, indent=1) + "\n").encode("utf-8", "backslashreplace")
            times = arrived.stat()
            arrived.write_bytes(text)
            os.utime(arrived, ns=(times.st_atime_ns, times.st_mtime_ns))
    except (ValueError, TypeError, LookupError):
        pass  # not manifests: the upload reports what is wrong with the one that arrived
    return hashlib.sha256(text).hexdigest()


def _origin(value: Mapping[str, Any]) -> Origin:
    return Origin(
        str(value["id"]),
        tuple(map(str, value["older"])),
        bool(value["speaks"]),
        value["prepared"],
        int(value["newest_ns"]),
    )
