"""Turns logits into the log-probabilities by which beams are compared."""

from __future__ import annotations

import torch

from eval_sidecar.genrec.prompts import Prompts

#: Penalty on tokens that the prompt or the beam contains, as in Keskar et al. 2019 (CTRL), which
#: ``generate()`` applies to log-probabilities in beam search: these are negative, so it multiplies.
REPETITION_PENALTY = 1.1

#: Logits that are summed at a time (numbers, not bytes): on a CPU what fits into its cache, elsewhere enough
#: to keep the device busy.
CHUNK_ON_CPU, CHUNK = 1 << 18, 1 << 23


class PromptTokens:
    """The distinct tokens of each row's prompt, on which the penalty is.

    Attributes:
        ids: Token ids of each row in rising order, padded at the end; long, (rows, most tokens of a row).
        counted: False for padding; bool, (rows, most tokens of a row).
    """

    def __init__(self, prompts: Prompts, vocabulary: int, device: torch.device) -> None:
        """List the tokens of each prompt, and the end of sequence if the reference padded with it.

        Args:
            prompts: The batch's prompts.
            vocabulary: Width of the model's logits.
            device: Where the table is kept.
        """
        tokens = [
            sorted({*ids, prompts.eos} if padded else {*ids})
            for ids, padded in zip(prompts.ids, prompts.padded)
        ]
        width = max(map(len, tokens))
        table = torch.tensor([ids + [vocabulary] * (width - len(ids)) for ids in tokens], device=device)
        self.counted = table < vocabulary
        self._sorted = table
        self.ids = table.masked_fill(~self.counted, 0)

    def contain(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return which tokens stand in their row's prompt; bool, of the shape of ``tokens``, rows first."""
        wanted = tokens.flatten(1).contiguous()
        places = torch.searchsorted(self._sorted, wanted).clamp_(max=self._sorted.shape[1] - 1)
        return (self._sorted.gather(1, places) == wanted).view_as(tokens)


def score_continuations(
    logits: torch.Tensor, tokens: torch.Tensor, prompts: PromptTokens, history: torch.Tensor
) -> torch.Tensor:
    """Return the log-probability of each continuation of each beam.

    Log-softmax over the whole vocabulary, repetition penalty, and a second log-softmax over the whole
    vocabulary, in float32, whatever the model's precision. The vocabulary is read once: after the first
    log-softmax the probabilities p add up to 1, and the penalty makes them p^1.1 for penalised tokens alone,
    so the second normaliser is ``log(1 + Σ(p^1.1 - p))`` over these.

    Args:
        logits: The model's output; (rows, beams, vocabulary).
        tokens: Token ids that may follow; (rows, beams, width).
        prompts: Tokens in the prompts.
        history: Tokens that each beam has generated; (rows, beams, depth).

    Returns:
        Log-probabilities; float32, (rows, beams, width).
    """
    rows, beams, _ = logits.shape
    total = _log_sum(logits)
    # A token is penalised once: as the prompt's, or else as the first of its kind in the beam.
    repeated = (history[..., :, None] == history[..., None, :]).tril(-1).any(3)
    counted = (~prompts.contain(history) & ~repeated, prompts.counted[:, None, :].expand(rows, beams, -1))
    penalised = torch.cat((history, prompts.ids[:, None, :].expand(rows, beams, -1)), dim=2)
    scores = logits.gather(2, penalised).float() - total
    excess = ((scores * REPETITION_PENALTY).exp_() - scores.exp()).masked_fill_(~torch.cat(counted, 2), 0.0)
    second = torch.log1p(excess.sum(2, keepdim=True))
    held = prompts.contain(tokens) | (tokens[..., None] == history[:, :, None, :]).any(3)
    scores = logits.gather(2, tokens).float() - total
    return torch.where(held, scores * REPETITION_PENALTY, scores) - second


def _log_sum(logits: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the sum of exponentials over the vocabulary; float32, (rows, beams, 1)."""
    flat = logits.flatten(0, 1)
    step = max(1, (CHUNK_ON_CPU if flat.device.type == "cpu" else CHUNK) // flat.shape[1])
    parts = [torch.logsumexp(part.float(), dim=1, keepdim=True) for part in torch.split(flat, step)]
    return torch.cat(parts).view(*logits.shape[:2], 1)
