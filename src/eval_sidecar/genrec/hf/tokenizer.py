"""Loads a checkpoint's tokenizer, whichever version of transformers has saved it."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval_sidecar.genrec.errors import EvaluationError, one_line

log = logging.getLogger(__name__)

#: Files that hold a vocabulary, as patterns; a tokenizer of bytes needs none.
_VOCABULARIES = (
    "tokenizer.json", "vocab*.json", "vocab*.txt", "*.model", "*.spm", "*.tiktoken", "*.bpe", "*.codes",
    "*.tokenizer",
)  # fmt: skip

#: Special tokens that tokenizer_config.json may name.
_SPECIAL_TOKENS = (
    "bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token",
)  # fmt: skip


def load_tokenizer(checkpoint: Path, trust_remote_code: bool = False) -> Any:  # noqa: ANN401
    """Load a checkpoint's tokenizer.

    If the installed transformers does not know its class, or does not read its settings, tokenizer.json is
    enough: it holds all that turns text into token ids.

    Raises:
        EvaluationError: If it is missing or broken, or needs its own code without permission to run it.
    """
    has_vocabulary = any(any(checkpoint.glob(pattern)) for pattern in _VOCABULARIES)
    has_json = (checkpoint / "tokenizer.json").is_file()
    missing = EvaluationError(
        f"{checkpoint}: contains no tokenizer (tokenizer.json): save it with the checkpoint "
        "(Trainer: processing_class=tokenizer)"
    )
    settings = _settings(checkpoint)
    if not has_vocabulary and not settings:
        raise missing
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(str(checkpoint), trust_remote_code=trust_remote_code)
    except Exception as error:  # transformers decides what broken files raise
        if not has_vocabulary and not settings.get("auto_map"):
            raise missing from error
        if not has_json and settings.get("auto_map") and not trust_remote_code:
            raise EvaluationError(
                f"{checkpoint}: its tokenizer would run code from the checkpoint (auto_map in "
                "tokenizer_config.json): if you trust that code, allow it with TRUST_REMOTE_CODE=True or "
                "--trust-remote-code True"
            ) from error
        if not has_json:
            raise _not_loaded(checkpoint, error) from error
        tokenizer = _read_json(checkpoint, settings)
    if not has_vocabulary and len(tokenizer.get_vocab()) <= len(tokenizer.all_special_tokens):
        raise missing  # transformers 5 makes an empty one
    if not tokenizer.chat_template:
        tokenizer.chat_template = _chat_template(checkpoint, settings)
    return tokenizer


def as_saved(checkpoint: Path, tokenizer: Any, texts: Sequence[str]) -> Any:  # noqa: ANN401
    """Return a tokenizer that reads texts as the checkpoint's tokenizer.json does: the given one, or another.

    transformers 5 chooses a tokenizer's class by the model's type, and some classes bring their own way of
    splitting, or silently drop a vocabulary of another kind.

    Args:
        checkpoint: The checkpoint.
        tokenizer: What :func:`load_tokenizer` has returned.
        texts: Samples.
    """
    path = checkpoint / "tokenizer.json"
    if not path.is_file():
        return tokenizer
    from tokenizers import Tokenizer

    try:
        saved = Tokenizer.from_file(str(path))
        saved.no_padding()
        saved.no_truncation()
        expected = [encoding.ids for encoding in saved.encode_batch(list(texts), add_special_tokens=False)]
    except Exception:  # noqa: BLE001  (of another version; that it cannot be compared is not an error)
        return tokenizer
    try:
        if tokenizer(list(texts), add_special_tokens=False)["input_ids"] == expected:
            return tokenizer
    except Exception as error:  # noqa: BLE001  (a class that does not fit may raise anything)
        log.debug("%s: %s", checkpoint, error)
    log.warning(
        "%s: %s does not read its tokenizer.json as it was saved: using tokenizer.json directly",
        checkpoint,
        type(tokenizer).__name__,
    )
    other = _read_json(checkpoint, _settings(checkpoint))
    if not other.chat_template:
        other.chat_template = tokenizer.chat_template
    if other.eos_token is None:
        other.eos_token = tokenizer.eos_token
    return other


def _read_json(checkpoint: Path, settings: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return the tokenizer of tokenizer.json, with the special tokens of the files beside it."""
    from transformers import PreTrainedTokenizerFast

    special = _load(checkpoint / "special_tokens_map.json") | settings
    tokens = {name: _text(special.get(name)) for name in _SPECIAL_TOKENS}
    template = _chat_template(checkpoint, settings)
    try:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_file=str(checkpoint / "tokenizer.json"),
            clean_up_tokenization_spaces=False,
            **{name: token for name, token in tokens.items() if token is not None},
        )
    except Exception as error:  # as above
        raise _not_loaded(checkpoint, error) from error
    tokenizer.chat_template = template
    return tokenizer


def _not_loaded(checkpoint: Path, error: Exception) -> EvaluationError:
    return EvaluationError(f"{checkpoint}: its tokenizer cannot be loaded: {one_line(error)}")


def _settings(checkpoint: Path) -> dict[str, Any]:
    return _load(checkpoint / "tokenizer_config.json")


def _chat_template(checkpoint: Path, settings: dict[str, Any]) -> Any:  # noqa: ANN401
    """Return a checkpoint's chat template from whichever file has it: one, or several by name, or None."""
    path = checkpoint / "chat_template.jinja"
    if path.is_file():
        others = {
            other.stem: other.read_text(encoding="utf-8")
            for other in sorted((checkpoint / "additional_chat_templates").glob("*.jinja"))
        }
        template: Any = path.read_text(encoding="utf-8")
        return {"default": template, **others} if others else template
    template = _load(checkpoint / "chat_template.json").get("chat_template") or settings.get("chat_template")
    if isinstance(template, list):  # as transformers 4 writes several
        return {part["name"]: part["template"] for part in template}
    return template


def _text(token: Any) -> str | None:  # noqa: ANN401
    """Return a special token as tokenizer_config.json may have it: a text, or a text with its properties."""
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _load(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
