"""Ranks the items for every prompt with one checkpoint, in this process and on one device."""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from eval_sidecar.genrec.checks import SearchPlan, plan_search
from eval_sidecar.genrec.errors import EvaluationError
from eval_sidecar.genrec.hf.forward import LanguageModel
from eval_sidecar.genrec.hf.model import load_model
from eval_sidecar.genrec.prompts import Prompts
from eval_sidecar.genrec.search import SearchSettings, rank
from eval_sidecar.genrec.trie import Trie, build_trie

log = logging.getLogger(__name__)


class LocalRanker:
    """Ranks on one device; keeps the trie between checkpoints with the same tokens of items."""

    def __init__(
        self,
        device: str,
        settings: SearchSettings,
        trust_remote_code: bool = False,
        announce: Callable[[str], None] = log.info,
    ) -> None:
        """Store what is the same for all checkpoints.

        Args:
            device: A device as torch names it (``cuda:0``, ``cpu``).
            settings: Settings of every search.
            trust_remote_code: Whether code that comes with a checkpoint may be run.
            announce: Called with one line before a slow search.
        """
        self._device = torch.device(device)
        self._settings = settings
        self._trust_remote_code = trust_remote_code
        self._announce = announce
        self._trie: tuple[Sequence[Sequence[int]], int, Trie] | None = None
        #: Seconds that loading the latest model took.
        self.load_seconds = 0.0
        #: How the latest model was searched, for a log line.
        self.search = ""

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
            EvaluationError: If the model cannot be loaded or cannot be searched.
        """
        started = time.monotonic()
        model = load_model(checkpoint, self._device, self._trust_remote_code)
        trie = self._build(items, prompts.eos)
        check_fits(checkpoint, model, prompts, items)
        plan = plan_search(model, prompts, trie.depth)
        self.search = plan.describe()
        if not plan.is_tree:
            title = f"{checkpoint.parent.name}/{checkpoint.name}"
            self._announce(f"{title}: {describe_slow_way(plan, prompts, trie.depth, self._settings)}")
        self.load_seconds = time.monotonic() - started
        ranked = rank(model, plan, prompts, trie, self._settings, advance)
        del model, plan
        release_memory()
        return ranked

    def close(self) -> None:
        """Do nothing: the work is done in this process."""

    def _build(self, items: Sequence[Sequence[int]], eos: int) -> Trie:
        if self._trie is None or self._trie[0] != items or self._trie[1] != eos:
            self._trie = (items, eos, build_trie(items, eos).to(self._device))
        return self._trie[2]


def release_memory() -> None:
    """Free the memory that a model has used: the training may need it before the next checkpoint."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def describe_slow_way(plan: SearchPlan, prompts: Prompts, depth: int, settings: SearchSettings) -> str:
    """Return one line that says that a search is slow, why, and by how much.

    The estimate compares computed tokens, or for copied caches their slots, with those of a tree.
    """
    beams = settings.num_beams
    tree = sum(len(ids) + beams * depth for ids in prompts.ids)
    if plan.caching:
        slots = sum(beams * (len(ids) + depth) for ids in prompts.ids)
        effort = f"a cache of {slots / tree:.0f} times the size"
    else:
        tokens = sum(
            sum((beams if level else 1) * (len(ids) + level) for level in range(depth + 1))
            for ids in prompts.ids
        )
        effort = f"{tokens / tree:.0f} times the tokens"
    return f"searched the slow way, {plan.describe()}, about {effort}: {plan.slow_because}"


def check_fits(
    checkpoint: Path, model: LanguageModel, prompts: Prompts, items: Sequence[Sequence[int]]
) -> None:
    """Check that the model knows every token id.

    Raises:
        EvaluationError: If it does not.
    """
    largest = max(prompts.eos, *map(max, prompts.ids), *map(max, items))
    if largest >= model.vocabulary:
        raise EvaluationError(
            f"{checkpoint}: its tokenizer produces token id {largest}, but its model has "
            f"{model.vocabulary}: the tokenizer and the weights do not belong together"
        )
