"""The beams of a batch as one tree in the model's cache: the prompt once a row, then a block a level."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache

from eval_sidecar.genrec.errors import EvaluationError


class BeamTree:
    """A cache that holds each row's prompt once and, for each level, one slot a beam.

    ``generate()`` copies a prompt once a beam and reorders the cache at every step. Here nothing is copied
    or reordered: a 4-D attention mask lets a beam see its prompt, its own ancestors' slots and itself.

    Prompts are padded on the right. Attention is causal, so no token of a prompt sees the padding behind
    it, and the prompts need no mask (which keeps the fastest attention kernels usable); later blocks have
    the padding masked. The last token of each prompt is fed as the first block, the tree's root, because
    the scores after it are needed and stand at another place in each row.
    """

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]]) -> None:  # noqa: ANN401
        """Run the prompts, all tokens but the last, through the model.

        Args:
            model: A causal language model of transformers, in evaluation mode.
            prompts: Token ids of each row, at least one a row.
        """
        self._model = model
        # Without a config every layer keeps all slots, sliding windows included: slots are not positions.
        self._cache = DynamicCache()
        device = next(model.parameters()).device
        lengths = [len(prompt) - 1 for prompt in prompts]
        width = max(lengths)
        ids = [list(prompt[:-1]) + [0] * (width - len(prompt) + 1) for prompt in prompts]
        self._position = torch.tensor(lengths, device=device)[:, None]
        #: Slots that each beam of the newest block sees; bool, (rows, beams, slots).
        self._visible = (torch.arange(width, device=device) < self._position)[:, None, :]
        self._roots = torch.tensor([[prompt[-1]] for prompt in prompts], device=device)
        if width:
            self._forward(torch.tensor(ids, device=device), only_last=True)

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
        logits = self._forward(tokens, position_ids=self._position.expand(rows, beams), attention_mask=mask)
        self._position = self._position + 1
        return logits

    def _forward(self, ids: torch.Tensor, only_last: bool = False, **inputs: torch.Tensor) -> torch.Tensor:
        keep = {"logits_to_keep": 1} if only_last else {}  # nobody reads the logits inside a prompt
        output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, **keep, **inputs)
        logits: torch.Tensor = output.logits
        return logits


def attention_span(config: Any) -> int | None:  # noqa: ANN401
    """Return how many tokens back the model's narrowest layer sees, None where all see everything.

    Raises:
        EvaluationError: Some layer is neither full nor sliding-window attention.
    """
    config = config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ())
    other = sorted(kinds - {"full_attention", "sliding_attention"})
    if other or getattr(config, "is_encoder_decoder", False):
        found = ", ".join(other) or "an encoder and a decoder"
        raise EvaluationError(
            f"model type {config.model_type!r} cannot be evaluated: it has {found}, and the search needs a "
            "decoder with full or sliding-window attention in every layer"
        )
    window = getattr(config, "sliding_window", None)
    sliding = "sliding_attention" in kinds if kinds else getattr(config, "use_sliding_window", True)
    return window if sliding and window else None


@torch.inference_mode()
def check_tree_attention(model: Any) -> None:  # noqa: ANN401
    """Prove on a few tokens that the model respects the tree's mask and positions.

    An architecture that ignores either (recurrent layers, ALiBi, remote code) would give wrong scores
    without any sign of it. The logits of one beam in the tree must be those of the same tokens in a row.

    Raises:
        EvaluationError: They are not.
    """
    name = type(model).__name__
    parameters = inspect.signature(model.forward).parameters
    missing = {"attention_mask", "position_ids", "past_key_values", "logits_to_keep"} - set(parameters)
    if missing:
        raise EvaluationError(f"{name} cannot be evaluated: it takes no {', '.join(sorted(missing))}")
    device = next(model.parameters()).device
    ids = torch.arange(1, 20, device=device) % model.config.get_text_config().vocab_size
    long, short = ids[:9], ids[9:14]
    tokens = ids[14:17].expand(2, 3)
    parents = torch.tensor([[2, 0, 0], [1, 0, 2]], device=device)
    try:
        tree = BeamTree(model, [long.tolist(), short.tolist()])
        tree.root_logits()
        tree.grow(tokens, torch.zeros_like(parents))
        in_tree = tree.grow(tokens.flip(1), parents)[1, 0].float()
        in_a_row = torch.cat((short, tokens[1, 1:2], tokens[1, 2:3]))
        expected = model(input_ids=in_a_row[None]).logits[0, -1].float()
    except (RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise EvaluationError(f"{name} cannot be evaluated: it refuses a tree mask ({error})") from error
    # Rounding is far below this share of the logits' spread, another context far above it.
    tolerance = 1e-3 if model.dtype == torch.float32 else 0.2
    spread = expected.std(unbiased=False) + 1e-6
    if not bool((in_tree - expected).abs().mean() <= tolerance * spread):
        raise EvaluationError(
            f"{name} cannot be evaluated: it does not respect the 4-D attention mask that the search needs"
        )
