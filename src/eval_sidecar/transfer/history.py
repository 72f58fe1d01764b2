"""The order of archives in their own words: each names those packed before it from the same results.

An archive's id is a hash of what is in it and of the id before it, so that the same results make the same
archive, and two machines that go on from one copy of the results part ways by themselves. No clock is asked.
"""

from __future__ import annotations

import hashlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from eval_sidecar.errors import BundleError, StateError
from eval_sidecar.paths import ResultPaths
from eval_sidecar.system.files import set_aside, write_text

log = logging.getLogger(__name__)

_VERSION = 1
#: Archives that one names as older: more were not carried in one order and unpacked in another.
_LONGEST = 1000
_ID = re.compile(r"[0-9a-f]{16}")


class History(NamedTuple):
    """Where an archive stands among others.

    Attributes:
        id: Of the archive.
        after: Ids of those that are older, oldest first.
    """

    id: str
    after: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON, for `parse_history`."""
        return {"id": self.id, "after": list(self.after)}


def parse_history(value: Any) -> History:  # noqa: ANN401 - whatever an archive holds
    """Read what `History.to_json` wrote.

    Raises:
        TypeError, KeyError, ValueError: if it is anything else.
    """
    after = tuple(value["after"])
    if len(after) > _LONGEST or not all(map(_ID.fullmatch, (value["id"], *after))):
        raise ValueError("not a list of archives")
    return History(value["id"], after)


def next_history(results_root: Path, content: str) -> History:
    """Return the history of an archive with this content that is packed now; the same as before for the same.

    Args:
        results_root: Where the history is kept.
        content: A hash of what the archive holds.

    Raises:
        BundleError: if the history is from a newer version.
    """
    ids = list(_read(ResultPaths(results_root).pack_history))
    if ids and ids[-1] == _id_of(content, ids[:-1]):
        return History(ids[-1], tuple(ids[:-1]))
    return History(_id_of(content, ids), tuple(ids[-_LONGEST:]))


def keep_history(results_root: Path, history: History) -> None:
    """Keep a history before its archive gets its name; the next archive is newer than this one."""
    path = ResultPaths(results_root).pack_history
    ids = [*history.after, history.id][-_LONGEST:]
    if ids == list(_read(path)):
        return
    try:
        write_text(path, json.dumps({"version": _VERSION, "ids": ids}) + "\n")
    except StateError as error:
        log.warning("%s; the next archive cannot say that it is newer than this one", error)


def _id_of(content: str, before: list[str]) -> str:
    return hashlib.sha256(f"{before[-1] if before else ''} {content}".encode()).hexdigest()[:16]


def _read(path: Path) -> Iterator[str]:
    try:
        value = json.loads(path.read_bytes())
        if value["version"] > _VERSION:
            raise BundleError(f"{path}: is of version {value['version']}; install a newer eval-sidecar")
        yield from map(str, value["ids"])
    except FileNotFoundError:
        return
    except (ValueError, TypeError, KeyError) as error:
        kept = set_aside(path, "unreadable")
        log.warning("%s: cannot be used (%s), kept as %s; a new history begins", path, error, kept.name)
