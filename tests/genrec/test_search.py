"""The parts of the search: batches, the tree in the cache, and what must not change a ranking."""

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import genrec_oracle as oracle  # noqa: E402
from eval_sidecar.genrec import search  # noqa: E402
from eval_sidecar.genrec.batches import plan_batches  # noqa: E402
from eval_sidecar.genrec.checks import plan_search  # noqa: E402
from eval_sidecar.genrec.data import load_index  # noqa: E402
from eval_sidecar.genrec.errors import EvaluationError  # noqa: E402
from eval_sidecar.genrec.hf.forward import LanguageModel  # noqa: E402
from eval_sidecar.genrec.prompts import Prompts, encode_items, encode_prompts, load_tokenizer  # noqa: E402
from eval_sidecar.genrec.trie import build_trie  # noqa: E402

pytestmark = pytest.mark.genrec


@pytest.fixture(scope="module")
def encoded(tiny):
    index = load_index(tiny.folder / "id2sid.json")
    tokenizer = load_tokenizer(tiny.checkpoint, index, tiny.rows)
    prompts = encode_prompts(tokenizer, tiny.rows)
    items = encode_items(tokenizer, index)
    return prompts, items, build_trie(items, prompts.eos)


def rank(module, prompts, trie, settings, *others):
    model = LanguageModel(module)
    return search.rank(model, plan_search(model, prompts, trie.depth), prompts, trie, settings, *others)


def test_scores_are_those_of_the_whole_sequence(tiny, encoded):
    prompts, items, trie = encoded
    ranked = rank(tiny.model, prompts, trie, search.SearchSettings(num_beams=12))
    for ids, padded, row in list(zip(prompts.ids, prompts.padded, ranked, strict=True))[:4]:
        scores = [oracle.score_item(tiny.model, ids, items[item], prompts.eos, padded) for item in row]
        assert all(
            first > second - oracle.NEAR_TIE for first, second in zip(scores, scores[1:], strict=False)
        )


def test_the_batch_size_does_not_change_a_ranking(tiny, encoded, monkeypatch):
    prompts, _, trie = encoded
    together = rank(tiny.model, prompts, trie, search.SearchSettings(10, 0.0, 8))
    monkeypatch.setattr(search, "plan_batches", lambda lengths, *_: [[row] for row in range(len(lengths))])
    assert rank(tiny.model, prompts, trie, search.SearchSettings(10, 0.0, 8)) == together


def test_a_batch_that_does_not_fit_is_halved(tiny, encoded, monkeypatch):
    prompts, _, trie = encoded
    settings = search.SearchSettings(num_beams=10)
    expected = rank(tiny.model, prompts, trie, settings)
    whole = search._search

    def small(model, plan, batch, *others):
        if len(batch.ids) > 3:
            raise torch.cuda.OutOfMemoryError
        return whole(model, plan, batch, *others)

    monkeypatch.setattr(search, "_search", small)
    done = []
    assert rank(tiny.model, prompts, trie, settings, done.append) == expected
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


def test_rows_of_one_length_share_a_batch_when_beams_are_rows():
    lengths = [30, 10, 30, 10, 30, 15]
    batches = plan_batches(lengths, 50, 3, 2, 1000, one_length=True)
    assert batches == [[1, 3], [5], [0, 2], [4]]


def plan_for(module, length=14):
    return plan_search(LanguageModel(module), Prompts((tuple(range(length)), (1, 2)), (False, False), 1), 3)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3", "llama", "mistral", "gemma2"])
def test_a_model_that_respects_the_mask_is_searched_as_a_tree(kind):
    assert plan_for(oracle.make_model(64, kind)).is_tree


@pytest.mark.parametrize("ignored", ["attention_mask", "position_ids"])
def test_a_model_that_ignores_mask_or_positions_is_searched_beam_by_beam(ignored, monkeypatch):
    model = oracle.make_model(64)
    forward = type(model).forward

    def deaf(self, *ids, **given):
        given.pop(ignored, None)
        return forward(self, *ids, **given)

    monkeypatch.setattr(type(model), "forward", deaf)
    plan = plan_for(model)
    assert not plan.is_tree and plan.caching
    assert plan.slow_because == "Qwen2ForCausalLM does not respect the attention mask of a tree"


def test_a_window_that_no_config_names_is_found_on_the_longest_prompt(monkeypatch):
    module = oracle.make_kind("mistral", 64, sliding_window=32)
    module.config.sliding_window = None  # the tree's mask would let its tokens see all
    masked = type(module).forward

    def windowed(self, ids, attention_mask=None, **given):
        if attention_mask is None and ids.shape[1] > 32:
            ids = ids[:, -32:]
        return masked(self, ids, attention_mask=attention_mask, **given)

    monkeypatch.setattr(type(module), "forward", windowed)
    assert plan_for(module, 20).is_tree
    assert plan_for(module, 50).slow_because.endswith("does not see the whole of a prompt of 50 tokens")


def test_a_cache_that_is_reordered_wrongly_is_not_used(monkeypatch):
    module = oracle.make_kind("bloom", 64)
    monkeypatch.setattr(
        "eval_sidecar.genrec.rows.select_rows",
        lambda cache, rows: select_rows(cache, rows.sort().values),
    )
    from eval_sidecar.genrec.hf.forward import select_rows

    plan = plan_for(module)
    assert not plan.is_tree and not plan.caching


def test_a_model_whose_scores_depend_on_later_tokens_is_refused(monkeypatch):
    module = oracle.make_model(64)
    forward = type(module).forward

    def both_ways(self, ids, **given):
        output = forward(self, ids, **given)
        output.logits = output.logits + ids.float().mean() * torch.arange(64.0)
        return output

    monkeypatch.setattr(type(module), "forward", both_ways)
    with pytest.raises(EvaluationError, match="no causal language-model head"):
        plan_for(module)
