"""The readers, built in and installed, and which of them recognizes an evaluation's output."""

from __future__ import annotations

import difflib
import importlib.metadata
import os
import stat
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Optional

from eval_sidecar.errors import ResultError, UsageError
from eval_sidecar.readers.base import Measurements, Reader
from eval_sidecar.readers.hf import HfReader
from eval_sidecar.readers.lighteval import LightevalReader
from eval_sidecar.readers.lm_eval import LmEvalReader
from eval_sidecar.readers.metrics import MetricsReader
from eval_sidecar.readers.opencompass import OpenCompassReader

#: Entry points through which an installed package adds its own readers.
GROUP = "eval_sidecar.readers"
#: How many files a message names.
_MOST_NAMED = 5


@dataclass(frozen=True)
class Output:
    """What an evaluation's output says, and who read it.

    Attributes:
        reader: Name of the reader.
        measurements: What it read.
    """

    reader: str
    measurements: Measurements


class Readers:
    """All readers by name.

    Args:
        installed: Readers of other packages.
        broken: Names of readers that could not be loaded, each with the reason.
    """

    def __init__(
        self, installed: Optional[Mapping[str, Reader]] = None, broken: Optional[Mapping[str, str]] = None
    ) -> None:
        built_in: list[Reader] = [
            MetricsReader(),
            LmEvalReader(),
            LightevalReader(),
            HfReader(),
            OpenCompassReader(),
        ]
        self._by_name: dict[str, Reader] = {
            **(installed or {}),
            **{reader.name: reader for reader in built_in},
        }
        self.broken = dict(broken or {})

    def names(self) -> list[str]:
        """Return the names to choose from."""
        return sorted(self._by_name)

    def require(self, name: str) -> None:
        """Check that there is a reader of this name.

        Raises:
            UsageError: if there is none, or it could not be loaded.
        """
        if name in self.broken and name not in self._by_name:
            raise UsageError(f"reader {name}: {self.broken[name]}")
        if name not in self._by_name:
            near = difflib.get_close_matches(name, self._by_name, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(self.names())}"
            raise UsageError(f"there is no reader called {name}; {hint}")

    def read(self, folder: Path, since: float, name: Optional[str] = None) -> Output:
        """Read what an evaluation wrote into a folder.

        Without a name, the reader that recognizes files there reads them. A ``metrics.json`` comes before all
        others: a script that writes one has chosen what counts.

        Args:
            folder: Where the evaluation wrote its output.
            since: When it began, seconds since the epoch by the clock of the file system; older files do not
                count.
            name: Of the reader; None to detect it.

        Raises:
            UsageError: if there is no reader of this name.
            ResultError: if no reader, or several, recognize files there, or if these cannot be read.
        """
        if name is not None:
            self.require(name)
        files, older = _files(folder, since)
        found = {
            key: own
            for key, reader in self._by_name.items()
            if name in (None, key) and (own := _find(key, reader, folder, files))
        }
        if "metrics" in found:
            found = {"metrics": found["metrics"]}
        if len(found) > 1:
            each = ", ".join(f"{key}: {_named(folder, own)}" for key, own in found.items())
            raise ResultError(f"{folder}: has output of several formats ({each}); name the reader to use")
        for key, own in found.items():
            return Output(key, _read(key, self._by_name[key], own))
        raise ResultError(self._nothing_found(folder, files, older, name))

    def _nothing_found(
        self, folder: Path, files: Sequence[Path], older: Sequence[Path], name: Optional[str]
    ) -> str:
        if not files:
            before = f"; older files do not count: {_named(folder, older)}" if older else ""
            return f"{folder}: the evaluation wrote no file{before}"
        who = f"reader {name} finds nothing to read" if name else "no reader recognizes a file"
        others = "" if name else f"; readers: {', '.join(self.names())}, or write metrics.json"
        broken = "".join(f"; reader {key}: {why}" for key, why in self.broken.items())
        return f"{folder}: {who} among what the evaluation wrote ({_named(folder, files)}){others}{broken}"


def load_readers() -> Readers:
    """Return all readers; one of an installed package that cannot be loaded is named in `broken`."""
    installed: dict[str, Reader] = {}
    broken: dict[str, str] = {}
    for point in _entry_points():
        if point.name in Readers().names():
            broken[point.name] = f"{point.value} is not used: {point.name} is the name of a built-in reader"
            continue
        try:
            loaded = point.load()
            reader = loaded() if isinstance(loaded, type) else loaded
        except Exception as error:  # noqa: BLE001 - another package may raise anything
            broken[point.name] = (
                f"{point.value} cannot be loaded ({_one_line(error)}); fix or uninstall its package"
            )
            continue
        if callable(getattr(reader, "find", None)) and callable(getattr(reader, "read", None)):
            installed[point.name] = reader
        else:
            broken[point.name] = f"{point.value} is not a reader: it has no find() and read()"
    return Readers(installed, broken)


def _entry_points() -> Iterable[importlib.metadata.EntryPoint]:
    if sys.version_info >= (3, 10):
        return importlib.metadata.entry_points(group=GROUP)
    return importlib.metadata.entry_points().get(GROUP, ())


def _files(folder: Path, since: float) -> tuple[list[Path], list[Path]]:
    """Return the files below a folder that were written since then, oldest first, and the older ones."""
    found: list[tuple[float, Path]] = []
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for path in (Path(root, name) for name in names if not name.startswith(".")):
            try:
                status = path.lstat()
            except OSError:
                continue  # removed meanwhile
            if stat.S_ISREG(status.st_mode):
                found.append((status.st_mtime, path))
    found.sort()
    return [path for at, path in found if at >= since], [path for at, path in found if at < since]


def _find(name: str, reader: Reader, folder: Path, files: Sequence[Path]) -> list[Path]:
    try:
        return list(reader.find(folder, files))
    except OSError as error:
        raise ResultError(f"{error.filename or folder}: cannot be read ({error.strerror})") from error
    except Exception as error:
        raise ResultError(f"{folder}: reader {name} failed ({_one_line(error)})") from error


def _read(name: str, reader: Reader, files: Sequence[Path]) -> Measurements:
    try:
        return reader.read(files)
    except ResultError:
        raise
    except Exception as error:
        raise ResultError(f"{files[-1]}: reader {name} failed ({_one_line(error)})") from error


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())


def _named(folder: Path, files: Sequence[Path]) -> str:
    newest = [str(path.relative_to(folder)) for path in reversed(files)]
    more = len(newest) - _MOST_NAMED
    return ", ".join([*newest[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])])
