"""What a bundle says of itself: ``results/.bundle.json``, its first member. No I/O.

``{"version": 1, "kind": "full" | "incremental", "base": <receipt's id> | null, "left_out": {"names": [...],
"larger_than": bytes}, "skipped": [name, ...], "members": {name: [size in bytes, mtime in ns, sha256]},
"history": {"id": <hash>, "after": [<id of an older archive>, ...]}}``; names are relative to the results
root. Archives of the first version have no ``history``.
"""

from __future__ import annotations

import json
import re
import string
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Optional

from eval_sidecar.errors import BundleError
from eval_sidecar.paths import MANIFEST
from eval_sidecar.system.redaction import printable
from eval_sidecar.transfer.history import History, parse_history

#: The folder in an archive that stands for the results root, and the older layout's.
TOP = "results"
OLDER_TOP = "GenRec/results"
INDEX_NAME = ".bundle.json"

FULL, INCREMENTAL = "full", "incremental"
_VERSION = 1
_SHA256 = re.compile(r"[0-9a-f]{64}")
#: Larger files are neither packed nor unpacked; results are a thousand times smaller.
LARGEST_MEMBER = 1 << 30
LARGEST_INDEX = 1 << 29
#: What file systems hold in one name and in a path.
_MOST_BYTES_OF_A_NAME, _MOST_BYTES_OF_A_PATH = 255, 4096 - 512


class Member(NamedTuple):
    """One file of a bundle.

    Attributes:
        size: In bytes.
        mtime_ns: When the file was last written on the machine that packed it, in ns since 1970.
        sha256: Of its content, in hex.
    """

    size: int
    mtime_ns: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """What a bundle holds.

    Attributes:
        kind: ``full`` (all there was to carry) or ``incremental`` (what a receipt does not confirm).
        base: Names the receipt that an incremental bundle was made against.
        members: By name, relative to the results root.
        exclude_names: File names that were not carried.
        max_file_size: Larger files were not carried.
        skipped: Files that should have been carried and could not be read in one piece.
        history: Which archives it is newer than; None if it does not say.
    """

    kind: str
    base: Optional[str]
    members: Mapping[str, Member]
    exclude_names: tuple[str, ...]
    max_file_size: int
    skipped: tuple[str, ...] = ()
    history: Optional[History] = None

    @property
    def newest_ns(self) -> int:
        """When the newest result in it was written; that of the manifest if it holds nothing else."""
        times = [member.mtime_ns for name, member in self.members.items() if name != MANIFEST]
        return max(times or [member.mtime_ns for member in self.members.values()], default=0)

    def to_json(self) -> bytes:
        """Return the same bytes for the same content."""
        value = {
            "version": _VERSION,
            "kind": self.kind,
            "base": self.base,
            "left_out": {"names": sorted(self.exclude_names), "larger_than": self.max_file_size},
            "skipped": sorted(self.skipped),
            "members": dict(self.members),
        }
        if self.history is not None:
            value["history"] = self.history.to_json()
        return json.dumps(value, separators=(",", ":")).encode()


def archive_name(index: Index, identity: str) -> str:
    """Return ``results_sync_<time of the newest result, UTC>_<hash of the content>.tar.gz``.

    The same content has the same name, and names sort as their content's age does.
    """
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(max(0, index.newest_ns) // 10**9))
    kind = "" if index.kind == FULL else f"_{index.kind}"
    return f"results_sync_{moment}_{identity[:12]}{kind}.tar.gz"


def parse_index(data: bytes) -> Index:
    """Read a bundle's list of members; it comes from elsewhere, so nothing in it is taken on trust.

    Raises:
        BundleError: if it is damaged, from a newer version, or lists a member that a bundle must not have.
    """
    try:
        value = json.loads(data)
        version = value["version"]
        if isinstance(version, int) and version > _VERSION:
            raise BundleError(
                f"{INDEX_NAME} is of version {version}, this eval-sidecar knows {_VERSION};"
                " install a newer one"
            )
        left_out, skipped = value["left_out"], value["skipped"]
        index = Index(
            value["kind"],
            value["base"],
            {name: _member(name, entry) for name, entry in value["members"].items()},
            tuple(left_out["names"]),
            left_out["larger_than"],
            tuple(skipped),
            parse_history(value["history"]) if "history" in value else None,
        )
        sound = (
            version == _VERSION
            and index.kind in (FULL, INCREMENTAL)
            and isinstance(index.max_file_size, int)
            and all(isinstance(name, str) for name in (*index.exclude_names, *skipped, index.base or ""))
        )
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BundleError(f"{INDEX_NAME} is damaged ({type(error).__name__}: {error})") from error
    if not sound:
        raise BundleError(f"{INDEX_NAME} is damaged (a field has a value that it cannot have)")
    return index


def _member(name: str, entry: Sequence[Any]) -> Member:
    reason = why_unsafe(name) or ("is hidden" if is_hidden(name) else "")
    if reason:
        raise BundleError(f"member {shown(name)} {reason}")
    size, mtime_ns, sha256 = entry
    if type(size) is not int or type(mtime_ns) is not int or size < 0:
        raise BundleError(f"member {shown(name)} is listed with a size or time that no file has")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise BundleError(f"member {shown(name)} is listed without its SHA-256")
    return Member(size, mtime_ns, sha256)


def why_unsafe(name: str) -> Optional[str]:
    """Return why a member of this name must not be unpacked; None if it may."""
    parts = name.split("/")
    if name.startswith("/"):
        return "is absolute"
    if ".." in parts:
        return "climbs out of the results"
    if "\0" in name or "" in parts or "." in parts:
        return "has a name that no file has"
    try:
        lengths = [len(part.encode("utf-8", "surrogateescape")) for part in parts]
    except UnicodeEncodeError:
        return "has a name that no file has"
    if max(lengths) > _MOST_BYTES_OF_A_NAME or sum(lengths) + len(lengths) > _MOST_BYTES_OF_A_PATH:
        return "has too long a name"
    return None


def is_hidden(name: str) -> bool:
    """Return whether any part of a name begins with a dot; only the manifest is carried in spite of that."""
    return name != MANIFEST and (name.startswith(".") or "/." in name)


def shown(name: str) -> str:
    """Return a name as it can be printed: on one line, without control characters, cut if it is long."""
    return (printable(name[:300]) + ("…" if len(name) > 300 else "")) or "''"


def parse_size(text: str) -> int:
    """Return bytes of ``10M`` and the like; K, M and G are powers of 1024, as ``split -b`` has them.

    Raises:
        ValueError: for anything else.
    """
    number, unit = text.strip().upper().rstrip("B").removesuffix("I"), ""
    if number[-1:] in ("K", "M", "G"):
        number, unit = number[:-1], number[-1]
    if not number or set(number) - set(string.digits + "."):
        raise ValueError(f"{text!r}: give a size, such as 500K, 10M or 2G")
    return int(float(number) * 1024 ** ("KMG".index(unit) + 1 if unit else 0))
