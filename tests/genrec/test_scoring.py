"""The second log-softmax, computed from a few numbers, is the one over the whole vocabulary."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from eval_sidecar.genrec import scoring  # noqa: E402
from eval_sidecar.genrec.prompts import Prompts  # noqa: E402
from eval_sidecar.genrec.scoring import PromptTokens, score_continuations  # noqa: E402

pytestmark = pytest.mark.genrec

EOS = 2


def score_in_two_passes(logits, tokens, prompts, history):
    """Return what ``generate()`` computes: two log-softmaxes over the whole vocabulary."""
    expected = torch.empty(tokens.shape)
    for row, (ids, padded) in enumerate(zip(prompts.ids, prompts.padded, strict=True)):
        for beam in range(logits.shape[1]):
            held = sorted({*ids, *history[row, beam].tolist(), *([EOS] if padded else [])})
            scores = torch.log_softmax(logits[row, beam].double(), dim=-1)
            scores[held] *= 1.1
            expected[row, beam] = torch.log_softmax(scores, dim=-1)[tokens[row, beam]].float()
    return expected


@pytest.mark.parametrize("depth", [0, 1, 3])
@pytest.mark.parametrize("spread", [0.1, 3.0, 40.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_those_of_two_passes_over_the_vocabulary(depth, spread, dtype, monkeypatch):
    monkeypatch.setattr(scoring, "CHUNK_ON_CPU", 400)  # a part of a row's beams at a time
    torch.manual_seed(depth)
    rows, beams, vocabulary = 3, 7, 101
    logits = (torch.randn(rows, beams, vocabulary) * spread).to(dtype)
    ids = ((5, 5, 9, 100, 0), (7,), tuple(range(50)))
    prompts = Prompts(ids, (True, True, False), EOS)
    # Tokens that the prompt has too, and tokens twice in one beam.
    history = torch.randint(0, 12, (rows, beams, depth))
    tokens = torch.randint(0, vocabulary, (rows, beams, 30))
    tokens[..., :13] = torch.arange(13)
    held = PromptTokens(prompts, vocabulary, logits.device)
    found = score_continuations(logits, tokens, held, history)
    expected = score_in_two_passes(logits, tokens, prompts, history)
    assert found.dtype == torch.float32
    assert torch.allclose(found, expected, rtol=2e-6, atol=1e-5)


def test_a_token_that_takes_all_the_probability_keeps_a_finite_score():
    logits = torch.full((1, 1, 50), -1e4)
    logits[0, 0, 7] = 1e4
    held = PromptTokens(Prompts(((7, 8),), (False,), EOS), 50, logits.device)
    found = score_continuations(logits, torch.tensor([[[7, 8, 9]]]), held, torch.tensor([[[7]]]))
    assert torch.allclose(found, torch.tensor([[[0.0, -22000.0, -20000.0]]]))
