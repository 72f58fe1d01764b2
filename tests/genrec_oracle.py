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
    AutoModelForSeq2SeqLM,
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


#: Options that all decoders have, before what a kind says otherwise; None takes one away.
_DECODER = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 1024, "initializer_range": 0.3,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_NO_SIZES = dict.fromkeys(_DECODER.keys() - {"bos_token_id", "eos_token_id", "pad_token_id"})
_MAMBA = {"num_attention_heads": None, "num_key_value_heads": None, "head_dim": None, "state_size": 8}

#: Kinds of models: the name in a test, the model type, and its options.
KINDS = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {}),
    "qwen3_moe": (
        "qwen3_moe",
        {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "decoder_sparse_step": 1},
    ),
    "llama": ("llama", {}),
    "mistral": ("mistral", {}),
    "mistral, short window": ("mistral", {"sliding_window": 24}),
    "gemma2": ("gemma2", {"attn_logit_softcapping": 1.0, "final_logit_softcapping": 5.0}),
    "gemma2, short window": ("gemma2", {"sliding_window": 24, "attn_logit_softcapping": 1.0}),
    "gemma3_text": ("gemma3_text", {"sliding_window": 24}),
    "phi3": ("phi3", {}),
    "gpt2": ("gpt2", {**_NO_SIZES, "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    "gpt_neo": (
        "gpt_neo",
        {
            **_NO_SIZES, "hidden_size": 32, "num_layers": 2, "num_heads": 4, "window_size": 8,
            "attention_types": [[["global", "local"], 1]], "max_position_embeddings": 1024,
        },
    ),
    "gpt_neox": ("gpt_neox", {"num_key_value_heads": None, "head_dim": None}),
    "bloom": ("bloom", {**_NO_SIZES, "hidden_size": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.3}),
    "opt": ("opt", {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3, "pad_token_id": 1}),
    "falcon": ("falcon", {"num_key_value_heads": None, "head_dim": None}),
    "falcon, alibi": ("falcon", {"num_key_value_heads": None, "head_dim": None, "alibi": True}),
    "mpt": ("mpt", {**_NO_SIZES, "d_model": 32, "n_heads": 4, "n_layers": 2, "initializer_range": 0.3}),
    "mamba": ("mamba", _MAMBA),
    "mamba2": ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 2, "chunk_size": 8}),
    "recurrent_gemma": (
        "recurrent_gemma",
        {
            "num_hidden_layers": 3, "lru_width": 32, "attention_window_size": 16,
            "block_types": ["recurrent", "recurrent", "attention"],
        },
    ),
    "jamba": (
        "jamba",
        {
            "head_dim": None, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
            "expert_layer_offset": 1, "num_experts": 2, "mamba_d_state": 8, "use_mamba_kernels": False,
        },
    ),
    "bamba": (
        "bamba",
        {
            "attn_layer_indices": [1], "mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8,
            "mamba_n_groups": 1,
        },
    ),
    "falcon_h1": (
        "falcon_h1",
        {
            "mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1,
            "mamba_chunk_size": 8,
        },
    ),
    "qwen3_next": (
        "qwen3_next",
        {
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
            "linear_key_head_dim": 8, "linear_value_head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
        },
    ),
    "t5": (
        "t5",
        {
            **_NO_SIZES, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
            "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0,
        },
    ),
    "t5, untied": (
        "t5",
        {
            **_NO_SIZES, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4,
            "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0, "tie_word_embeddings": False,
            "feed_forward_proj": "gated-gelu",
        },
    ),
    "bart": (
        "bart",
        {
            **_NO_SIZES, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "init_std": 0.3, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 1,
            "forced_eos_token_id": None, "forced_bos_token_id": None, "max_position_embeddings": 1024,
        },
    ),
}  # fmt: skip


def make_kind(name, vocabulary, seed=0, **options):
    """A tiny random model of :data:`KINDS`, with logits far enough apart that near ties are rare.

    Raises:
        ValueError: The installed transformers does not know it.
    """
    model_type, own = KINDS[name]
    settings = {key: value for key, value in {**_DECODER, **own, **options}.items() if value is not None}
    settings |= {key: None for key in ("bos_token_id", "eos_token_id", "pad_token_id") if key not in settings}
    config = AutoConfig.for_model(model_type, vocab_size=vocabulary, **settings)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    torch.manual_seed(seed)
    # Other kinds of attention have ignored softcapping and windows, but Falcon's eager one adds ALiBi twice.
    eager = {} if "alibi" in settings else {"attn_implementation": "eager"}
    model = kind.from_config(config, **eager).eval()
    for weight in model.get_output_embeddings().parameters():
        if weight.dim() > 1 and weight.detach().std() < 0.2:
            torch.nn.init.normal_(weight.data, std=0.3)
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

    def __init__(self, items, eos, prompt_length, padded=False):
        self.length = prompt_length
        self.padded = [eos] if padded else []
        self.following = {}
        for item in items:
            for depth in range(len(item) + 1):
                following = self.following.setdefault(tuple(item[:depth]), set())
                following.add(item[depth] if depth < len(item) else eos)

    def __call__(self, input_ids, scores):
        present = input_ids
        if self.padded:  # and no padding in the prompt that would show it
            present = torch.cat((input_ids, input_ids.new_tensor([self.padded] * len(input_ids))), dim=1)
        scores = scores.scatter(1, present, scores.gather(1, present) * 1.1)
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


@torch.no_grad()
def generate_each(model, tokenizer, prompts, index, num_beams, length_penalty=0.0):
    """Return what :func:`generate_ranked` does, row by row: no padding, no cache, nothing shared.

    Recurrent layers take padding into their state, and some versions' ``generate()`` reorders no caches of
    these: a search must not.
    """
    items = {tuple(tokenizer(item, add_special_tokens=False)["input_ids"]): item for item in joined(index)}
    eos = tokenizer.eos_token_id
    longest = max(map(len, prompts))
    ranked = []
    for ids in prompts:
        decoded = model.config.is_encoder_decoder
        start = 1 if decoded else len(ids)
        output = model.generate(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones((1, len(ids)), dtype=torch.long),
            num_beams=num_beams, num_return_sequences=num_beams, max_new_tokens=64, do_sample=False,
            length_penalty=length_penalty, repetition_penalty=1.0, eos_token_id=eos, pad_token_id=eos,
            logits_processor=LogitsProcessorList(
                [OnlyItems(items, eos, start, padded=not decoded and len(ids) < longest)]
            ),
            return_dict_in_generate=True, output_scores=True, use_cache=False,
        )  # fmt: skip
        sequences = output.sequences[:, start:].tolist()
        found = [items[tuple(sequence[: sequence.index(eos)])] for sequence in sequences]
        ranked.append(list(zip(found, output.sequences_scores.tolist(), strict=True)))
    return ranked


def joined(index):
    return sorted({"".join(tokens) for tokens in index.values()})


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


@torch.no_grad()
def score_decoded(model, prompt, prefix, item, eos):
    """Return one item's score by an encoder-decoder model, whose answer begins with a prefix."""
    decoded = torch.tensor([[*prefix, *item]])
    logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=decoded).logits[0].float()
    total = 0.0
    for depth, token in enumerate([*item, eos]):
        scores = torch.log_softmax(logits[len(prefix) - 1 + depth], dim=-1)
        scores[sorted({*prefix, *item[:depth]})] *= 1.1
        total += torch.log_softmax(scores, dim=-1)[token].item()
    return total
