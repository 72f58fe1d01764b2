"""Beam search over the items of an index, in the arithmetic of ``generate()``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from eval_sidecar.genrec.batches import plan_batches
from eval_sidecar.genrec.beginnings import group_by_beginning
from eval_sidecar.genrec.checks import SearchPlan
from eval_sidecar.genrec.errors import EvaluationError
from eval_sidecar.genrec.hf.forward import LanguageModel
from eval_sidecar.genrec.prompts import Prompts
from eval_sidecar.genrec.scoring import PromptTokens, score_continuations
from eval_sidecar.genrec.trie import Trie


@dataclass(frozen=True)
class SearchSettings:
    """Settings of the search.

    Attributes:
        num_beams: Beams, and length of the ranked lists.
        length_penalty: A finished sequence's score is its sum of log-probabilities divided by
            ``length ** length_penalty``, the length in generated tokens, end of sequence included.
        batch_size: Scales the memory of a batch; the results do not depend on it.
    """

    num_beams: int = 50
    length_penalty: float = 0.0
    batch_size: int = 8


@torch.inference_mode()
def rank(
    model: LanguageModel,
    plan: SearchPlan,
    prompts: Prompts,
    trie: Trie,
    settings: SearchSettings,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[list[int]]:
    """Return for each prompt the ``num_beams`` best items, best first, as places in the index.

    Args:
        model: A language model.
        plan: How it is searched.
        prompts: The prompts, in any order and of any lengths.
        trie: The items; at least ``num_beams`` of them.
        settings: Beams and penalties.
        advance: Called with the number of rows that each batch has finished.

    Raises:
        EvaluationError: If one row alone does not fit into the device's memory.
    """
    trie = trie.to(model.device)
    ranked: list[list[int]] = [[] for _ in prompts.ids]
    pending = _plan(model, plan, prompts, trie, settings)
    while pending:
        batch, shared = pending.pop()
        try:
            results = _search(model, plan, prompts.select(batch), shared, trie, settings)
        except torch.cuda.OutOfMemoryError:
            if len(batch) == 1:
                raise EvaluationError(
                    f"row {batch[0]} alone does not fit into the device's memory: use fewer beams "
                    f"(--num-beams {settings.num_beams}) or a larger device"
                ) from None
            half = len(batch) // 2
            pending += [(batch[half:], shared), (batch[:half], shared)]
            results = None
        if results is None:
            torch.cuda.empty_cache()  # only here is the failed batch's memory free
            continue
        for row, items in zip(batch, results):
            ranked[row] = items
        advance(len(batch))
    return ranked


def _plan(
    model: LanguageModel, plan: SearchPlan, prompts: Prompts, trie: Trie, settings: SearchSettings
) -> list[tuple[list[int], int]]:
    """Return batches of rows, each with the number of first tokens that its rows share."""
    every = list(range(len(prompts.ids)))
    groups = group_by_beginning(prompts.ids) if plan.sharing else [(every, 0)]
    batches = []
    for rows, shared in groups:
        for batch in plan_batches(
            [len(prompts.ids[row]) for row in rows],
            settings.num_beams,
            trie.depth,
            settings.batch_size,
            model.vocabulary,
            not plan.is_tree,
        ):
            batches.append(([rows[place] for place in batch], shared))
    return batches


@dataclass(frozen=True)
class _Beams:
    """The live beams of a batch; every tensor is (rows, beams) but ``history``.

    Attributes:
        scores: Sums of log-probabilities; -inf if a row has fewer live beams than others.
        nodes: Node of the trie at the present depth.
        history: Tokens that each beam has generated; (rows, beams, depth).
    """

    scores: torch.Tensor
    nodes: torch.Tensor
    history: torch.Tensor


class _Finished:
    """The best finished sequences of each row, kept as ``generate()`` keeps them."""

    def __init__(self, rows: int, settings: SearchSettings, device: torch.device) -> None:
        self._settings = settings
        self._scores = torch.full((rows, settings.num_beams), -torch.inf, device=device)
        self._items = torch.full((rows, settings.num_beams), -1, device=device)
        # A row is closed if its running beams cannot improve on its finished ones.
        self._open = torch.ones((rows, 1), dtype=torch.bool, device=device)

    def add(self, scores: torch.Tensor, items: torch.Tensor, ends: torch.Tensor, length: int) -> None:
        """Add the sequences that ended at a length, of all candidates sorted by falling score.

        Only an end among the first ``num_beams`` candidates counts; the others are there so that enough
        beams stay alive.
        """
        beams = self._settings.num_beams
        counted = ends[:, :beams] & self._open
        penalised = scores[:, :beams] / length**self._settings.length_penalty
        merged = torch.cat((self._scores, penalised.masked_fill(~counted, -torch.inf)), dim=1)
        self._scores, best = merged.topk(beams, dim=1)
        self._items = torch.cat((self._items, items[:, :beams]), dim=1).gather(1, best)

    def close(self, running: torch.Tensor, length: int) -> bool:
        """Close the rows that running beams cannot improve; return whether all are closed.

        The rule of ``generate()`` with ``early_stopping=False``: the best running score, penalised by the
        current length, against the worst finished one. With a length penalty that is a heuristic, which
        decides what is found, so it must be the same.
        """
        best = running[:, :1] / length**self._settings.length_penalty
        self._open &= best > self._scores[:, -1:]
        return not bool(self._open.any())

    def ranked(self) -> list[list[int]]:
        """Return each row's items, best first."""
        ranked: list[list[int]] = self._items.tolist()
        return ranked


def _search(
    model: LanguageModel,
    plan: SearchPlan,
    prompts: Prompts,
    shared: int,
    trie: Trie,
    settings: SearchSettings,
) -> list[list[int]]:
    """Return the ranked items of one batch, whose prompts share their first tokens."""
    live_beams = plan.start(prompts.ids, shared) if shared else plan.start(prompts.ids)
    logits = live_beams.root_logits()
    device, rows = logits.device, logits.shape[0]
    if model.is_encoder_decoder:  # generate() penalises what the decoder holds, not what the encoder reads
        prompts = Prompts((model.decoder_prefix(),) * rows, (False,) * rows, prompts.eos)
    held = PromptTokens(prompts, logits.shape[2], device)
    finished = _Finished(rows, settings, device)
    beams = _Beams(
        scores=torch.zeros((rows, 1), device=device),
        nodes=torch.zeros((rows, 1), dtype=torch.long, device=device),
        history=torch.zeros((rows, 1, 0), dtype=torch.long, device=device),
    )
    for depth, level in enumerate(trie.levels):
        tokens, heads, ends = level.tokens[beams.nodes], level.heads[beams.nodes], level.ends[beams.nodes]
        scores = score_continuations(logits, tokens, held, beams.history) + beams.scores[:, :, None]
        scores = scores.masked_fill(~level.allowed[beams.nodes], -torch.inf).flatten(1)
        # Twice the beams: even if half of the candidates end here, enough stay alive.
        best_scores, best = scores.topk(min(2 * settings.num_beams, scores.shape[1]), dim=1)
        best_heads, best_ends = heads.flatten(1).gather(1, best), ends.flatten(1).gather(1, best)
        finished.add(best_scores, best_heads, best_ends, depth + 1)
        if depth == trie.depth:
            break
        live = min(settings.num_beams, best.shape[1], trie.levels[depth + 1].tokens.shape[0])
        live_scores, chosen = best_scores.masked_fill(best_ends, -torch.inf).topk(live, dim=1)
        if finished.close(live_scores, depth + 1):
            break
        edges = best.gather(1, chosen)
        parents = edges // tokens.shape[2]
        new = tokens.flatten(1).gather(1, edges)
        inherited = beams.history.gather(1, parents[:, :, None].expand(rows, live, depth))
        # A dead beam may carry an item's place instead of a node: any node will do, its score is -inf.
        nodes = best_heads.gather(1, chosen).masked_fill(live_scores == -torch.inf, 0)
        beams = _Beams(live_scores, nodes, torch.cat((inherited, new[:, :, None]), dim=2))
        logits = live_beams.grow(new, parents)
    return finished.ranked()
