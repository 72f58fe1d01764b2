"""The beams of a batch as one tree in the model's cache: the prompt once a row, then a block a level."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from eval_sidecar.genrec.hf.forward import LanguageModel, keep_all_cache, select_rows


class TreePlanter:
    """Starts the trees of one batch after the other; a beginning that they share is computed once."""

    def __init__(self, model: LanguageModel) -> None:
        """Take a causal language model that respects masks and positions (:mod:`.checks`)."""
        self._model = model
        self._beginning: tuple[int, ...] = ()
        self._cache: Any = None

    def plant(self, prompts: Sequence[Sequence[int]], shared: int = 0) -> BeamTree:
        """Return the trees of a batch.

        Args:
            prompts: Token ids of each row, at least one per row.
            shared: How many first tokens all rows have in common; less than the shortest prompt has.
        """
        if not shared:
            return BeamTree(self._model, prompts, keep_all_cache(), 0)
        beginning = tuple(prompts[0][:shared])
        if beginning != self._beginning:
            self._beginning, self._cache = beginning, keep_all_cache()
            ids = torch.tensor([beginning], device=self._model.device)
            self._model.forward(ids, cache=self._cache, caching=True, last=True)
        rows = torch.zeros(len(prompts), dtype=torch.long, device=self._model.device)
        return BeamTree(self._model, prompts, select_rows(copy.deepcopy(self._cache), rows), shared)


class BeamTree:
    """A cache that holds each row's prompt once and, for each level, one slot a beam.

    ``generate()`` copies a prompt once a beam and reorders the cache at every step. Here nothing is copied
    or reordered: a 4-D attention mask lets a beam see its prompt, its own ancestors' slots and itself.

    Prompts are padded on the right. Attention is causal, so no token of a prompt sees the padding behind
    it, and whole prompts need no mask (which keeps the fastest attention kernels usable); later blocks have
    the padding masked. The last token of each prompt is fed as the first block, the tree's root, because
    the scores after it are needed and stand at another place in each row.
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[Sequence[int]],
        cache: Any,  # noqa: ANN401
        cached: int,
    ) -> None:
        """Run the prompts, all tokens but the last, through the model.

        Args:
            model: A causal language model that respects masks and positions (:mod:`.checks`).
            prompts: Token ids of each row, at least one per row.
            cache: A cache of which no layer drops slots, as slots are not positions.
            cached: How many first tokens of each prompt it holds.
        """
        self._model = model
        self._cache = cache
        device = model.device
        lengths = [len(prompt) - 1 for prompt in prompts]
        width = max(lengths)
        ids = [list(prompt[cached:-1]) + [0] * (width - len(prompt) + 1) for prompt in prompts]
        self._position = torch.tensor(lengths, device=device)[:, None]
        #: Slots that each beam of the newest block sees; bool, (rows, beams, slots).
        self._visible = (torch.arange(width, device=device) < self._position)[:, None, :]
        self._roots = torch.tensor([[prompt[-1]] for prompt in prompts], device=device)
        if width > cached:
            self._read(torch.tensor(ids, device=device), cached)

    def root_logits(self) -> torch.Tensor:
        """Return the logits after each prompt; (rows, 1, vocabulary). To be called once, first."""
        return self.grow(self._roots, torch.zeros_like(self._roots))

    def _read(self, ids: torch.Tensor, cached: int) -> None:
        """Run tokens through the model that follow ``cached`` others in each row."""
        if not cached:
            self._model.forward(ids, cache=self._cache, caching=True, last=True)
            return
        rows, count = ids.shape
        sees = torch.ones((count, cached + count), dtype=torch.bool, device=ids.device).tril(cached)
        self._model.forward(
            ids,
            cache=self._cache,
            caching=True,
            last=True,
            positions=torch.arange(cached, cached + count, device=ids.device).expand(rows, count),
            mask=self._additive(sees.expand(rows, 1, -1, -1)),
        )

    def _additive(self, visible: torch.Tensor) -> torch.Tensor:
        """Return a mask that is added to scores of attention."""
        dtype = self._model.dtype
        mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device)
        return mask.masked_fill_(~visible, torch.finfo(dtype).min)

    def grow(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Add one level of beams and return the logits after each.

        Args:
            tokens: Token id of each new beam; (rows, beams).
            parents: For each new beam the beam of the level before that it continues; (rows, beams).

        Returns:
            Logits in the model's own precision; (rows, beams, vocabulary).
        """
        rows, beams = tokens.shape
        slots = self._visible.shape[2]
        inherited = self._visible.gather(1, parents[:, :, None].expand(rows, beams, slots))
        own = torch.eye(beams, dtype=torch.bool, device=tokens.device).expand(rows, beams, beams)
        self._visible = torch.cat((inherited, own), dim=2)
        logits, _ = self._model.forward(
            tokens,
            cache=self._cache,
            caching=True,
            positions=self._position.expand(rows, beams),
            mask=self._additive(self._visible[:, None]),
        )
        self._position = self._position + 1
        return logits
