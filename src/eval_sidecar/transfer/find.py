"""Which archive to unpack: a file, a part, the beginning of a name, a pattern, or nothing at all."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple, Optional

from eval_sidecar.errors import BundleError, UsageError
from eval_sidecar.transfer.history import History
from eval_sidecar.transfer.index import shown
from eval_sidecar.transfer.opening import is_whole, peek_index
from eval_sidecar.transfer.parts import Part, check_part, name_of_part, part_name, read_part

_PATTERN = "result*.tar.gz"
#: A browser may have unzipped an archive, and may or may not say so in its name.
_SUFFIXES = (".tar.gz", ".tgz", ".tar")
#: What browsers and file managers put into the name of a second copy: ``x (1).tar.gz``, ``x - Copy.tar.gz``.
_COPY = re.compile(r"(?: ?\(\d+\)| copy(?: \d+)?| - Copy(?: \(\d+\))?)(?=\.|$)", re.IGNORECASE)
_PART_MARK = ".part-"


class Found(NamedTuple):
    """An archive, all of it there and each part as it was packed.

    Attributes:
        paths: The file, or the parts in their order.
        name: What to call it.
        passed_over: How many older archives there were to choose from.
    """

    paths: tuple[Path, ...]
    name: str
    passed_over: int


class _File(NamedTuple):
    """A file that may be an archive or a part of one."""

    path: Path
    part: Optional[Part]
    start: int

    @property
    def key(self) -> tuple[str, str]:
        """What files of the same archive have in common."""
        if self.part is None:
            name = _COPY.sub("", self.path.name)
            for suffix in _SUFFIXES:
                name = name[: -len(suffix)] if name.endswith(suffix) else name
            return ("file", str(self.path.with_name(name or self.path.name)))
        return ("parts", f"{self.part.identity} {self.part.of}")


def find_bundle(arguments: Sequence[str], folders: Sequence[Path]) -> Found:
    """Return the archive that is meant; of several, the newest by their lists, else the newest file.

    Args:
        arguments: Files, parts, folders, patterns, or beginnings of a path; a shell may have made several
            of one. Empty to look for ``result*.tar.gz``.
        folders: Where to look then.

    Raises:
        UsageError: if nothing has that name.
        BundleError: if a part is missing or damaged.
    """
    try:
        return _find(arguments, folders)
    except OSError as error:
        where = shown(str(error.filename or "the archive"))
        raise BundleError(f"{where}: cannot be read ({error.strerror or error})") from error


def _find(arguments: Sequence[str], folders: Sequence[Path]) -> Found:
    paths = [path for text in arguments for path in _paths_of(text)]
    if not arguments:
        paths = [path for folder in folders for path in _matching(folder / "result")]
        if not paths:
            places = " or ".join(shown(str(folder)) for folder in folders)
            raise UsageError(f"there is no {_PATTERN} in {places}; name the archive")
    files = [_look(path) for path in dict.fromkeys(paths)]
    groups: dict[tuple[str, str], list[_File]] = {}
    for file in files:
        groups.setdefault(file.key, []).append(file)
    newest = _newest(list(groups.values()))
    passed_over = len(groups) - 1
    if newest[0].part is not None:
        return _complete(newest, passed_over)
    path = _whole(newest)
    return Found((path,), shown(str(path)), passed_over)


def _newest(groups: Sequence[Sequence[_File]]) -> Sequence[_File]:
    """Return the archive that no other one says it is newer than; else the file that came last."""
    newest, *others = sorted(groups, key=_arrived_at, reverse=True)
    if others:
        histories = {id(group): _history_of(group) for group in groups}
        for group in others:
            here, other = histories[id(newest)], histories[id(group)]
            if here and other and here.id in other.after:
                newest = group
    return newest


def _arrived_at(group: Sequence[_File]) -> int:
    return max(file.path.stat().st_mtime_ns for file in group)


def _history_of(group: Sequence[_File]) -> Optional[History]:
    """Return what an archive says of its order, which is at its beginning."""
    for file in group:
        if file.part is None or file.part.number == 1:
            index = peek_index([file.path])
            if index is not None:
                return index.history
    return None


def _whole(copies: Sequence[_File]) -> Path:
    """Return the file of an archive; of several copies, the newest that is whole."""
    ordered = sorted(copies, key=lambda file: file.path.stat().st_mtime_ns, reverse=True)
    for file in ordered if len(ordered) > 1 else ():
        if is_whole(file.path):
            return file.path
    _refuse_damaged(ordered[0])
    return ordered[0].path


def _paths_of(text: str) -> list[Path]:
    path = Path(text)
    if path.is_file():
        return [path]
    if path.is_dir():
        found = _matching(path / "result")
    elif glob.has_magic(text):
        patterns = (text, f"{text}{_PART_MARK}*")
        found = [Path(name) for pattern in patterns for name in glob.glob(pattern)]  # noqa: PTH207
        found = [path for path in found if path.is_file()]
    else:
        found = _matching(path)
    if not found and path.is_dir():
        raise UsageError(
            f"{shown(text)}: is a folder without an archive; if a browser or a file manager has unpacked"
            " the archive, give the .tar.gz itself"
        )
    if not found:
        raise UsageError(f"{shown(text)}: there is no such archive, and none whose name begins with it")
    return found


def _matching(beginning: Path) -> list[Path]:
    """Return the archives and parts in a folder whose names begin so."""
    try:
        names = sorted(path.name for path in beginning.parent.iterdir())
    except OSError:
        return []
    paths = [beginning.parent / name for name in names if name.startswith(beginning.name)]
    return [path for path in paths if _is_archive_name(path.name) and path.is_file()]


def _is_archive_name(name: str) -> bool:
    return name.endswith(_SUFFIXES) or _PART_MARK in name


def _look(path: Path) -> _File:
    found = read_part(path)
    size = path.stat().st_size
    if found is None:
        return _File(path, None, 0)
    part, start = found
    # Parts that a user joined are an archive, which begins as its first part does.
    together = part.number == 1 and size > start + part.size and name_of_part(path.name) is None
    return _File(path, None if together else part, start)


def _refuse_damaged(file: _File) -> None:
    named = name_of_part(file.path.name)
    if named:
        raise BundleError(
            f"part {named[1]} of {named[2]} ({shown(str(file.path))}) is damaged at its beginning;"
            " carry it again"
        )


def _complete(given: Sequence[_File], passed_over: int) -> Found:
    """Return all parts of an archive: those given, and those that lie beside them."""
    first = given[0].part
    assert first is not None
    folders = list(dict.fromkeys(file.path.parent for file in given))
    beside = [path for folder in folders for path in _parts_in(folder)]
    candidates = [*given, *(_look(path) for path in beside if path not in {file.path for file in given})]
    chosen = []
    for number in range(1, first.of + 1):
        name = part_name(first.archive, number, first.of)
        same = [
            file
            for file in candidates
            if file.key == given[0].key and file.part and file.part.number == number
        ]
        chosen.append(_intact(same, candidates, name, f"part {number} of {first.of}", folders))
    return Found(tuple(chosen), shown(f"{first.archive} in {first.of} parts"), passed_over)


def _intact(
    same: Sequence[_File], candidates: Iterable[_File], name: str, which: str, folders: Sequence[Path]
) -> Path:
    """Return the first copy of a part that matches its SHA-256."""
    problem = None
    for file in same:
        assert file.part is not None
        try:
            check_part(file.path, file.part, file.start)
        except BundleError as error:
            problem = problem or error
        else:
            return file.path
    if problem:
        raise problem
    for file in candidates:
        if file.path.name == name:
            state = "belongs to another archive" if file.part else "is damaged at its beginning"
            raise BundleError(f"{which} ({shown(str(file.path))}) {state}; carry it again")
    places = " and ".join(shown(str(folder)) for folder in folders)
    raise BundleError(f"{which} is missing: there is no {shown(name)} in {places}")


def _parts_in(folder: Path) -> list[Path]:
    paths = sorted(path for path in folder.iterdir() if _PART_MARK in path.name)
    return [path for path in paths if path.is_file()]
