"""The parts of the search: batches, the tree in the cache, and what must not change a ranking."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import genrec_oracle as oracle  # noqa: E402
from eval_sidecar.genrec import search  # noqa: E402
from eval_sidecar.genrec.batches import plan_batches  # noqa: E402
from eval_sidecar.genrec.data import load_index  # noqa: E402
from eval_sidecar.genrec.errors import EvaluationError  # noqa: E402
from eval_sidecar.genrec.prompts import encode_items, encode_prompts, load_tokenizer  # noqa: E402
from eval_sidecar.genrec.tree import attention_span, check_tree_attention  # noqa: E402
from eval_sidecar.genrec.trie import build_trie  # noqa: E402

pytestmark = pytest.mark.genrec


@pytest.fixture(scope="module")
def encoded(tiny):
    tokenizer = load_tokenizer(tiny.checkpoint)
    prompts = encode_prompts(tokenizer, tiny.rows)
    items = encode_items(tokenizer, load_index(tiny.folder / "id2sid.json"))
    return prompts, items, build_trie(items, prompts.eos)


def test_scores_are_those_of_the_whole_sequence(tiny, encoded):
    prompts, items, trie = encoded
    ranked = search.rank(tiny.model, prompts, trie, search.SearchSettings(num_beams=12))
    for ids, padded, row in list(zip(prompts.ids, prompts.padded, ranked, strict=True))[:4]:
        scores = [oracle.score_item(tiny.model, ids, items[item], prompts.eos, padded) for item in row]
        assert all(
            first > second - oracle.NEAR_TIE for first, second in zip(scores, scores[1:], strict=False)
        )


def test_the_batch_size_does_not_change_a_ranking(tiny, encoded, monkeypatch):
    prompts, _, trie = encoded
    together = search.rank(tiny.model, prompts, trie, search.SearchSettings(10, 0.0, 8))
    monkeypatch.setattr(search, "plan_batches", lambda lengths, *_: [[row] for row in range(len(lengths))])
    assert search.rank(tiny.model, prompts, trie, search.SearchSettings(10, 0.0, 8)) == together


def test_a_batch_that_does_not_fit_is_halved(tiny, encoded, monkeypatch):
    prompts, _, trie = encoded
    settings = search.SearchSettings(num_beams=10)
    expected = search.rank(tiny.model, prompts, trie, settings)
    whole = search._search

    def small(model, batch, *others):
        if len(batch.ids) > 3:
            raise torch.cuda.OutOfMemoryError
        return whole(model, batch, *others)

    monkeypatch.setattr(search, "_search", small)
    done = []
    assert search.rank(tiny.model, prompts, trie, settings, done.append) == expected
    assert sum(done) == len(prompts.ids)
    assert max(done) <= 3


def test_the_longest_prompts_alone_are_not_padded(encoded):
    prompts, _, _ = encoded
    longest = max(map(len, prompts.ids))
    assert prompts.padded == tuple(len(ids) < longest for ids in prompts.ids)


def test_batches_hold_rows_of_like_length_within_the_budget():
    lengths = [300, 10, 290, 20, 500, 15]
    batches = plan_batches(lengths, num_beams=50, depth=3, batch_size=1, vocabulary=1000)
    assert all(len(batch) * (max(lengths[row] for row in batch) + 150) <= 1024 for batch in batches)
    assert sorted(row for batch in batches for row in batch) == list(range(6))
    # A large vocabulary bounds the batch, but one row always goes.
    assert all(len(batch) == 1 for batch in plan_batches(lengths, 50, 3, 1, 1 << 26))


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral", "gemma2"])
def test_a_model_that_respects_the_mask_is_accepted(kind):
    check_tree_attention(oracle.make_model(64, kind))


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_mask_or_positions_is_refused(ignored, monkeypatch):
    model = oracle.make_model(64)
    forward = type(model).forward

    def deaf(
        self, input_ids=None, attention_mask=None, position_ids=None, past_key_values=None, logits_to_keep=0,
        use_cache=None,
    ):  # fmt: skip
        given = {"attention_mask": attention_mask, "position_ids": position_ids}
        given.pop(ignored)
        return forward(
            self, input_ids, past_key_values=past_key_values, use_cache=use_cache,
            logits_to_keep=logits_to_keep, **given,
        )  # fmt: skip

    monkeypatch.setattr(type(model), "forward", deaf)
    with pytest.raises(EvaluationError, match="Qwen2ForCausalLM cannot be evaluated"):
        check_tree_attention(model)


def test_a_model_with_recurrent_layers_is_refused():
    config = oracle.make_model(64).config
    config.layer_types = ["full_attention", "linear_attention"]
    with pytest.raises(EvaluationError, match="linear_attention"):
        attention_span(config)
