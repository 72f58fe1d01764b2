"""Evaluates checkpoints one after the other: prompts, ranking, metrics, files."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from eval_sidecar.genrec.data import TestSet, find_targets
from eval_sidecar.genrec.errors import EvaluationError
from eval_sidecar.genrec.metrics import compute_metrics
from eval_sidecar.genrec.output import write_results
from eval_sidecar.genrec.progress import show_progress
from eval_sidecar.genrec.prompts import (
    Prompts,
    encode_items,
    encode_prompts,
    load_tokenizer,
    tells_time,
    tokenizer_digest,
)

log = logging.getLogger(__name__)


class Ranker(Protocol):
    """Ranks items for prompts, in this process or in several."""

    load_seconds: float
    search: str

    def rank(
        self,
        checkpoint: Path,
        prompts: Prompts,
        items: Sequence[Sequence[int]],
        advance: Callable[[int], None],
    ) -> list[list[int]]:
        """Return for each prompt the places of its best items, best first."""

    def close(self) -> None:
        """Release processes and memory."""


class Evaluator:
    """Evaluates checkpoints on one test set; keeps token ids between checkpoints with one tokenizer."""

    def __init__(
        self,
        test_set: TestSet,
        ranker: Ranker,
        output_root: Path,
        num_beams: int,
        max_new_tokens: int,
        trust_remote_code: bool = False,
    ) -> None:
        """Store what is the same for all checkpoints.

        Args:
            test_set: Rows and items.
            ranker: What ranks the items.
            output_root: Where the results are written.
            num_beams: Length of the ranked lists.
            max_new_tokens: Tokens that an item may have, its end included.
            trust_remote_code: Whether code that comes with a checkpoint's tokenizer may be run.
        """
        self._test_set = test_set
        self._ranker = ranker
        self._output_root = output_root
        self._num_beams = num_beams
        self._max_new_tokens = max_new_tokens
        self._trust_remote_code = trust_remote_code
        self._encoded: tuple[str | None, Prompts, list[int], list[list[int]]] | None = None

    def evaluate(self, checkpoint: Path) -> dict[str, float]:
        """Evaluate one checkpoint, write its results, and return its metrics.

        Raises:
            EvaluationError: If it cannot be evaluated.
        """
        title = f"{checkpoint.parent.name}/{checkpoint.name}"
        started = time.monotonic()
        rows, index = self._test_set.rows, self._test_set.index
        prompts, places, items = self._encode(checkpoint)
        targets = find_targets(rows, index)
        outside = sum(target is None for target in targets)
        if outside:
            log.info(
                "%s: %d of %d targets are not in the index and count as misses", title, outside, len(rows)
            )
        if len(prompts.ids) < len(rows):
            log.info(
                "%s: %d rows have %d different prompts: each is searched once",
                title,
                len(rows),
                len(prompts.ids),
            )
        ready = time.monotonic()
        with show_progress(title, len(prompts.ids)) as advance:
            found = self._ranker.rank(checkpoint, prompts, items, advance)
        ranked = [found[place] for place in places]
        loading = self._ranker.load_seconds
        searching = max(time.monotonic() - ready - loading, 1e-9)
        metrics = compute_metrics(ranked, targets, self._num_beams)
        predictions = [[index.items[place] for place in row] for row in ranked]
        folder = write_results(self._output_root, checkpoint, rows, predictions, metrics)
        log.info("%s: prompts ready in %.1f s, model in %.1f s", title, ready - started, loading)
        log.info(
            "%s: %d rows in %.1f s, %.1f a second, %s",
            title,
            len(rows),
            searching,
            len(rows) / searching,
            self._ranker.search,
        )
        log.info("%s: results in %s", title, folder)
        return metrics

    def _encode(self, checkpoint: Path) -> tuple[Prompts, list[int], list[list[int]]]:
        """Return the distinct prompts, each row's place among them, and the items, as token ids."""
        if not checkpoint.is_dir():
            raise EvaluationError(f"{checkpoint}: no such checkpoint folder")
        digest = tokenizer_digest(checkpoint)
        if self._encoded is None or digest is None or self._encoded[0] != digest:
            rows, index = self._test_set.rows, self._test_set.index
            tokenizer = load_tokenizer(checkpoint, index, rows, self._trust_remote_code)
            items = encode_items(tokenizer, index)
            prompts, places = encode_prompts(tokenizer, rows).merge_equal()
            # Prompts that hold today's date serve one checkpoint only.
            self._encoded = (None if tells_time(tokenizer) else digest, prompts, places, items)
        _, prompts, places, items = self._encoded
        longest = max(len(ids) for ids in items) + 1
        if longest > self._max_new_tokens:
            raise EvaluationError(
                f"--max-new-tokens {self._max_new_tokens} is too few: the longest item has {longest} tokens, "
                "its end included"
            )
        return prompts, places, items
