"""Finds out how a model can be searched, by comparing logits: behaviour decides, not the class."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from eval_sidecar.genrec.errors import EvaluationError, one_line
from eval_sidecar.genrec.hf.forward import LanguageModel, Names
from eval_sidecar.genrec.prompts import Prompts
from eval_sidecar.genrec.rows import BeamRows
from eval_sidecar.genrec.tree import TreePlanter

#: Lengths of the prompts of the first, cheap checks.
_LENGTHS = (9, 5)


class Beams(Protocol):
    """The beams of a batch, with the logits after each."""

    def root_logits(self) -> torch.Tensor:
        """Return the logits after each prompt; (rows, 1, vocabulary)."""

    def grow(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Add one level of beams and return the logits after each; (rows, beams, vocabulary)."""


@dataclass(frozen=True)
class SearchPlan:
    """How a model is searched.

    Attributes:
        start: Makes the beams of a batch from its prompts and, if they are shared, the number of first
            tokens that its prompts have in common.
        slow_because: Why the beams are not a tree; empty if they are.
        caching: Whether what was computed is kept from level to level.
        sharing: Whether a common beginning may be computed once for all rows.
    """

    start: Callable[..., Beams]
    slow_because: str = ""
    caching: bool = True
    sharing: bool = False

    @property
    def is_tree(self) -> bool:
        """Whether the beams of a row share its prompt; if not, a batch has prompts of one length."""
        return not self.slow_because

    def describe(self) -> str:
        """Return how the beams are searched, for a log line."""
        if self.is_tree:
            return "beams as a tree"
        return "beams one by one, " + ("each with a copy of the cache" if self.caching else "without a cache")


@torch.inference_mode()
def plan_search(model: LanguageModel, prompts: Prompts, depth: int) -> SearchPlan:
    """Choose the fastest search that gives the right logits.

    The tree is tried on a few tokens, and then on the longest prompt: a window or a chunk of attention that
    is shorter than that shows there. What fails is searched beam by beam, with the model's cache if that
    gives the same logits as no cache does, and else without.

    Args:
        model: The model; the names of its arguments are determined here.
        prompts: The prompts that will be searched.
        depth: Tokens of the longest item.

    Raises:
        EvaluationError: If the model does not predict the next token, or cannot be called at all.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old names that are tried
            if not model.is_encoder_decoder:
                model.keeps_state = not _is_repeatable(model)
                _check_causality(model)
            reason = _why_no_tree(model, prompts, depth)
            if not reason:
                planter = TreePlanter(model)
                return SearchPlan(planter.plant, sharing=_can_share(model, planter, prompts))
            caching = _can_cache(model, prompts)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, NotImplementedError) as error:
        raise EvaluationError(f"{model.name} cannot be run: {one_line(error)}") from error
    return SearchPlan(partial(BeamRows, model, caching=caching), reason, caching)


def attention_span(config: Any) -> int | None:  # noqa: ANN401
    """Return how many tokens back the model's narrowest layer sees, None if all see everything.

    Only from the sliding windows in the config: fast, and exact for known kinds. The check on the longest
    prompt finds the others.
    """
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    window = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if sliding and isinstance(window, int) and window > 0 else None


def _why_no_tree(model: LanguageModel, prompts: Prompts, depth: int) -> str:
    """Return why the beams cannot be a tree, or nothing; leaves the names that work in the model."""
    if model.is_encoder_decoder:
        return f"{model.name} is an encoder-decoder model"
    longest = _longest(prompts)
    span = attention_span(model.module.config)
    if span is not None and len(longest) + depth > span:
        return (
            f"the attention window of {span} tokens is shorter than the longest prompt and its item "
            f"({len(longest) + depth} tokens)"
        )
    vocabulary = min(model.vocabulary, 1000)
    few = [[number % vocabulary for number in range(1, length + 1)] for length in _LENGTHS]
    if not _find_names(model, few):
        return f"{model.name} does not respect the attention mask of a tree"
    if not _agrees(model, TreePlanter(model).plant, [list(longest), few[1]]):
        return f"{model.name} does not see the whole of a prompt of {len(longest)} tokens"
    return ""


def _can_share(model: LanguageModel, planter: TreePlanter, prompts: Prompts) -> bool:
    """Return whether trees that continue a common beginning give the right logits."""
    longest = list(_longest(prompts))
    shared = len(longest) // 2
    return _agrees(model, partial(planter.plant, shared=shared), [longest, longest[: shared + 2]])


def _longest(prompts: Prompts) -> tuple[int, ...]:
    return max(prompts.ids, key=lambda ids: len(ids))  # noqa: PLW0108  (mypy cannot follow len)


def _find_names(model: LanguageModel, prompts: list[list[int]]) -> bool:
    """Set the first names with which the tree's logits are right; return whether there are any."""
    for names in model.candidates():
        model.names = names
        if _agrees(model, TreePlanter(model).plant, prompts):
            return True
    model.names = Names()
    return False


def _can_cache(model: LanguageModel, prompts: Prompts) -> bool:
    """Return whether a copied and reordered cache gives the same logits as none; leaves its name."""
    vocabulary = min(model.vocabulary, 1000)
    few = [[(number + row) % vocabulary for number in range(1, _LENGTHS[0] + 1)] for row in (0, 1)]
    longest = list(_longest(prompts))
    tried = set()
    for names in model.candidates():
        candidate = replace(names, mask=model.names.mask, positions=model.names.positions)
        if candidate in tried:
            continue
        tried.add(candidate)
        model.names = candidate
        rows = partial(BeamRows, model, caching=True)
        if _agrees(model, rows, few) and _agrees(model, rows, [longest, longest]):
            return True
    return False


def _agrees(
    model: LanguageModel, start: Callable[[Sequence[Sequence[int]]], Beams], prompts: list[list[int]]
) -> bool:
    """Return whether the logits of beams are those of the same tokens in a row, with nothing cached.

    Three beams of two levels, which change places in between: mixing them up gives other logits.
    """
    tokens = torch.arange(5, 8, device=model.device).expand(2, 3) % model.vocabulary
    parents = torch.tensor([[2, 0, 0], [1, 0, 2]], device=model.device)
    try:
        beams = start(prompts)
        beams.root_logits()
        beams.grow(tokens, torch.zeros_like(parents))
        found = beams.grow(tokens.flip(1), parents)
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception:  # noqa: BLE001  (whatever the model raises: it cannot do this)
        return False
    for row, beam in ((0, 0), (1, 0), (1, 2)):
        path = [int(tokens[row, parents[row, beam]]), int(tokens[row, 2 - beam])]
        whole = BeamRows(model, [prompts[row]], caching=False)
        expected = whole.continue_with(path)[0, 0].float()
        if not _is_alike(found[row, beam].float(), expected, model.dtype):
            return False
    return True


def _is_repeatable(model: LanguageModel) -> bool:
    """Return whether a call without a cache is independent of the calls before it.

    RecurrentGemma keeps its state in its layers before transformers 5.1.
    """
    ids = torch.arange(1, 17, device=model.device).reshape(2, 8) % model.vocabulary
    try:
        together, _ = model.forward(ids)
        alone, _ = model.forward(ids[1:])
        model.forward(ids[:1, :5])
        again, _ = model.forward(ids)
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        return False
    pairs = ((together[1, -1], alone[0, -1]), (together[0, -1], again[0, -1]))
    return all(_is_alike(found.float(), expected.float(), model.dtype) for found, expected in pairs)


def _check_causality(model: LanguageModel) -> None:
    """Check that what follows a token does not change the logits after it.

    Raises:
        EvaluationError: If it does: the model fills gaps in a text and does not predict the next token.
    """
    ids = torch.arange(1, 13, device=model.device)[None] % model.vocabulary
    changed = torch.cat((ids[:, :6], ids[:, 6:].flip(1)), dim=1)
    alone, _ = model.forward(ids[:, :6])
    for longer in (ids, changed):
        logits, _ = model.forward(longer)
        if not _is_alike(logits[0, 5].float(), alone[0, 5].float(), model.dtype):
            raise EvaluationError(
                f"{model.name} cannot be evaluated: its scores for a token change with the tokens after "
                "it, so it has no causal language-model head"
            )


def _is_alike(found: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether logits differ by rounding only."""
    # Rounding is far below this share of the logits' spread, another context far above it.
    tolerance = 1e-3 if dtype == torch.float32 else 0.2
    spread = expected.std(unbiased=False) + 1e-6
    return bool((found - expected).abs().mean() <= tolerance * spread)
