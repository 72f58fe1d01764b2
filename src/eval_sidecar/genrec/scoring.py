"""Turns logits into the log-probabilities by which beams are compared."""

from __future__ import annotations

import torch

from eval_sidecar.genrec.prompts import Prompts

#: Penalty on tokens that the prompt or the beam already holds, as in Keskar et al. 2019 (CTRL), which
#: ``generate()`` applies to log-probabilities in beam search: these are negative, so it multiplies.
REPETITION_PENALTY = 1.1

#: Scores that are held in float32 at a time (numbers, not bytes). Small: fresh memory is slow on a CPU.
CHUNK = 1 << 23


class Presence:
    """Which tokens each row's prompt holds, as the factor on their log-probabilities.

    Attributes:
        factors: 1.1 for a token in the prompt, 1 for others; float32, (rows, vocabulary).
    """

    def __init__(self, prompts: Prompts, vocabulary: int, device: torch.device) -> None:
        """Mark the tokens of each prompt, and the end of sequence if the reference padded with it.

        Args:
            prompts: The batch's prompts.
            vocabulary: Width of the model's logits.
            device: Where the factors are kept.
        """
        held = [
            [*ids, prompts.eos] if padded else list(ids) for ids, padded in zip(prompts.ids, prompts.padded)
        ]
        width = max(len(ids) for ids in held)
        # Repeating a token that is present changes nothing, so it serves as padding.
        table = torch.tensor([ids + ids[:1] * (width - len(ids)) for ids in held], device=device)
        self.factors = torch.ones((len(held), vocabulary), device=device)
        self.factors.scatter_(1, table, REPETITION_PENALTY)


def score_continuations(
    logits: torch.Tensor, tokens: torch.Tensor, presence: Presence, history: torch.Tensor
) -> torch.Tensor:
    """Return the log-probability of each continuation of each beam.

    Log-softmax over the whole vocabulary, repetition penalty, and a second log-softmax over the whole
    vocabulary, in float32, whatever the model's precision.

    Args:
        logits: The model's output; (rows, beams, vocabulary).
        tokens: Token ids that may follow; (rows, beams, width).
        presence: Tokens in the prompts.
        history: Tokens that each beam has generated; (rows, beams, depth).

    Returns:
        Log-probabilities; float32, (rows, beams, width).
    """
    step = max(1, CHUNK // (logits.shape[1] * logits.shape[2]))
    parts = []
    for start in range(0, logits.shape[0], step):
        rows = slice(start, start + step)
        scores = torch.log_softmax(logits[rows], dim=-1, dtype=torch.float32)
        # Taken before the prompt's factor, so that a token in both is penalised once.
        repeated = scores.gather(2, history[rows]) * REPETITION_PENALTY
        scores *= presence.factors[rows, None, :]
        scores.scatter_(2, history[rows], repeated)
        total = torch.logsumexp(scores, dim=2, keepdim=True)
        parts.append(scores.gather(2, tokens[rows]) - total)
    return torch.cat(parts)
