"""Ranks the items for every prompt with one checkpoint, in this process and on one device."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from eval_sidecar.genrec.errors import EvaluationError
from eval_sidecar.genrec.model import load_model
from eval_sidecar.genrec.prompts import Prompts
from eval_sidecar.genrec.search import SearchSettings, rank
from eval_sidecar.genrec.tree import attention_span, check_tree_attention
from eval_sidecar.genrec.trie import Trie, build_trie


class LocalRanker:
    """Ranks on one device; keeps the trie between checkpoints that read items alike."""

    def __init__(self, device: str, settings: SearchSettings) -> None:
        """Take a device as torch names it (``cuda:0``, ``cpu``) and the settings of every search."""
        self._device = torch.device(device)
        self._settings = settings
        self._trie: tuple[Sequence[Sequence[int]], int, Trie] | None = None
        #: Seconds that loading the latest model took.
        self.load_seconds = 0.0

    def rank(
        self,
        checkpoint: Path,
        prompts: Prompts,
        items: Sequence[Sequence[int]],
        advance: Callable[[int], None],
    ) -> list[list[int]]:
        """Return for each prompt the places of its best items, best first.

        Args:
            checkpoint: The checkpoint's folder.
            prompts: The prompts.
            items: Token ids of each item.
            advance: Called with the number of rows that were finished since the last call.

        Raises:
            EvaluationError: The model cannot be loaded or cannot be searched.
        """
        started = time.monotonic()
        model = load_model(checkpoint, self._device)
        trie = self._build(items, prompts.eos)
        check_fits(checkpoint, model, prompts, items, trie.depth)
        check_tree_attention(model)
        self.load_seconds = time.monotonic() - started
        ranked = rank(model, prompts, trie, self._settings, advance)
        del model
        release_memory()
        return ranked

    def close(self) -> None:
        """Nothing to end: the work is done in this process."""

    def _build(self, items: Sequence[Sequence[int]], eos: int) -> Trie:
        if self._trie is None or self._trie[0] != items or self._trie[1] != eos:
            self._trie = (items, eos, build_trie(items, eos).to(self._device))
        return self._trie[2]


def release_memory() -> None:
    """Give back what a model has used: until the next checkpoint comes, the training may want it."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def check_fits(
    checkpoint: Path,
    model: object,
    prompts: Prompts,
    items: Sequence[Sequence[int]],
    depth: int,
) -> None:
    """Check that the model knows every token id and sees the whole of every prompt.

    Raises:
        EvaluationError: It does not.
    """
    config = model.config  # type: ignore[attr-defined]
    vocabulary = config.get_text_config().vocab_size
    largest = max(prompts.eos, *map(max, prompts.ids), *map(max, items))
    if largest >= vocabulary:
        raise EvaluationError(
            f"{checkpoint}: its tokenizer gives token id {largest}, its model knows {vocabulary}: the "
            "tokenizer and the weights do not belong together"
        )
    longest = max(len(ids) for ids in prompts.ids) + depth
    span = attention_span(config)
    if span is not None and longest > span:
        raise EvaluationError(
            f"{checkpoint}: its attention window of {span} tokens is shorter than the longest prompt and "
            f"its item ({longest} tokens), which this search cannot reproduce"
        )
