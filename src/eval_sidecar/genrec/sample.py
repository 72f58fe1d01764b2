"""Makes what a small evaluation needs, in a second: ``start.py eval_sidecar.genrec.sample FOLDER``.

A checkpoint with random weights and a tokenizer of its own, an index of items and a test set.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from eval_sidecar.genrec.libraries import importing

ROWS, ITEMS = 4, 27
CHECKPOINT = Path("model", "checkpoint-1")
#: Of one message after the other, with nothing that a tokenizer could take for its own.
_TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def main() -> None:
    """Write ``model/checkpoint-1``, ``id2sid.json`` and ``test.json`` below a folder."""
    folder = Path(sys.argv[1])
    index = {
        f"item{number}": [f"<{level}_{code}>" for level, code in zip("abc", codes)]
        for number, codes in enumerate(itertools.product(range(3), repeat=3))
    }
    rows = [
        {
            "system": "Recommend.",
            "instruction": "What comes next?",
            "input": "".join(tokens),
            "output": "".join(tokens),
        }
        for tokens in list(index.values())[:ROWS]
    ]
    (folder / "id2sid.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    _save_model(folder / CHECKPOINT, sorted({token for tokens in index.values() for token in tokens}))


def _save_model(checkpoint: Path, sid_tokens: list[str]) -> None:
    with importing():
        from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<end>", *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.add_tokens([AddedToken(token, normalized=False) for token in sid_tokens])
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>")
    fast.chat_template = _TEMPLATE
    fast.save_pretrained(checkpoint)
    config = Qwen2Config(
        vocab_size=len(fast),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=512,
    )
    Qwen2ForCausalLM(config).save_pretrained(checkpoint)
