"""Reads what ``Trainer.save_metrics`` of transformers writes (seen: 5.24); LLaMA-Factory and TRL use it.

``eval_results.json`` has the numbers of one split, ``all_results.json`` those of all. Names stay as they are:
``eval_loss``, ``eval_wiki_loss``, ``predict_rouge-1``, ``perplexity``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from eval_sidecar.errors import ResultError
from eval_sidecar.readers.base import Collector, Measurements, read_object

_NAME = re.compile(r"(all|eval|predict|test)_results\.json")
_SPEED = re.compile(
    r".+_(runtime|(samples|steps|tokens)_per_second|model_preparation_time|jit_compilation_time)"
)
_PROGRESS = frozenset({"epoch", "step", "total_flos", "num_input_tokens_seen"})
_COUNT = re.compile(r"(.+)_samples")


class HfReader:
    """Reads ``all_results.json``, ``eval_results.json`` and the like."""

    name = "hf"

    def find(self, folder: Path, files: Sequence[Path]) -> list[Path]:
        """Return the files with these names."""
        return [path for path in files if _NAME.fullmatch(path.name)]

    def read(self, files: Sequence[Path]) -> Measurements:
        """Return the numbers of the evaluation; speed, progress and the training's own numbers are left out.

        Raises:
            ResultError: if a file cannot be read or has no finite number, or if they lie in several folders.
        """
        folders = sorted({str(path.parent) for path in files})
        if len(folders) > 1:
            raise ResultError(
                f"{folders[0]}: has the same kind of results as {folders[1]}, and names would clash;"
                " let the evaluation write into one folder"
            )
        collector = Collector()
        for path in files:
            content = read_object(path)
            counts = {match[1]: content[key] for key in content if (match := _COUNT.fullmatch(key))}
            for name, value in content.items():
                if reason := _why_not_a_metric(name):
                    collector.leave_out(name, reason)
                else:
                    of_all = next(iter(counts.values())) if len(counts) == 1 else None
                    collector.add(name, value, samples=counts.get(name.partition("_")[0], of_all))
        return collector.measurements(files)


def _why_not_a_metric(name: str) -> Optional[str]:
    if name.startswith("train_"):
        return "of the training"
    if _SPEED.fullmatch(name):
        return "speed"
    if name in _PROGRESS:
        return "progress"
    return "a number of samples" if _COUNT.fullmatch(name) else None
