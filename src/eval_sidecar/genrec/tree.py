"""The beams of a batch as one tree in the model's cache: the prompt once a row, then a block a level."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from eval_sidecar.genrec.hf.forward import LanguageModel, keep_all_cache


class BeamTree:
    """A cache that holds each row's prompt once and, for each level, one slot a beam.

    ``generate()`` copies a prompt once a beam and reorders the cache at every step. Here nothing is copied
    or reordered: a 4-D attention mask lets a beam see its prompt, its own ancestors' slots and itself.

    Prompts are padded on the right. Attention is causal, so no token of a prompt sees the padding behind
    it, and the prompts need no mask (which keeps the fastest attention kernels usable); later blocks have
    the padding masked. The last token of each prompt is fed as the first block, the tree's root, because
    the scores after it are needed and stand at another place in each row.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]]) -> None:
        """Run the prompts, all tokens but the last, through the model.

        Args:
            model: A causal language model that respects masks and positions (:mod:`.checks`).
            prompts: Token ids of each row, at least one a row.
        """
        self._model = model
        self._cache = keep_all_cache()  # slots are not positions, so no layer may drop any
        device = model.device
        lengths = [len(prompt) - 1 for prompt in prompts]
        width = max(lengths)
        ids = [list(prompt[:-1]) + [0] * (width - len(prompt) + 1) for prompt in prompts]
        self._position = torch.tensor(lengths, device=device)[:, None]
        #: Slots that each beam of the newest block sees; bool, (rows, beams, slots).
        self._visible = (torch.arange(width, device=device) < self._position)[:, None, :]
        self._roots = torch.tensor([[prompt[-1]] for prompt in prompts], device=device)
        if width:
            model.forward(torch.tensor(ids, device=device), cache=self._cache, caching=True, last=True)

    def root_logits(self) -> torch.Tensor:
        """Return the logits after each prompt; (rows, 1, vocabulary). To be called once, first."""
        return self.grow(self._roots, torch.zeros_like(self._roots))

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
        dtype = self._model.dtype
        mask = torch.zeros((rows, 1, beams, slots + beams), dtype=dtype, device=tokens.device)
        mask.masked_fill_(~self._visible[:, None], torch.finfo(dtype).min)
        logits, _ = self._model.forward(
            tokens,
            cache=self._cache,
            caching=True,
            positions=self._position.expand(rows, beams),
            mask=mask,
        )
        self._position = self._position + 1
        return logits
