"""Where a run id comes from: data set, codebook setting and split of a model, and their hash."""

from __future__ import annotations

import re
from pathlib import Path

from eval_sidecar.types import stable_hash

#: What comes after the data set's name in a model dir's name, in the order of trying.
_AFTER_DATASET = ("-sft-", "-qwen", "-llama", "-mistral", "-grpo", "-rl")


_CODEBOOK = re.compile(r"cb\d+(?:-\d+)*")


_LEVELS_AND_SIZE = re.compile(r"-4-(\d+)-")


def infer_dataset(model_dir: str) -> str:
    """Return the data set in a model dir's name: what is before the first marker, with ``_`` for ``-``."""
    for marker in _AFTER_DATASET:
        name, found, _ = model_dir.partition(marker)
        if found and name:
            return name.replace("-", "_")
    return model_dir.replace("-", "_")


def infer_cb_setting(model_dir: str) -> str:
    """Return the codebook setting in a model dir's name: ``cb256``, ``cb64-128``, …, or ``none``."""
    if match := _CODEBOOK.search(model_dir):
        return match[0]
    match = _LEVELS_AND_SIZE.search(model_dir)
    return f"cb{match[1]}" if match else "none"


def dataset_of_test_data(path: Path, default: str) -> str:
    """Return the data set in ``…/data/<dataset>/sft/test.json``; the default for a path of another form."""
    parts = path.parts
    return parts[-3] if len(parts) >= 3 and parts[-2] == "sft" else default


def run_key(model_dir: str, dataset: str, cb_setting: str, eval_split: str) -> str:
    """Return the 20 hex digits that name a model's configuration, on every machine, and never changing."""
    return stable_hash(
        {"model_dir": model_dir, "dataset": dataset, "cb_setting": cb_setting, "eval_split": eval_split}
    )[:20]
