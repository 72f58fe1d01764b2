"""Is a checkpoint completely written? A verdict with its evidence, from the files alone.

What is looked at comes from the formats: a safetensors file says in its header how long it must be, an
index lists every shard, a torch ``.bin`` is a zip whose directory stands at its end, and Hugging Face
Trainer writes ``trainer_state.json`` last.
"""

from __future__ import annotations

import functools
import json
import re
import struct
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.types import Checkpoint

COMPLETE = "complete"  # proved
SETTLING = "settling"  # not proved, still inside the quiet period
QUIET = "quiet"  # not provable, quiet long enough
PARTIAL = "partial"  # proved incomplete
ABANDONED = "abandoned"  # partial, and untouched for long
GONE = "gone"  # rotated away before it could be evaluated

#: A partial checkpoint that nothing has touched for this long has no writer any more, in seconds.
ABANDONED_SECONDS = 6 * 3600.0

#: How many quiet periods to wait where something that this trainer writes has not come yet: the
#: tokenizer after the weights, or the trainer_state.json that its other checkpoints have.
_UNFINISHED_PATIENCE = 10

_WEIGHT_FILES = ("model.safetensors", "adapter_model.safetensors", "pytorch_model.bin", "adapter_model.bin")
_INDEX_FILES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)\.(safetensors|bin)")
#: Files of a tokenizer that must be JSON objects where they are there.
_TOKENIZER_JSON = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
#: A tokenizer's vocabulary; tokenizer_config.json, which says nothing about it, is written before it.
_VOCABULARY = re.compile(r"tokenizer\.json|.*\.model|.*\.tiktoken|(vocab|spiece|sentencepiece).*")
#: Files that Hugging Face Trainer writes between the weights and trainer_state.json.
_TRAINER_FILES = ("training_args.bin", "optimizer.pt", "optimizer.bin", "scheduler.pt", "rng_state.pth")
#: A safetensors header may not be longer than this, by its format's own rule.
_MAX_HEADER = 100_000_000


@dataclass(frozen=True)
class Verdict:
    """How complete a checkpoint is, and how that is known.

    Attributes:
        name: One of the names above.
        evidence: One fact each, in the order in which they were found.
    """

    name: str
    evidence: tuple[str, ...]

    @property
    def ready(self) -> bool:
        """Whether the checkpoint may be evaluated."""
        return self.name in (COMPLETE, QUIET)


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
) -> Verdict:
    """Judge one checkpoint.

    Args:
        checkpoint: The folder to look at.
        quiet_seconds: How long one that cannot be proved must have been left alone.
        unchanged_seconds: How long it has been left alone, as far as the caller can tell.
        trainer_state_expected: Whether this model's trainer is known to write ``trainer_state.json``,
            so that a checkpoint without one is probably not finished.
    """
    try:
        names = {path.name for path in checkpoint.path.iterdir()}
        finding = _inspect(checkpoint, names)
    except OSError as error:
        if not checkpoint.path.exists():
            return Verdict(GONE, ("the folder has been deleted",))
        name = Path(error.filename or checkpoint.path).name
        return Verdict(PARTIAL, (f"{name} cannot be read ({error.strerror}): renamed or deleted meanwhile?",))
    if not names:
        return Verdict(PARTIAL, ("the folder is empty",))
    if finding.broken:
        if unchanged_seconds < ABANDONED_SECONDS:
            return Verdict(PARTIAL, tuple(finding.broken))
        idle = f"nothing has changed in it for {unchanged_seconds / 3600:.0f} h"
        return Verdict(ABANDONED, (*finding.broken, idle))
    if not finding.open:
        return Verdict(COMPLETE, tuple(finding.proved))
    doubtful = "trainer_state.json" not in names and (
        trainer_state_expected or _awaits_tokenizer(checkpoint.path, names)
    )
    needed = quiet_seconds * (_UNFINISHED_PATIENCE if doubtful else 1)
    waited = f"unchanged for {unchanged_seconds:.0f} s of the {needed:.0f} s that it must be left alone"
    return Verdict(
        QUIET if unchanged_seconds >= needed else SETTLING, (*finding.proved, *finding.open, waited)
    )


def changed_at(folder: Path) -> float:
    """The newest modification time of a folder and everything below it, in seconds since the epoch."""
    newest = folder.stat().st_mtime
    for path in folder.rglob("*"):
        try:
            newest = max(newest, path.lstat().st_mtime)
        except FileNotFoundError:
            continue  # renamed or deleted under our eyes: the folder's own time shows that
    return newest


def fingerprint(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and mtime (ns) of every file in a folder: equal as long as nothing was written to it."""
    found = []
    for path in sorted(folder.rglob("*")):
        try:
            status = path.stat()
        except FileNotFoundError:
            continue
        if not path.is_dir():
            found.append((str(path.relative_to(folder)), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _inspect(checkpoint: Checkpoint, names: set[str]) -> _Finding:
    finding = _Finding([], [], [])
    _inspect_weights(checkpoint.path, names, finding)
    _inspect_config(checkpoint.path, names, finding)
    _inspect_trainer_state(checkpoint, names, finding)
    return finding


def _inspect_config(folder: Path, names: set[str], finding: _Finding) -> None:
    configs = [name for name in ("config.json", "adapter_config.json") if name in names]
    if not configs:
        finding.open.append("no config.json and no adapter_config.json")
    for name in configs:
        value = _read_json(folder / name)
        if isinstance(value, dict):
            finding.proved.append(f"{name} is there")
        else:
            finding.broken.append(f"{name} is no JSON object (still being written?)")
    for path in (folder / name for name in _TOKENIZER_JSON if name in names):
        status = path.stat()
        if not _is_json_object(path, status.st_size, status.st_mtime_ns):
            finding.broken.append(f"{path.name} is no JSON object (still being written?)")


@functools.lru_cache(maxsize=256)
def _is_json_object(path: Path, _size: int, _mtime: int) -> bool:
    """Whether a file holds a JSON object; a tokenizer's megabytes are parsed once a version, not a look."""
    return isinstance(_read_json(path), dict)


def _inspect_weights(folder: Path, names: set[str], finding: _Finding) -> None:
    expected = _expected_weights(folder, names, finding)
    found = sorted(name for name in names if name.endswith((".safetensors", ".bin")))
    for name in sorted(expected - names):
        finding.broken.append(f"{name} is missing")
    for name in found:
        if name in expected or name.endswith(".safetensors"):
            _inspect_weight_file(folder / name, finding)
    if not expected:
        configured = "config.json" in names or "adapter_config.json" in names
        if configured and "trainer_state.json" not in names:
            finding.broken.append("a config is there, but no weights are")
        else:
            finding.open.append("no weights under a known name")


def _expected_weights(folder: Path, names: set[str], finding: _Finding) -> set[str]:
    """Every weight file that must be there, by the indices, by shard names, or as the single file."""
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
            finding.broken.append(f"{name} is no index of shards (still being written?)")
    for name in sorted(names):
        match = _SHARD.fullmatch(name)
        if match and match[1] in ("model", "pytorch_model", "adapter_model") and not indices:
            expected.add(name)
            finding.broken.append(
                f"{name} is one of {int(match[3])} shards, but their index is not there yet"
            )
    expected.update(name for name in _WEIGHT_FILES if name in names)
    return expected


def _inspect_weight_file(path: Path, finding: _Finding) -> None:
    if path.suffix == ".safetensors":
        problem = _safetensors_problem(path)
    else:
        problem = _torch_file_problem(path)
        if problem is None and not zipfile.is_zipfile(path):
            finding.open.append(f"{path.name} is in torch's old format, which does not tell its length")
            return
    if problem:
        finding.broken.append(f"{path.name} {problem}")
    else:
        finding.proved.append(f"{path.name} is whole ({path.stat().st_size:,} bytes)")


def _safetensors_problem(path: Path) -> Optional[str]:
    """What is wrong with a safetensors file, or None.

    The format (github.com/huggingface/safetensors, "Format"): 8 bytes, the header's length N as a
    little-endian integer; N bytes of JSON, each tensor with its begin and end offsets; the tensors.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if len(start) < 8:
            return f"is {size} bytes long, shorter than any header (still being written?)"
        (length,) = struct.unpack("<Q", start)
        if length > _MAX_HEADER:
            return "does not begin with a safetensors header"
        if size < 8 + length:
            return f"ends at byte {size} inside its header (still being written?)"
        header = _parse_json(file.read(length))
    if not isinstance(header, dict):
        return "has an unreadable header (still being written?)"
    try:
        ends = [tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__"]
        expected = 8 + length + max(ends, default=0)
    except (KeyError, IndexError, TypeError):
        return "has a header without offsets"
    if size != expected:
        return f"ends at byte {size}, its header says {expected} (still being written?)"
    return None


def _torch_file_problem(path: Path) -> Optional[str]:
    """What is wrong with a torch file, or None; the old format, which is no zip, cannot be judged."""
    with path.open("rb") as file:
        start = file.read(2)
    if start == b"PK":
        try:
            zipfile.ZipFile(path).close()
        except zipfile.BadZipFile:
            return "is a zip without its directory (still being written?)"
    elif len(start) < 2:
        return f"is {len(start)} bytes long (still being written?)"
    return None


def _inspect_trainer_state(checkpoint: Checkpoint, names: set[str], finding: _Finding) -> None:
    if "trainer_state.json" not in names:
        trainer = [name for name in _TRAINER_FILES if name in names]
        if trainer:
            finding.broken.append(f"{trainer[0]} is there, but trainer_state.json, written last, is not")
        else:
            finding.open.append("no trainer_state.json")
        return
    state = _read_json(checkpoint.path / "trainer_state.json")
    if not isinstance(state, dict):
        finding.broken.append("trainer_state.json is no JSON object (still being written?)")
    elif state.get("global_step") == checkpoint.step:
        finding.proved.append(f"trainer_state.json says step {checkpoint.step}")
    else:
        finding.open.append(
            f"trainer_state.json says step {state.get('global_step')}, the folder {checkpoint.step}"
        )


def _awaits_tokenizer(folder: Path, names: set[str]) -> bool:
    """Whether transformers wrote this and has not come to the vocabulary, which follows the weights."""
    if any(_VOCABULARY.fullmatch(name) for name in names):
        return False
    config = _read_json(folder / "config.json") if "config.json" in names else None
    return isinstance(config, dict) and "transformers_version" in config


def _read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    return _parse_json(path.read_bytes())


def _parse_json(content: bytes) -> Any:  # noqa: ANN401 - whatever the bytes hold
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None
