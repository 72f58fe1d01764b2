"""Makes a bundle of the results: one file, or parts of it, the same bytes for the same results."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Callable, Optional

from eval_sidecar.errors import BundleError, UsageError
from eval_sidecar.manifest.receipt import Receipt, read_receipt, without_moved
from eval_sidecar.paths import MANIFEST, ResultPaths
from eval_sidecar.transfer import gzips, parts, tar
from eval_sidecar.transfer.changes import Digests, is_result, list_changes
from eval_sidecar.transfer.history import keep_history, next_history
from eval_sidecar.transfer.index import (
    FULL,
    INCREMENTAL,
    INDEX_NAME,
    LARGEST_MEMBER,
    TOP,
    Index,
    Member,
    archive_name,
    shown,
)
from eval_sidecar.transfer.scan import LeftOut, Rules, Seen, list_files, read_whole

#: Bytes of a name that is given: a file has 255 with ``.tar.gz.part-001-of-003`` behind it.
_LONGEST_NAME = 220

#: Called with the number of files done and the total.
Notify = Callable[[int, int], None]


@dataclass(frozen=True)
class PackPlan:
    """What to pack.

    Attributes:
        results_root: The folder of the results.
        manifest: The manifest, wherever it is; packed at the top of the results.
        output_dir: Where the archive goes.
        name: Its name; None for one that follows from the content.
        rules: What is left out.
        chunk_size: Most bytes of a file; a larger archive is cut into parts. 0 means one file.
        receipt: What has arrived already: only the rest is packed. None to pack everything.
    """

    results_root: Path
    manifest: Path
    output_dir: Path
    name: Optional[str] = None
    rules: Rules = field(default_factory=Rules)
    chunk_size: int = 0
    receipt: Optional[Path] = None


@dataclass(frozen=True)
class PackReport:
    """What was packed.

    Attributes:
        archive: The archive, or its parts in their order; empty if nothing is new.
        size: Of all of them, in bytes.
        files: How many files are in it.
        results: How many of them are results.
        models: Of how many models.
        left_out: What was left out by rule.
        skipped: Files that could not be read in one piece, with the reason; they are not in the archive.
        unusable: Checkpoints whose result holds no numbers, left out of an incremental archive.
        has_manifest: Whether the manifest is in it.
    """

    archive: list[Path]
    size: int
    files: int
    results: int
    models: int
    left_out: LeftOut
    skipped: dict[str, str]
    unusable: list[str]
    has_manifest: bool


def pack(
    plan: PackPlan, prepare: Optional[Callable[[], object]] = None, notify: Optional[Notify] = None
) -> PackReport:
    """Pack results.

    Args:
        plan: What to pack.
        prepare: Makes the manifest, and leaves one that is right as it is, so that the same results make
            the same archive; None to take the one that is there.
        notify: Called with the number of files done and the total.

    Raises:
        UsageError: if a path of the plan does not exist.
        BundleError: if there is nothing to pack, or the archive cannot be written.
    """
    _check(plan)
    digests = Digests(ResultPaths(plan.results_root).pack_cache)
    receipt = read_receipt(plan.receipt) if plan.receipt else None
    packing = _Packing(digests, LeftOut(), plan.rules.max_file_size)
    try:
        if prepare is not None:
            prepare()
        archive, unusable = _choose_and_write(plan, receipt, packing, notify)
    except OSError as error:
        raise BundleError(
            f"{error.filename or plan.output_dir}: {error.strerror or error}; no archive was made"
        ) from error
    digests.save()
    return PackReport(
        archive=archive,
        size=sum(path.stat().st_size for path in archive),
        files=len(packing.members),
        results=packing.results,
        models=len(packing.models),
        left_out=packing.left_out,
        skipped=packing.skipped,
        unusable=sorted(unusable),
        has_manifest=MANIFEST in packing.members,
    )


def _choose_and_write(
    plan: PackPlan, receipt: Optional[Receipt], packing: _Packing, notify: Optional[Notify]
) -> tuple[list[Path], list[str]]:
    """Return the archive's files, none if nothing is new, and the checkpoints whose result is unusable."""
    unusable: list[str] = []
    if receipt is None:
        chosen = list_files(plan.results_root, plan.rules, packing.left_out)
    else:
        receipt = without_moved(receipt, plan.manifest)
        chosen, unusable = _choose(plan, receipt, packing.digests, packing.left_out)
    packing.skipped.update(packing.left_out.unreadable)
    if chosen:
        return _write(plan, receipt, _with_manifest(plan.manifest, chosen), packing, notify), unusable
    if receipt is None:
        why = "".join(f"; {shown(name)} {reason}" for name, reason in packing.skipped.items())
        raise BundleError(f"{plan.results_root}: holds no results; there is nothing to pack{why[:300]}")
    return [], unusable


def _check(plan: PackPlan) -> None:
    if not plan.results_root.is_dir():
        raise UsageError(f"{plan.results_root}: there is no such folder", setting="results_root")
    if not plan.output_dir.is_dir():
        raise UsageError(f"{plan.output_dir}: there is no such folder", setting="output_dir")
    if plan.chunk_size and plan.chunk_size < parts.SMALLEST_CHUNK:
        raise UsageError(
            f"{plan.chunk_size}: parts have at least 64K; 0 makes one file", setting="chunk_size"
        )
    if plan.rules.max_file_size > LARGEST_MEMBER:
        raise UsageError(f"{plan.rules.max_file_size}: at most 1G can be carried", setting="max_file_size")
    if plan.name is not None and (not plan.name or "/" in plan.name or plan.name.startswith(".")):
        raise UsageError(f"{shown(plan.name)}: give a file name without a folder", setting="name")
    if plan.name is not None and len(os.fsencode(plan.name)) > _LONGEST_NAME:
        raise UsageError(
            f"{shown(plan.name[:40])}…: is too long: at most {_LONGEST_NAME} bytes", setting="name"
        )


def _choose(
    plan: PackPlan, receipt: Receipt, digests: Digests, left_out: LeftOut
) -> tuple[list[Seen], list[str]]:
    """Return the files of checkpoints that a receipt does not confirm, and checkpoints without a result."""
    chosen: list[Seen] = []
    unusable = []
    for change in list_changes(plan.results_root, receipt, digests, left_out):
        if change.usable:
            chosen += list_files(plan.results_root, plan.rules, left_out, change.folder)
        else:
            unusable.append(change.folder.rstrip("/"))
    return chosen, unusable


def _with_manifest(manifest: Path, chosen: Iterable[Seen]) -> list[Seen]:
    files = sorted(chosen)
    if not manifest.is_file():
        return files
    return [Seen(MANIFEST, os.path.realpath(manifest)), *files]


@dataclass
class _Packing:
    """What happens to the files on their way into the archive."""

    digests: Digests
    left_out: LeftOut
    most: int
    members: dict[str, Member] = field(default_factory=dict)
    skipped: dict[str, str] = field(default_factory=dict)
    results: int = 0
    models: set[str] = field(default_factory=set)

    def read(self, files: list[Seen], notify: Optional[Notify]) -> Iterator[bytes]:
        """Yield the files as they are in an archive; those that cannot be read are noted, and left out."""
        for number, seen in enumerate(files, 1):
            try:
                read = read_whole(seen.path, self.most)
            except FileNotFoundError:
                continue  # deleted since it was listed
            except OSError as error:
                if error.errno == errno.EFBIG and not is_result(seen.name):
                    self.left_out.counts["size"] += 1
                    continue
                large = f"a result of more than {self.most} bytes: give a larger --max-file-size"
                reason = error.strerror or str(error)
                self.skipped[seen.name] = large if error.errno == errno.EFBIG else reason
                continue
            if read is None:
                self.skipped[seen.name] = "changed while it was read"
                continue
            name = seen.name
            self.members[name] = Member(len(read.data), read.mtime_ns, hashlib.sha256(read.data).hexdigest())
            if result := is_result(name):
                self.results += 1
                self.models.add(result[0])
                self.digests.of_read(*result, read)
            yield tar.member(os.fsencode(f"{TOP}/{name}"), read.data, read.mtime_ns // 10**9)
            if notify and (number % 256 == 0 or number == len(files)):
                notify(number, len(files))


def _write(
    plan: PackPlan,
    receipt: Optional[Receipt],
    files: list[Seen],
    packing: _Packing,
    notify: Optional[Notify],
) -> list[Path]:
    """Compress the files, then put the list of them before them: what is listed is what was read."""
    block_size = min(gzips.BLOCK_SIZE, plan.chunk_size // 2 or gzips.BLOCK_SIZE)
    with contextlib.ExitStack() as stack:
        content = stack.enter_context(TemporaryFile(dir=plan.output_dir))
        with gzips.BlockWriter(content, block_size) as blocks:
            for piece in packing.read(files, notify):
                blocks.write(piece)
            blocks.write(tar.END)
        if not packing.members.keys() - {MANIFEST}:
            why = "".join(f"; {shown(name)}: {reason}" for name, reason in packing.skipped.items())
            raise BundleError(f"{plan.results_root}: nothing in it can be packed{why[:300]}")
        index = Index(
            kind=FULL if receipt is None else INCREMENTAL,
            base=receipt.identity if receipt else None,
            members=packing.members,
            exclude_names=plan.rules.exclude_names,
            max_file_size=plan.rules.max_file_size,
            skipped=tuple(packing.skipped),
        )
        content_hash = hashlib.sha256(index.to_json()).hexdigest()
        history = next_history(plan.results_root, content_hash)
        index = replace(index, history=history)
        listing = index.to_json()
        beginning = stack.enter_context(TemporaryFile(dir=plan.output_dir))
        with gzips.BlockWriter(beginning, block_size) as head:
            head.write(tar.member(f"{TOP}/{INDEX_NAME}".encode(), listing, index.newest_ns // 10**9))
        name = plan.name or archive_name(index, content_hash)
        identity = hashlib.sha256(listing).hexdigest()
        compressed = parts.Compressed([beginning, content], head.lengths + blocks.lengths, identity)
        keep_history(plan.results_root, history)
        return parts.write_archive(plan.output_dir, _with_suffix(name), compressed, plan.chunk_size)


def _with_suffix(name: str) -> str:
    return name if name.endswith(".tar.gz") else name + ".tar.gz"
