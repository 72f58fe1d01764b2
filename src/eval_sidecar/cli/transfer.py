"""``pack`` and ``unpack``: move results from a machine without internet to one with it."""

from __future__ import annotations

import contextlib
import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Optional

import click

from eval_sidecar.cli import show
from eval_sidecar.cli.flags import Parsed, flag, takes
from eval_sidecar.cli.manifest import ManifestFlags, prepare
from eval_sidecar.cli.terminal import say
from eval_sidecar.errors import UsageError
from eval_sidecar.ledger import lookalikes
from eval_sidecar.manifest.receipt import read_receipt
from eval_sidecar.paths import MANIFEST, MOVED_AWAY, RECEIPT, ResultPaths
from eval_sidecar.transfer import (
    PackPlan,
    PackReport,
    Rules,
    UnpackReport,
    find_bundle,
    pack,
    unpack,
)
from eval_sidecar.transfer.changes import is_result
from eval_sidecar.transfer.index import parse_size, shown
from eval_sidecar.transfer.scan import KEPT_MARK, UNWANTED

Notify = Callable[[int, int], None]
_QUIET_SECONDS = 2.0
_MANY = 5


_BYTES = Parsed("size", parse_size)


@dataclass(frozen=True)
class _PackFlags(ManifestFlags):
    output_dir: str = flag(".", "Where the archive goes.")
    name: Optional[str] = flag(help="[default: results_sync_<time of the newest result>_<hash>.tar.gz]")
    exclude_name: tuple[str, ...] = flag(UNWANTED, "Leave out files of this name; repeatable.", multiple=True)
    max_file_size: int = flag("10M", "Leave out larger files.", type=_BYTES)
    chunk_size: int = flag("90M", "Cut a larger archive into parts of this size; 0 never does.", type=_BYTES)
    incremental: bool = flag(False, "Only what the receipt does not confirm.", is_flag=True)
    receipt: Optional[str] = flag(help=f"Receipt of the uploads.  [default: RESULTS_ROOT/{RECEIPT}]")
    no_manifest: bool = flag(False, "Use the existing manifest instead of writing it.", is_flag=True)


@click.command("pack")
@takes(_PackFlags)
def pack_command(flags: _PackFlags) -> int:
    """Pack the results and their manifest into one archive, for a machine with internet."""
    plan = PackPlan(
        results_root=Path(flags.results_root),
        manifest=flags.manifest,
        output_dir=Path(flags.output_dir),
        name=flags.name,
        rules=Rules(tuple(flags.exclude_name), flags.max_file_size),
        chunk_size=flags.chunk_size,
        receipt=_receipt(flags) if flags.incremental else None,
    )
    with _progress("packing") as notify:
        report = pack(plan, None if flags.no_manifest else lambda: prepare(flags), notify)
    return _show_packed(plan, report)


def _receipt(flags: _PackFlags) -> Optional[Path]:
    path = Path(flags.receipt or ResultPaths(Path(flags.results_root)).receipt)
    if path.is_file():
        if not any(model.digests for model in read_receipt(path).models.values()):
            say(f"receipt      {path} confirms nothing (offline, nothing can be): all is packed")
        return path
    if flags.receipt:
        raise UsageError(f"--receipt {path}: there is no such file")
    say(f"no receipt   {path} does not exist, so everything is packed")
    return None


def _show_packed(plan: PackPlan, report: PackReport) -> int:
    if not report.archive:
        say(f"nothing new  the receipt {plan.receipt} confirms every result; no archive was made")
    for path in report.archive:
        say(f"archive      {path}")
    if report.archive:
        parts = f" in {len(report.archive)} parts; carry all of them" if len(report.archive) > 1 else ""
        say(f"size         {_readable(report.size)}{parts}")
        what = f"{_count(report.results, 'result')} of {_count(report.models, 'model')}"
        say(f"files        {report.files} ({what}{', manifest' if report.has_manifest else ''})")
        if not report.has_manifest:
            say(f"no manifest  {plan.manifest} does not exist; the archive has none")
    for line in _left_out(plan, report):
        say(f"left out     {line}")
    for name, reason in sorted(report.skipped.items()):
        say(f"NOT DONE     {shown(name)}: {reason}; it is not in the archive", fg="red", err=True)
    overlooked = [
        f"{shown(name)}: its metrics.json holds no numbers that can be uploaded; it is not in the archive"
        for name in report.unusable[:_MANY]
    ]
    if len(report.unusable) > _MANY:
        overlooked.append(f"{len(report.unusable) - _MANY} more such results")
    overlooked += lookalikes.everywhere(plan.results_root)
    show.problems(overlooked)
    return 1 if report.skipped or overlooked else 0


def _left_out(plan: PackPlan, report: PackReport) -> Iterator[str]:
    counts = report.left_out.counts
    words = {
        "name": f"named {', '.join(plan.rules.exclude_names)}",
        "size": f"over {_readable(plan.rules.max_file_size)}",
        "temporary": "temporary files",
        "bundle": "archives in the results root",
        "special": "neither files nor folders",
        "kept": "files from before an unpack",
    }
    for reason, meaning in words.items():
        if counts[reason]:
            yield f"{counts[reason]} {meaning}"
    if report.left_out.links:
        names = ", ".join(map(shown, sorted(report.left_out.links)[:_MANY]))
        yield f"{counts['link']} links, which are not followed: {names}"


@click.command("unpack")
@click.argument("archive", nargs=-1)
@click.option("--results-root", default="./results", show_default=True)
@click.option("--mirror", is_flag=True, help="Remove results that are not in the archive (a full one).")
@click.option(
    "--force", is_flag=True, help="Take the archive's files even if a newer archive was unpacked before."
)
@click.option("--moved", is_flag=True, help="Take results of a training that had its name elsewhere before.")
def unpack_command(archive: Sequence[str], results_root: str, mirror: bool, force: bool, moved: bool) -> int:
    """Unpack an archive of `pack` into the results; running it again changes nothing.

    ARCHIVE is a file, any of its parts, or the beginning of its name; default: the newest result*.tar.gz in
    ~/Downloads or here. If a newer archive was unpacked before, its files are not replaced. A file here that
    came from no archive is renamed, and the new name is printed.
    """
    found = find_bundle(archive, [Path.home() / "Downloads", Path()])
    older = f" (the newest of {found.passed_over + 1})" if found.passed_over else ""
    say(f"archive      {found.name}{older}")
    with _progress("unpacking") as notify:
        report = unpack(found, Path(results_root), mirror=mirror, force=force, moved=moved, notify=notify)
    _show_unpacked(report, results_root)
    return 0


def _show_unpacked(report: UnpackReport, results_root: str) -> None:
    changes = f"{len(report.new)} new, {len(report.changed)} changed, {report.same} there already"
    results = sum(is_result(name) is not None for name in report.new + report.changed)
    say(f"files        {report.files}: {changes} ({_count(results, 'result')} new or changed)")
    if report.index is None:
        say("unchecked    the archive is of the older layout, without checksums")
    if report.ignored:
        say(f"left out     {_count(report.ignored, 'hidden file')}")
    for name in report.kept[:_MANY]:
        say(f"kept         {shown(name)}: a newer archive was unpacked before (--force takes this one's)")
    if len(report.kept) > _MANY:
        say(f"kept         {len(report.kept) - _MANY} more of a newer archive")
    for name, kept in list(report.beside.items())[:_MANY]:
        say(f"kept beside  {shown(name)}: no archive had brought what was here; it is now {shown(kept)}")
    if len(report.beside) > _MANY:
        say(f"kept beside  {len(report.beside) - _MANY} more, as *{KEPT_MARK}*")
    if report.moved:
        say(f"moved        {_count(len(report.moved), 'file')} that no archive had brought, to {MOVED_AWAY}/")
    if report.removed:
        say(f"removed      {_count(len(report.removed), 'file')} that the archive does not have")
    root = shlex.quote(results_root)
    if report.has_manifest:
        manifest = shlex.quote(f"{results_root.rstrip('/')}/{MANIFEST}")
        say(f"next         {_upload()} --results-root {root} --manifest-path {manifest} --wandb-mode online")
    else:
        say(f"next         there is no manifest in {root}: make one with prepare-manifest, then upload")


def _upload() -> str:
    """Return the command of an upload, in the form in which this program was called."""
    script = Path(sys.argv[0]).name == "eval_wandb_sidecar.py"
    return "bash eval_wandb_sidecar.sh once" if script else "eval-sidecar upload --once"


@contextlib.contextmanager
def _progress(what: str) -> Iterator[Optional[Notify]]:
    """Show a bar at the bottom of a terminal if something takes long; show nothing in a log file."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    )
    task = bar.add_task(what, total=None)
    begun = time.monotonic()

    def notify(done: int, total: int) -> None:
        bar.update(task, completed=done, total=total or None)
        if time.monotonic() - begun > _QUIET_SECONDS and not bar.live.is_started:
            bar.start()

    try:
        yield notify
    finally:
        bar.stop()


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _readable(size: int) -> str:
    for unit in ("bytes", "KB", "MB"):
        if size < 1024:
            return f"{size} bytes" if unit == "bytes" else f"{size:.4g} {unit}"
        size /= 1024  # type: ignore[assignment]
    return f"{size:.4g} GB"
