"""Names what looks like a result and is not taken, with what to do, so that nothing is ignored silently."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Optional

from eval_sidecar.paths import METRICS, PROVENANCE
from eval_sidecar.types import step_of

#: Names that macOS, Windows, NAS devices and file systems create in any folder.
_CLUTTER = frozenset({"__macosx", "@eadir", "lost+found", "thumbs.db", "desktop.ini", "$recycle.bin"})
#: Names that other evaluation programs give their results.
_OTHER_NAME = re.compile(
    r"(?:\w+_)?(?:results?|metrics?|scores?)(?:[_-][\w.:-]*)?{copy}\.jsonl?(?:\.(?:txt|gz|bz2|xz|zst|zip))?{copy}".replace(
        "{copy}", r"(?: ?\(\d+\)| copy(?: \d+)?| - Copy)?"
    ),
    re.IGNORECASE,
)
#: Written beside the numbers by evaluations that do write metrics.json.
_BESIDE = frozenset({"final_result.json", "rollout.json", PROVENANCE, METRICS})
#: Levels of folders to search below a model, and names to look at in one.
_DEEPEST, _MOST = 3, 10_000
_STEP = re.compile(r".*?(\d+)")
#: How many of one kind are named.
_NAMED = 5


def is_clutter(name: str) -> bool:
    """Return whether a name is hidden or created by a system."""
    return name.startswith(".") or name.lower() in _CLUTTER


def is_model(folder: Path) -> bool:
    """Return whether a folder in the results has a checkpoint's folder, with or without a result."""
    try:
        return not is_clutter(folder.name) and any(step_of(name) is not None for name in _names(folder))
    except OSError:
        return True  # opening it later reports what is wrong


def everywhere(root: Path) -> list[str]:
    """Return what looks like results in a results root and is not, of any model; one line each."""
    root = Path(os.path.abspath(root))
    return [*_at_the_top(root), *(line for folder in _model_folders(root) for line in in_model(folder))]


def outside(root: Path, listed: Collection[str], manifest: Path) -> list[str]:
    """Return what looks like results in a results root and belongs to no model of a manifest.

    Args:
        root: The results root.
        listed: The models that are listed.
        manifest: The manifest.

    Returns:
        One line each: what it is, why it is not taken, what to do.
    """
    others = [folder for folder in _model_folders(root) if folder.name not in listed]
    lines = [*_at_the_top(root), *(line for folder in others for line in in_model(folder))]
    names = [folder.name for folder in others if _has_result(folder)]
    if names:
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(
            f"{', '.join(names[:_NAMED])}{more}: not in {manifest}, so not uploaded: run prepare-manifest,"
            " or name what you want with --model-filter"
        )
    return lines


def _model_folders(root: Path) -> list[Path]:
    names = [name for name in _names(root) if not is_clutter(name) and step_of(name) is None]
    return [root / name for name in names if (root / name).is_dir() and not _leads_up(root / name)]


def _at_the_top(root: Path) -> Iterator[str]:
    for name in _names(root):
        if name == METRICS:
            advice = f"move it to {root}/<model>/checkpoint-<step>/"
            yield _line(root / name, "it is directly in the results folder", advice)
        elif step_of(name) is not None and (root / name / METRICS).exists():
            yield _line(root / name, "it is not in a model's folder", f"move it to {root}/<model>/")
        elif not is_clutter(name):
            yield from _lost(root / name)


def in_model(folder: Path, waiting: Optional[Iterable[int]] = None) -> list[str]:
    """Return what looks like a result among one model's results and is not; one line each.

    Args:
        folder: ``results/<model>``; it may be missing.
        waiting: Steps of checkpoints without a result; None to list the folder.
    """
    steps: list[str] = []
    others: list[str] = []
    for name in _names(folder):
        if not is_clutter(name):
            (others if step_of(name) is None else steps).append(name)
    if waiting is not None:
        steps = [f"checkpoint-{step}" for step in waiting]
    others = [name for name in others if not _leads_up(folder / name)]
    lines = [line for name in others for line in _elsewhere(folder / name)]
    named = [
        line
        for name in steps
        if not os.path.exists(f"{folder}/{name}/{METRICS}")  # noqa: PTH110 - of every checkpoint
        for line in _in_checkpoint(folder / name)
    ]
    return [*_some(lines, folder), *_some(named, folder)]


def _in_checkpoint(folder: Path) -> Iterator[str]:
    """Yield lines for what may be the numbers of a checkpoint without ``metrics.json``."""
    yield from _lost(folder)
    yield from _lost(folder / METRICS)
    for found in names_like_results(folder):
        yield _line(folder / found, "the file is not called metrics.json", "rename it")
    waiting = [(path, 1) for path in _folders(folder)]
    while waiting:
        below, depth = waiting.pop()
        for found in _names(below):
            if found == METRICS or found in names_like_results(below):
                yield _line(below / found, "it is in a subfolder", f"move it to {folder}/{METRICS}")
        waiting += [(path, depth + 1) for path in _folders(below) if depth < _DEEPEST]


def _folders(folder: Path) -> list[Path]:
    """Return the folders in a folder, without links, which may lead anywhere."""
    paths = [folder / name for name in _names(folder) if not is_clutter(name)]
    return [path for path in paths if path.is_dir() and not path.is_symlink()]


def _lost(path: Path) -> Iterator[str]:
    """Yield a line for a broken link."""
    if path.is_symlink() and not path.exists():
        target = os.readlink(path)  # noqa: PTH115 - as text
        yield _line(
            path, f"it is a link to {target}, which does not exist", "restore that, or remove the link"
        )


def _leads_up(path: Path) -> bool:
    """Return whether a link points to a folder that contains it."""
    return path.is_symlink() and Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(path))


def names_like_results(folder: Path) -> list[str]:
    """Names of files in a checkpoint's results that may be its numbers, but for ``metrics.json``."""
    return [name for name in _names(folder) if is_like_result(name) and name != METRICS]


def is_like_result(name: str) -> bool:
    """Return whether a file's name is ``metrics.json``, or another that evaluations give their numbers."""
    return name == METRICS or (_OTHER_NAME.fullmatch(name) is not None and name not in _BESIDE)


def like_checkpoints(model_dir: Path) -> list[str]:
    """Return broken links to checkpoints, or what a folder without any has instead; one line each."""
    names = [name for name in _names(model_dir) if not is_clutter(name)]
    folders = [name for name in names if (model_dir / name).is_dir()]
    lost = [
        f"{model_dir / name}: is a link to {os.readlink(model_dir / name)}, which does not exist:"  # noqa: PTH115
        " restore it, or remove the link"
        for name in names
        if step_of(name) is not None and (model_dir / name).is_symlink() and name not in folders
    ]
    if lost or any(step_of(name) is not None for name in folders):
        return _some(lost, model_dir)
    below = [
        name for name in folders if any(step_of(inner) is not None for inner in _names(model_dir / name))
    ]
    if below:
        shown = ", ".join(below[:_NAMED])
        return [
            f"{model_dir}: the checkpoint folders are one level deeper, in {shown}: give that as --sft-root"
        ]
    numbered = [
        name
        for name in folders
        if re.search(r"\d", name) and re.search("ckpt|check|step|epoch|iter", name, re.I)
    ]
    if numbered:
        shown = ", ".join(numbered[:_NAMED])
        return [
            f"{model_dir}: {shown}: not taken, because only a folder named checkpoint-<step> is a checkpoint"
        ]
    return []


def _elsewhere(path: Path) -> Iterator[str]:
    """Yield lines for the results in a model's folder whose name is not a checkpoint's."""
    if path.name == METRICS:
        yield _line(
            path, "it is not in a checkpoint's folder", f"move it to {path.parent}/checkpoint-<step>/"
        )
        return
    waiting = [(path, 1)]
    while waiting:
        folder, depth = waiting.pop()
        names = [name for name in _names(folder) if not is_clutter(name)]
        if _has_result(folder):
            why = "a model is a folder directly in the results"
            yield _line(folder, why, f"move it up to {path.parents[1]}/")
        elif METRICS in names:
            step = _STEP.fullmatch(folder.name)
            new = f"checkpoint-{int(step[1])}" if step else "checkpoint-<step>"
            yield _line(folder / METRICS, "its folder is not called checkpoint-<step>", f"rename it to {new}")
        elif depth < _DEEPEST:
            waiting += [(inner, depth + 1) for inner in _folders(folder)]


def _has_result(model: Path) -> bool:
    return any(step_of(name) is not None and (model / name / METRICS).exists() for name in _names(model))


def _line(path: Path, why: str, advice: str) -> str:
    return f"{path}: looks like a result and is not taken, because {why}: {advice}"


def _some(lines: list[str], folder: Path) -> list[str]:
    more = len(lines) - _NAMED
    return lines if more <= 0 else [*lines[:_NAMED], f"{folder}: {more} more like these"]


def _names(folder: Path) -> list[str]:
    """Return the names in a folder; none if it cannot be listed, which its user reports."""
    try:
        return sorted(os.listdir(folder))[:_MOST]  # noqa: PTH208 - names alone, of many folders
    except OSError:
        return []
