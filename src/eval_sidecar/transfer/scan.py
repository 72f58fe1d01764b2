"""Which files of the results are carried, and reading one of them in one piece."""

from __future__ import annotations

import errno
import os
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Optional

from eval_sidecar.paths import METRICS, MOVED_AWAY

#: Large files that evaluations write beside their metrics, and that nothing reads later.
UNWANTED = ("final_result.json", "rollout.json")
_LARGEST = 10 * 1024**2
#: In the name of a file that was here before an archive brought another one; a hash of it comes behind.
KEPT_MARK = f"{MOVED_AWAY}-"
_TEMPORARY = (".tmp", ".swp", "~")
_ATTEMPTS = 3


@dataclass(frozen=True)
class Rules:
    """What is left out.

    Attributes:
        exclude_names: File names.
        max_file_size: Larger files are left out, in bytes.
    """

    exclude_names: tuple[str, ...] = UNWANTED
    max_file_size: int = _LARGEST


@dataclass
class LeftOut:
    """What was left out, and why.

    Attributes:
        counts: ``name``, ``size``, ``link``, ``temporary``, ``special``, ``bundle``, ``kept`` to a number.
        links: The links among them, as their targets are missed most easily.
        unreadable: Folders that could not be listed, with the reason.
    """

    counts: Counter[str] = field(default_factory=Counter)
    links: list[str] = field(default_factory=list)
    unreadable: dict[str, str] = field(default_factory=dict)

    def note(self, name: str, path: str, reason: str) -> None:
        """Count a file or link; one that leads to results is missed, and named as such."""
        if reason == "link" and _leads_to_results(name, Path(path)):
            self.unreadable[name] = (
                "is a link, which is not followed: put the files themselves there (cp -rL)"
            )
            return
        self.counts[reason] += 1
        self.links += [name] if reason == "link" else []


def _leads_to_results(name: str, path: Path) -> bool:
    """Return whether a link leads to results elsewhere: a model's, a checkpoint's, or a ``metrics.json``.

    What is also in the results is carried under its own name.
    """
    try:
        root = Path(str(path)[: -len(name)]).resolve()
        if root in path.resolve().parents:
            return False
        if name.count("/") == 2:
            return path.name == METRICS and path.is_file()
        if name.count("/") == 1:
            return (path / METRICS).is_file()
        return "/" not in name and any(path.glob(f"checkpoint-*/{METRICS}"))
    except OSError:
        return False


class Seen(NamedTuple):
    """One file.

    Attributes:
        name: Relative to the results root, with ``/`` between its parts.
        path: Where it is.
    """

    name: str
    path: str


def list_files(root: Path, rules: Rules, left_out: LeftOut, under: str = "") -> list[Seen]:
    """Return the files to carry below a folder, in no order, whatever their size.

    Links are not followed, and hidden names are passed by.

    Args:
        root: The results root.
        rules: What to leave out.
        left_out: Gets what was left out.
        under: A folder in the root, as a name that ends in ``/``; empty for all.

    Raises:
        OSError: if the root cannot be listed.
    """
    found: list[Seen] = []
    waiting = [under]
    while waiting:
        folder = waiting.pop()
        try:
            with os.scandir(f"{root}/{folder}") as entries:
                for entry in entries:
                    if entry.name.startswith("."):
                        continue
                    if entry.is_dir(follow_symlinks=False):
                        waiting.append(f"{folder}{entry.name}/")
                    elif reason := _reason(entry, rules, top=not folder):
                        left_out.note(folder + entry.name, entry.path, reason)
                    else:
                        found.append(Seen(folder + entry.name, entry.path))
        except OSError as error:
            if not folder:
                raise
            if not isinstance(error, FileNotFoundError):
                left_out.unreadable[folder] = error.strerror or str(error)
    return found


def _reason(entry: os.DirEntry[str], rules: Rules, *, top: bool) -> Optional[str]:
    if entry.name in rules.exclude_names:
        return "name"
    if not entry.is_file(follow_symlinks=False):
        return "link" if entry.is_symlink() else "special"
    if entry.name.endswith(_TEMPORARY):
        return "temporary"
    if KEPT_MARK in entry.name:
        return "kept"
    return "bundle" if top and entry.name.startswith("result") and ".tar.gz" in entry.name else None


class Read(NamedTuple):
    """A file's content and what it was when it was read.

    Attributes:
        data: The content.
        mtime_ns: In ns since 1970.
        ctime_ns: The same of the last change of any kind.
    """

    data: bytes
    mtime_ns: int
    ctime_ns: int


def read_whole(path: str, most: int) -> Optional[Read]:
    """Read a file in one state; None if it changed during each attempt.

    Args:
        path: The file.
        most: Its largest size, in bytes.

    Raises:
        OSError: if it was deleted, became a link, or cannot be read; with ``EFBIG`` if it is larger.
    """
    for _ in range(_ATTEMPTS):
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            before = os.fstat(descriptor)
            if before.st_size > most:
                raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), path)
            data = _read(descriptor, before.st_size)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        unchanged = before.st_mtime_ns == after.st_mtime_ns and before.st_size == after.st_size
        if unchanged and len(data) == before.st_size:
            return Read(data, after.st_mtime_ns, after.st_ctime_ns)
    return None


def _read(descriptor: int, size: int) -> bytes:
    """Return the content up to one byte more than it should have, so that growth shows."""
    data = os.read(descriptor, size + 1)
    while 0 < len(data) < size and (piece := os.read(descriptor, size + 1 - len(data))):
        data += piece
    return data
