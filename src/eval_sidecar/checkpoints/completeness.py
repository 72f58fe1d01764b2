"""Is a checkpoint completely written? A verdict with its evidence, from the files alone.

Hugging Face Trainer writes ``trainer_state.json`` last: it proves all other files, whatever the weights
are called. `eval_sidecar.checkpoints.weights` says whether files of tensors are whole.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.checkpoints import weights
from eval_sidecar.types import DENIED, Checkpoint, Completeness

#: A partial checkpoint that nothing has touched for this long has no writer any more, in seconds.
ABANDONED_SECONDS = 6 * 3600.0

#: How many quiet periods to wait if a file that this trainer writes is still missing: the
#: tokenizer after the weights, or the trainer_state.json that its other checkpoints have.
_UNFINISHED_PATIENCE = 10

#: There while Trainer saves a checkpoint before it is ended by a signal; it comes first and goes last.
INCOMPLETE_MARKER = "checkpoint-is-incomplete.txt"

#: What it proves.
INCOMPLETE = f"{INCOMPLETE_MARKER} is there: Trainer writes this while its job is ended, or did not finish"

_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.(safetensors|bin)")
#: Files of a tokenizer that must be JSON objects if they exist.
_TOKENIZER_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
#: A tokenizer's vocabulary; tokenizer_config.json, which says nothing about it, is written before it.
_VOCABULARY = re.compile(r"tokenizer\.json|.*\.model|.*\.tiktoken|(vocab|spiece|sentencepiece).*")
#: Files that Hugging Face Trainer writes between the weights and trainer_state.json.
_TRAINER_FILES = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth")
#: What accelerate's save_state writes last; it writes no trainer_state.json.
_ACCELERATE_STATE = re.compile(r"random_states_\d+\.pkl")
#: Files that either all checkpoints of a training have or none.
_COMPANION = re.compile(
    r"training_args\.bin|(adapter_|generation_)?config\.json|chat_template.*|.*processor_config\.json"
    r"|special_tokens_map\.json|tokenizer_config\.json|" + _VOCABULARY.pattern
)
#: What a link that leads nowhere must be for an evaluation to need it.
_NEEDED = re.compile(r".*\.(json|txt|py|jinja|model|tiktoken|vocab|bpe)")


@dataclass(frozen=True)
class Verdict:
    """How complete a checkpoint is, and how that is known.

    Attributes:
        name: How complete.
        evidence: One fact each, in the order in which they were found.
        ready_in: Of one that settles: seconds until it may be evaluated if nothing happens.
    """

    name: Completeness
    evidence: tuple[str, ...]
    ready_in: Optional[float] = field(default=None, compare=False)

    @property
    def ready(self) -> bool:
        """Whether the checkpoint may be evaluated."""
        return self.name.is_ready


@dataclass(frozen=True)
class _Finding:
    """One look at the files: what is proved, what speaks against, and what is merely open."""

    proved: list[str]
    broken: list[str]
    open: list[str]


def judge(
    checkpoint: Checkpoint,
    *,
    quiet_seconds: float,
    unchanged_seconds: float,
    trainer_state_expected: bool = False,
    usual: Optional[Collection[str]] = None,
) -> Verdict:
    """Judge one checkpoint.

    Args:
        checkpoint: The folder to look at.
        quiet_seconds: How long one that cannot be proved must have been left alone.
        unchanged_seconds: How long it has been left alone, as far as the caller can tell.
        trainer_state_expected: Whether this model's trainer is known to write ``trainer_state.json``,
            so that a checkpoint without one is probably not finished.
        usual: What `companions` says that all other checkpoints of this model have; None if there are none.
    """
    try:
        names = {path.name for path in checkpoint.path.iterdir()}
        finding = _inspect(checkpoint, names, usual)
    except OSError as error:
        if not checkpoint.path.exists():
            return Verdict(Completeness.GONE, ("the folder has been deleted",))
        return Verdict(Completeness.PARTIAL, (unreadable(checkpoint.path, error),))
    if not names:
        return Verdict(Completeness.PARTIAL, ("the folder is empty",))
    if finding.broken:
        if unchanged_seconds < ABANDONED_SECONDS:
            return Verdict(Completeness.PARTIAL, tuple(finding.broken))
        idle = f"nothing has changed in it for {unchanged_seconds / 3600:.0f} h"
        return Verdict(Completeness.ABANDONED, (*finding.broken, idle))
    if not finding.open:
        return Verdict(Completeness.COMPLETE, tuple(finding.proved))
    doubtful = awaits_more(checkpoint.path, names, trainer_state_expected)
    needed = quiet_seconds * (_UNFINISHED_PATIENCE if doubtful else 1)
    waited = f"unchanged for {unchanged_seconds:.0f} s of the {needed:.0f} s that it must be left alone"
    facts = (*finding.proved, *finding.open, waited)
    if unchanged_seconds >= needed:
        return Verdict(Completeness.QUIET, facts)
    return Verdict(Completeness.SETTLING, facts, needed - unchanged_seconds)


def awaits_more(folder: Path, names: Collection[str], trainer_state_expected: bool) -> bool:
    """Return whether something is known to be still to come: it is left alone for longer."""
    if "trainer_state.json" in names:
        return False
    return trainer_state_expected or _awaits_tokenizer(folder, names)


def companions(names: Collection[str]) -> Optional[frozenset[str]]:
    """Return what the other checkpoints of a model must have too, by the names in one that is finished.

    None if nothing shows that this one is.
    """
    if "trainer_state.json" not in names:
        return None
    return frozenset(name for name in names if _COMPANION.fullmatch(name))


def usual_names(others: Iterable[Path]) -> Optional[frozenset[str]]:
    """Return what all of these checkpoints have that are finished; None if none is."""
    found = []
    for folder in others:
        with contextlib.suppress(OSError):
            found.append(companions({path.name for path in folder.iterdir()}))
    finished = [names for names in found if names is not None]
    return frozenset.intersection(*finished) if finished else None


def unreadable(folder: Path, error: OSError) -> str:
    """Say what of a checkpoint cannot be read, why, and what to do."""
    path = Path(error.filename or folder)
    name = path.name if path == folder else os.path.relpath(path, folder)
    if error.errno not in (errno.EACCES, errno.EPERM):
        return f"{name} cannot be read ({error.strerror}): renamed or deleted meanwhile?"
    try:
        status = path.stat()
        kept = f" (mode {status.st_mode & 0o7777:04o}, user id {status.st_uid})"
    except OSError:
        kept = ""
    return (
        f"{DENIED}: {name}{kept} cannot be read by this user, {os.getuid()}; let its owner run `chmod -R"
        f" a+rX {folder}`, or run the sidecar as that user"
    )


def changed_at(folder: Path) -> float:
    """Return the newest modification time of a folder and everything below it, in seconds since the epoch."""
    newest = folder.stat().st_mtime
    for path in folder.rglob("*"):
        try:
            newest = max(newest, path.lstat().st_mtime)
        except FileNotFoundError:
            continue  # renamed or deleted under our eyes: the folder's own time shows that
    return newest


def fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and mtime (ns) of every file in a folder; they differ once it is written to."""
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            status = path.stat()
        except OSError:
            continue  # deleted meanwhile, or a link that leads nowhere
        if not path.is_dir():
            found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _inspect(checkpoint: Checkpoint, names: set[str], usual: Optional[Collection[str]]) -> _Finding:
    finding = _Finding([], [], [])
    if INCOMPLETE_MARKER in names:
        finding.broken.append(INCOMPLETE)
    lost = _lost_links(checkpoint.path, names)
    finding.broken.extend(lost.values())
    state = _inspect_trainer_state(checkpoint, names, finding)
    has_state = "trainer_state.json" in names
    _inspect_weights(checkpoint.path, names, lost, finding)
    _inspect_config(checkpoint.path, names - set(lost), finding, is_needed=not has_state)
    if has_state:
        missing = sorted(set(usual or ()) - names)
        if missing:
            finding.open.append(f"{missing[0]}, which other checkpoints have, is missing (being deleted?)")
        elif usual is None and "training_args.bin" not in names and "is_world_process_zero" in state:
            finding.open.append("training_args.bin, which Trainer writes, is missing (being deleted?)")
    return finding


def _lost_links(folder: Path, names: Collection[str]) -> dict[str, str]:
    """Return what an evaluation needs and is a link that leads nowhere, by its path in the checkpoint."""
    needed = {name for name in names if _NEEDED.fullmatch(name) and not weights.is_training_state(name)}
    found = {}
    for name in sorted(needed.union(weights.container_names(folder))):
        path = folder / name
        if not path.is_symlink():
            continue
        try:
            path.stat()
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EPERM):
                raise
            target = path.readlink()
            found[name] = f"{name} is a link to {target}, which cannot be found ({error.strerror})"
    return found


def _inspect_config(folder: Path, names: Collection[str], finding: _Finding, *, is_needed: bool) -> None:
    configs = [name for name in ("config.json", "adapter_config.json") if name in names]
    if not configs and is_needed:
        finding.open.append("no config.json and no adapter_config.json")
    for name in configs:
        if isinstance(_read_json(folder / name), dict):
            finding.proved.append(f"{name} is there")
        else:
            finding.broken.append(f"{name} is not a JSON object (still being written?)")
    for path in (folder / name for name in _TOKENIZER_JSON if name in names):
        status = path.stat()
        if not _is_json_object(path, status.st_size, status.st_mtime_ns):
            finding.broken.append(f"{path.name} is not a JSON object (still being written?)")


@functools.lru_cache(maxsize=256)
def _is_json_object(path: Path, _size: int, _mtime: int) -> bool:
    """Return whether a file holds a JSON object; each version of a file is parsed only once."""
    return isinstance(_read_json(path), dict)


def _inspect_weights(folder: Path, names: set[str], lost: Collection[str], finding: _Finding) -> None:
    expected = _expected_weights(folder, names, finding)
    finding.broken.extend(f"{name} is missing" for name in sorted(expected - names))
    by_folder: dict[Path, list[tuple[str, weights.Container]]] = {}
    for name in weights.container_names(folder):
        if name in lost:
            continue
        container = weights.inspect(folder / name)
        _note_container(folder / name, name, container, name in expected, finding)
        by_folder.setdefault(Path(name).parent, []).append((name, container))
    for inside, found in by_folder.items():
        is_sharded = any(name.endswith(".distcp") for name, _ in found)
        if is_sharded and not (folder / inside / ".metadata").exists():
            finding.broken.append(f"{inside / '.metadata'}, written last, is missing")
    hollow = [fact for found in by_folder.values() if (fact := weights.emptiness(found))]
    shards = weights.shards_folder(names)
    if shards is not None and (hollow or not expected):
        problem = weights.shards_problem(folder, shards, names)
        if problem:
            finding.broken.append(problem)
        else:
            finding.proved.append(f"the weights are DeepSpeed's shards in {shards}")
        return
    finding.broken.extend(hollow)
    if "latest" in names and (hollow or not (by_folder or expected)):
        named = (folder / "latest").read_text(encoding="utf-8", errors="replace").strip()
        finding.broken.append(f"latest names {named}, DeepSpeed's folder of the weights, which is missing")
    elif not by_folder and not expected:
        _inspect_other_weights(folder, names, finding)


def _inspect_other_weights(folder: Path, names: set[str], finding: _Finding) -> None:
    """Look for weights under a name that has them only if no other file does."""
    name = "pytorch_model_fsdp.bin"
    if name in names:
        _note_container(folder / name, name, weights.inspect(folder / name), True, finding)
    elif any(_ACCELERATE_STATE.fullmatch(name) for name in names):
        finding.broken.append("accelerate's random states are there, but no weights are")
    elif "trainer_state.json" not in names and names & {"config.json", "adapter_config.json"}:
        finding.broken.append("a config is there, but no weights are")
    else:
        finding.open.append("no weights under a known name")


def _note_container(
    path: Path, name: str, container: weights.Container, is_expected: bool, finding: _Finding
) -> None:
    if container.problem:
        finding.broken.append(f"{name} {container.problem}")
    elif container.is_known:
        finding.proved.append(f"{name} is whole ({path.stat().st_size:,} bytes)")
    elif is_expected:
        finding.open.append(f"{name} is in torch's old format, which does not tell its length")


def _expected_weights(folder: Path, names: set[str], finding: _Finding) -> set[str]:
    """Return every weight file that must be there, by the indices, by shard names, or as the single file."""
    expected: set[str] = set()
    indices = [name for name in _INDEX_FILES if name in names]
    for name in indices:
        index = _read_json(folder / name)
        weight_map = index.get("weight_map") if isinstance(index, dict) else None
        if (
            isinstance(weight_map, dict)
            and weight_map
            and all(isinstance(v, str) for v in weight_map.values())
        ):
            expected.update(weight_map.values())
            finding.proved.append(f"{name} lists {len(set(weight_map.values()))} files")
        else:
            finding.broken.append(f"{name} is not an index of shards (still being written?)")
    for name in sorted(names):
        match = _SHARD.fullmatch(name)
        if match and match[1] in ("model", "pytorch_model", "adapter_model") and not indices:
            expected.add(name)
            finding.broken.append(
                f"{name} is one of {int(match[3])} shards, but their index does not exist yet"
            )
    expected.update(name for name in names if weights.WEIGHTS_NAME.fullmatch(name) and "-of-" not in name)
    return expected


def _inspect_trainer_state(checkpoint: Checkpoint, names: set[str], finding: _Finding) -> Collection[str]:
    """Look at ``trainer_state.json``; return the names of what it says."""
    if "trainer_state.json" not in names:
        written = [name for name in _TRAINER_FILES if name in names]
        is_accelerate = any(_ACCELERATE_STATE.fullmatch(name) for name in names)
        if is_accelerate:
            finding.open.append("no trainer_state.json, which accelerate's save_state does not write")
        elif written:
            finding.broken.append(f"{written[0]} is there, but trainer_state.json, written last, is not")
        else:
            finding.open.append("no trainer_state.json")
        return ()
    state = _read_json(checkpoint.path / "trainer_state.json")
    if not isinstance(state, dict):
        finding.broken.append("trainer_state.json is not a JSON object (still being written?)")
        return ()
    if state.get("global_step") == checkpoint.step:
        finding.proved.append(f"trainer_state.json says step {checkpoint.step}")
    else:
        finding.open.append(
            f"trainer_state.json says step {state.get('global_step')}, the folder {checkpoint.step}"
        )
    return state.keys()


def _awaits_tokenizer(folder: Path, names: Collection[str]) -> bool:
    """Return whether this is from transformers and its vocabulary, which follows the weights, is missing."""
    if any(_VOCABULARY.fullmatch(name) for name in names):
        return False
    config = _read_json(folder / "config.json") if "config.json" in names else None
    return isinstance(config, dict) and "transformers_version" in config


def _read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        return None
