"""The beams of a batch as rows of their own: slower than a tree, and right for every model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from eval_sidecar.genrec.hf.forward import LanguageModel, select_rows

#: Tokens, of the prompt included, that are computed at a time if nothing is cached.
TOKENS_AT_A_TIME = 2048


class BeamRows:
    """Beams as ``generate()`` has them, each a row that holds its prompt and its own tokens.

    Prompts of a batch have one length, so nothing is padded and no mask is needed: recurrent layers would
    take the padding into their state, and some kinds of positions would count it. An encoder reads each
    prompt once.

    With a cache, a prompt is computed once and copied once a beam. Without one, each beam is computed from
    its first token at every level.
    """

    def __init__(self, model: LanguageModel, prompts: Sequence[Sequence[int]], caching: bool) -> None:
        """Take prompts of one length.

        Args:
            model: Any language model.
            prompts: Token ids of each row.
            caching: Whether its cache may be used; a check has shown that it gives the same logits.
        """
        self._model = model
        self._caching = caching
        self._cache: Any = None
        ids = torch.tensor([list(prompt) for prompt in prompts], device=model.device)
        self._encoded: torch.Tensor | None = None
        if model.is_encoder_decoder:
            self._encoded = model.encode(ids)
            ids = torch.tensor([model.decoder_prefix()], device=model.device).expand(len(prompts), -1)
        #: Tokens of each beam, the prompt's included, row after row; (rows * beams, tokens).
        self._tokens = ids
        self._rows = len(prompts)

    def root_logits(self) -> torch.Tensor:
        """Return the logits after each prompt; (rows, 1, vocabulary). To be called once, first."""
        return self._compute(self._tokens)

    def grow(self, tokens: torch.Tensor, parents: torch.Tensor) -> torch.Tensor:
        """Add one level of beams and return the logits after each; see :meth:`.tree.BeamTree.grow`."""
        before = self._tokens.shape[0] // self._rows
        starts = torch.arange(self._rows, device=parents.device)[:, None] * before
        chosen = (starts + parents).flatten()
        self._tokens = torch.cat((self._tokens[chosen], tokens.reshape(-1, 1)), dim=1)
        if not self._caching:
            return self._compute(self._tokens)
        self._cache = select_rows(self._cache, chosen)
        return self._compute(tokens.reshape(-1, 1))

    def continue_with(self, path: Sequence[int]) -> torch.Tensor:
        """Return the logits after each prompt and the same few tokens; (rows, 1, vocabulary)."""
        tokens = torch.tensor([list(path)], device=self._tokens.device).expand(self._rows, -1)
        return self._compute(torch.cat((self._tokens, tokens), dim=1))

    def _compute(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits after the last token of each beam; (rows, beams, vocabulary)."""
        beams = ids.shape[0] // self._rows
        if self._caching:
            logits, self._cache = self._model.forward(
                ids, cache=self._cache, caching=True, last=True, encoded=self._states(0, ids.shape[0], beams)
            )
            return logits.reshape(self._rows, beams, -1)
        width = ids.shape[1] + (0 if self._encoded is None else self._encoded.shape[1])
        step = max(1, TOKENS_AT_A_TIME // width)
        parts = []
        for start in range(0, ids.shape[0], step):
            part = ids[start : start + step]
            states = self._states(start, start + len(part), beams)
            parts.append(self._model.forward(part, last=True, encoded=states)[0])
        return torch.cat(parts).reshape(self._rows, beams, -1)

    def _states(self, start: int, end: int, beams: int) -> torch.Tensor | None:
        """Return the encoder's states of some beams: those of the prompt that each belongs to."""
        if self._encoded is None:
            return None
        return self._encoded[torch.arange(start, end, device=self._encoded.device) // beams]
