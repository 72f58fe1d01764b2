"""Tiny random models and tokenizers, and what transformers' own ``generate()`` makes of them.

The oracle shares no code with the evaluator: it has its own prompts, its own trie (a dictionary of prefixes)
and its own arithmetic, and leaves the search and the padding to ``generate()``.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedTokenizerFast,
)

#: Scores closer than this may come in either order: two ways of summing differ in their last digits.
NEAR_TIE = 1e-5

#: No end of sequence in the prompt, so that padding alone makes it present.
TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}[assistant] {% endif %}"
)


def make_tokenizer(sid_tokens=(), template=TEMPLATE):
    """A tokenizer of single bytes, which knows the given semantic-ID tokens as a whole.

    Read it back with AutoTokenizer before use: it picks the class by the model's type, and some classes
    replace how the text is split.
    """
    alphabet = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "▁"]
    vocabulary = {token: number for number, token in enumerate(["<pad>", "<end>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<pad>", "<end>"])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in sid_tokens])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<pad>")
    fast.chat_template = template
    return fast


def make_model(vocabulary, kind="qwen2", seed=0, **options):
    """A random model with logits far enough apart that near ties are rare."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        kind,
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=1024,
        initializer_range=0.3,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        **options,
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    # What Qwen's own files say. The evaluator must not care.
    model.generation_config.update(do_sample=True, top_k=5, temperature=0.6, repetition_penalty=1.3)
    return model


def make_index(items=120, levels=(3,), width=8, seed=0):
    """Random items of mixed depth; some share a list, and some are a prefix of another."""
    chance = random.Random(seed)
    index = {}
    for number in range(items):
        depth = levels[number % len(levels)]
        index[f"item{number}"] = [f"<{'abcd'[level]}_{chance.randrange(width)}>" for level in range(depth)]
    names = list(index)
    index["shared"] = list(index[names[0]])
    if len(levels) > 1:
        longest = max(index.values(), key=len)
        index["prefix"] = longest[:3]
    return index


def make_rows(index, count=10, seed=0, words=14):
    """Rows of various lengths; every target but the last is an item."""
    chance = random.Random(seed)
    items = ["".join(tokens) for tokens in index.values()]
    rows = [
        {
            "system": "Recommend.",
            "instruction": "What is next?",
            "input": "History: " + ", ".join(chance.choice(items) for _ in range(chance.randrange(1, words))),
            "output": chance.choice(items),
            "user": f"u{number} é",
        }
        for number in range(count)
    ]
    rows[-1]["output"] = "<a_9999>"
    return rows


def write_setup(folder: Path, index, rows, tokenizer, model=None, name="checkpoint-5"):
    """Write index, test set and, under ``folder/model``, a checkpoint; return the evaluator's arguments."""
    checkpoint = folder / "model" / name
    checkpoint.mkdir(parents=True)
    tokenizer.save_pretrained(checkpoint)
    if model is not None:
        model.save_pretrained(checkpoint)
    (folder / "id2sid.json").write_text(json.dumps(index))
    (folder / "test.json").write_text(json.dumps(rows))
    return [
        "--checkpoint", str(checkpoint), "--test-data", str(folder / "test.json"),
        "--index", str(folder / "id2sid.json"), "--output-root", str(folder / "results"), "--devices", "cpu",
    ]  # fmt: skip


class OnlyItems(LogitsProcessor):
    """The reference's arithmetic: penalty, a second log-softmax, then everything but items removed.

    The penalty stands here and not in ``repetition_penalty``, because newer versions of transformers leave
    the padding out of it, and the reference counts it.
    """

    def __init__(self, items, eos, prompt_length):
        self.length = prompt_length
        self.following = {}
        for item in items:
            for depth in range(len(item) + 1):
                following = self.following.setdefault(tuple(item[:depth]), set())
                following.add(item[depth] if depth < len(item) else eos)

    def __call__(self, input_ids, scores):
        scores = scores.scatter(1, input_ids, scores.gather(1, input_ids) * 1.1)
        scores = torch.log_softmax(scores, dim=-1)
        mask = torch.full_like(scores, -torch.inf)
        for row, ids in enumerate(input_ids[:, self.length :].tolist()):
            mask[row, list(self.following.get(tuple(ids), ()))] = 0
        return scores + mask


def encode(tokenizer, row):
    """A row's prompt as the reference reads it, cut at 512 tokens."""
    messages = [
        {"role": "system", "content": row["system"]},
        {"role": "user", "content": row["instruction"] + "\n\n" + row["input"]},
    ]
    text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return tokenizer(text, add_special_tokens=False, truncation=True, max_length=512)["input_ids"]


@torch.no_grad()
def generate_ranked(model, checkpoint, index, rows, num_beams, length_penalty=0.0, sid_levels=None):
    """Return for each row ``[(item, score), …]`` as ``generate()`` ranks them, in one padded batch."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    items = {"".join(tokens[:sid_levels]) for tokens in index.values()}
    items = {tuple(tokenizer(item, add_special_tokens=False)["input_ids"]): item for item in sorted(items)}
    prompts = [encode(tokenizer, row) for row in rows]
    width = max(map(len, prompts))
    eos = tokenizer.eos_token_id
    output = model.generate(
        input_ids=torch.tensor([[eos] * (width - len(ids)) + ids for ids in prompts]),
        attention_mask=torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts]),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=64,
        do_sample=False,
        length_penalty=length_penalty,
        repetition_penalty=1.0,
        eos_token_id=eos,
        pad_token_id=eos,
        logits_processor=LogitsProcessorList([OnlyItems(items, eos, width)]),
        return_dict_in_generate=True,
        output_scores=True,
    )
    found = []
    for ids, score in zip(
        output.sequences[:, width:].tolist(), output.sequences_scores.tolist(), strict=True
    ):
        found.append((items[tuple(ids[: ids.index(eos)])], score))
    return [found[start : start + num_beams] for start in range(0, len(found), num_beams)]


def assert_same_ranking(predicted, expected):
    """Fail unless a ranked list is the oracle's, but for items whose scores are all but the same."""
    scores = dict(expected)
    assert len(predicted) == len(expected) == len(set(predicted))
    for item, (other, score) in zip(predicted, expected, strict=True):
        assert item == other or abs(scores.get(item, -torch.inf) - score) < NEAR_TIE, (item, other, score)


@torch.no_grad()
def score_item(model, prompt, item, eos, padded):
    """Return one item's score by running the whole sequence, with nothing cached or shared."""
    logits = model(input_ids=torch.tensor([[*prompt, *item]])).logits[0].float()
    total = 0.0
    for depth, token in enumerate([*item, eos]):
        present = sorted({*prompt, *item[:depth], *([eos] if padded else [])})
        scores = torch.log_softmax(logits[len(prompt) - 1 + depth], dim=-1)
        scores[present] *= 1.1
        total += torch.log_softmax(scores, dim=-1)[token].item()
    return total
