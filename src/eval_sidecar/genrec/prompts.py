"""Turns rows into prompts and items into token ids, with a checkpoint's own tokenizer."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_sidecar.genrec.data import ItemIndex
from eval_sidecar.genrec.errors import EvaluationError, one_line

log = logging.getLogger(__name__)

#: What a prompt without a chat template is made of, in this order.
PROMPT_FIELDS = ("system", "instruction", "input")

#: Longest prompt in tokens; the rest is cut on the right.
MAX_PROMPT_TOKENS = 512

#: Endings of all files that some class of tokenizers is made from, or is chosen by (config.json).
_ENDINGS = (".json", ".jinja", ".txt", ".model", ".spm", ".codes", ".bpe", ".tiktoken", ".tokenizer")

#: Of these, the files that change from one checkpoint to the next, and say nothing of its tokenizer.
_OF_ONE_CHECKPOINT = (".index.json", "trainer_state.json")


@dataclass(frozen=True)
class Prompts:
    """Prompts as token ids.

    Attributes:
        ids: Token ids of each prompt.
        padded: For each prompt whether end of sequence counts as present in it, see
            :func:`encode_prompts`.
        eos: Token id that ends an item.
    """

    ids: tuple[tuple[int, ...], ...]
    padded: tuple[bool, ...]
    eos: int

    def select(self, rows: Sequence[int]) -> Prompts:
        """Return some of the prompts, in the given order."""
        return Prompts(
            tuple(self.ids[row] for row in rows), tuple(self.padded[row] for row in rows), self.eos
        )

    def merge_equal(self) -> tuple[Prompts, list[int]]:
        """Return the distinct prompts, and for each prompt its place among them."""
        firsts: dict[tuple[int, ...], int] = {}
        for row, ids in enumerate(self.ids):
            firsts.setdefault(ids, row)
        places = {ids: place for place, ids in enumerate(firsts)}
        return self.select(list(firsts.values())), [places[ids] for ids in self.ids]


def load_tokenizer(
    checkpoint: Path, index: ItemIndex, rows: Sequence[Mapping[str, Any]], trust_remote_code: bool = False
) -> Any:  # noqa: ANN401
    """Load a checkpoint's tokenizer, and check it on some items and rows.

    Raises:
        EvaluationError: If it is missing, or has no chat template or no end-of-sequence token.
    """
    from eval_sidecar.genrec.hf.tokenizer import as_saved, load_tokenizer

    samples = [*index.items[:: max(1, len(index.items) // 20)], *(row["input"] for row in rows[:5])]
    tokenizer = as_saved(checkpoint, load_tokenizer(checkpoint, trust_remote_code), samples)
    if not tokenizer.chat_template:
        from eval_sidecar.genrec.hf.config import is_encoder_decoder

        if not is_encoder_decoder(checkpoint):
            raise EvaluationError(
                f"{checkpoint}: its tokenizer has no chat template (chat_template.jinja, or chat_template in "
                "tokenizer_config.json), so the prompts of the training cannot be rebuilt"
            )
        # Such models are trained on plain texts; they have no template.
        log.info(
            "%s/%s: no chat template: prompts are each row's system, instruction and input, with an empty "
            "line in between",
            checkpoint.parent.name,
            checkpoint.name,
        )
    if tokenizer.eos_token_id is None:
        raise EvaluationError(f"{checkpoint}: its tokenizer has no eos_token, so no item would ever end")
    return tokenizer


def tokenizer_digest(checkpoint: Path) -> str | None:
    """Return a hash of what a checkpoint's tokenizer may be made from: the same hash, the same tokenizer.

    Which files there are, and which of them are read, differs from tokenizer to tokenizer. If one of
    them cannot be read there is no hash (None): the tokenizer decides whether it is needed.
    """
    digest = hashlib.sha256()
    try:
        for path in sorted([*checkpoint.iterdir(), *checkpoint.glob("additional_chat_templates/*")]):
            ours = path.name.endswith(_ENDINGS) and not path.name.endswith(_OF_ONE_CHECKPOINT)
            if ours and path.is_file():
                digest.update(os.fsencode(path.name) + b"\0" + _content_digest(path))
    except OSError:
        return None
    return digest.hexdigest()


def _content_digest(path: Path) -> bytes:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.digest()


def tells_time(tokenizer: Any) -> bool:  # noqa: ANN401
    """Return whether the chat template writes the date or the time, as Llama 3's does."""
    return "strftime_now" in str(tokenizer.chat_template)  # one template, or a dictionary of several


def encode_prompts(tokenizer: Any, rows: Sequence[Mapping[str, Any]]) -> Prompts:  # noqa: ANN401
    """Put each row into the chat template, if any, and return its token ids, cut on the right at 512.

    The padding rule: the reference pads every prompt on the left, with the end-of-sequence token, to the
    longest prompt of the whole test set, and the repetition penalty does not tell padding from text. So
    end of sequence counts as present in every prompt that is shorter than the longest one (after the
    cut). That is a property of the test set alone: batches and devices do not change it. (Newer versions
    of ``generate()`` leave padding out of the penalty. If the template itself writes the end of
    sequence, as Qwen's does, the two agree.)

    Raises:
        EvaluationError: If the template fails on a row, or gives no tokens.
    """
    if tokenizer.chat_template:
        texts = [_fill_template(tokenizer, number, row) for number, row in enumerate(rows)]
        # The template has written the special tokens already.
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"]
        ids = tuple(tuple(tokens[:MAX_PROMPT_TOKENS]) for tokens in encoded)
    else:
        texts = ["\n\n".join(filter(None, (row[name] for name in PROMPT_FIELDS))) for row in rows]
        # Cut before the special tokens are added, which the encoder expects at the end.
        encoded = tokenizer(texts, truncation=True, max_length=MAX_PROMPT_TOKENS)["input_ids"]
        ids = tuple(map(tuple, encoded))
    for number, tokens in enumerate(ids):
        if not tokens:
            raise EvaluationError(f"row {number}: its prompt has no tokens in this tokenizer")
    longest = max(len(tokens) for tokens in ids)
    return Prompts(ids, tuple(len(tokens) < longest for tokens in ids), tokenizer.eos_token_id)


def _fill_template(tokenizer: Any, number: int, row: Mapping[str, Any]) -> str:  # noqa: ANN401
    messages = [
        {"role": "system", "content": row["system"]},
        {"role": "user", "content": f"{row['instruction']}\n\n{row['input']}"},
    ]
    try:
        text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template may raise anything
        raise EvaluationError(f"the chat template fails on row {number}: {one_line(error)}") from error
    return text


def encode_items(tokenizer: Any, index: ItemIndex) -> list[list[int]]:  # noqa: ANN401
    """Return the token ids of each item of the index.

    An item is encoded as one text, as a training's answers are: a semantic-ID token that is not in the
    vocabulary splits into several ids, which may run across the border to the next token.

    Raises:
        EvaluationError: If two items have the same tokens, or an item cannot be encoded at all.
    """
    items: list[list[int]] = tokenizer(list(index.items), add_special_tokens=False)["input_ids"]
    unknown = tokenizer.unk_token_id
    seen: dict[tuple[int, ...], int] = {}
    for place, ids in enumerate(items):
        entry = f"index entry {index.names[place]!r} ({index.items[place]})"
        if not ids or (unknown is not None and unknown in ids):
            raise EvaluationError(f"{entry} cannot be encoded with this tokenizer's vocabulary")
        if tokenizer.eos_token_id in ids:
            raise EvaluationError(f"{entry} contains the end-of-sequence token {tokenizer.eos_token!r}")
        other = seen.setdefault(tuple(ids), place)
        if other != place:
            raise EvaluationError(
                f"{entry} and entry {index.names[other]!r} ({index.items[other]}) are the same in this "
                "tokenizer: it was probably saved without the semantic-ID tokens"
            )
    return items
