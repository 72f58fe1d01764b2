"""Calls a language model in one way, whatever its version of transformers calls the arguments."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

from eval_sidecar.genrec.errors import EvaluationError

#: Names that arguments of ``forward`` have had, newest first; others are guessed from the signature.
CACHE_NAMES = ("cache", "past_key_values", "cache_params")
MASK_NAMES = ("attention_mask",)
POSITION_NAMES = ("position_ids",)
LAST_LOGITS_NAMES = ("logits_to_keep", "num_logits_to_keep")

#: Arguments that are not among the above, whatever their names contain.
_OTHER_NAMES = {"input_ids", "inputs_embeds", "labels", "use_cache", "cache_position", "return_dict"}


@dataclass(frozen=True)
class Names:
    """What ``forward`` calls the arguments that a search needs."""

    cache: str = CACHE_NAMES[0]
    mask: str = MASK_NAMES[0]
    positions: str = POSITION_NAMES[0]


class LanguageModel:
    """A model with a causal or encoder-decoder language-model head.

    Its ``forward`` takes token ids first and returns logits; nothing else is assumed. Whether it understands
    a cache, a mask or positions under ``names`` is found out by comparing logits
    (:mod:`eval_sidecar.genrec.checks`).

    Attributes:
        module: The model of transformers, in evaluation mode.
        names: The names that are used.
        keeps_state: Whether its layers keep a state from call to call, which only starting a cache clears.
    """

    def __init__(self, module: Any) -> None:  # noqa: ANN401
        self.module = module
        self.names = Names()
        self.keeps_state = False
        self._refused: set[str] = set()

    @property
    def name(self) -> str:
        """The model's class, for messages."""
        return type(self.module).__name__

    @property
    def device(self) -> torch.device:
        """Where its weights are."""
        device: torch.device = next(self.module.parameters()).device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of its weights."""
        dtype: torch.dtype = self.module.dtype
        return dtype

    @property
    def vocabulary(self) -> int:
        """Token ids that it knows."""
        config = self.module.config
        size = getattr(config, "vocab_size", None)
        if not isinstance(size, int):  # a model of several parts
            size = config.get_text_config(decoder=self.is_encoder_decoder).vocab_size
        return int(size)

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether a prompt is read by an encoder, and an item is written by a decoder."""
        return bool(getattr(self.module.config, "is_encoder_decoder", False))

    def decoder_prefix(self) -> tuple[int, ...]:
        """Return the ids that an encoder-decoder model's answer begins with, as ``generate()`` has them.

        Raises:
            EvaluationError: If its config has none.
        """
        start = self._generation_setting("decoder_start_token_id")
        if start is None:
            start = self._generation_setting("bos_token_id")
        if start is None:
            raise EvaluationError(
                f"{self.name} cannot be evaluated: neither generation_config.json nor config.json names a "
                "decoder_start_token_id, which its answers begin with"
            )
        forced = self._generation_setting("forced_bos_token_id")
        return (int(start),) if forced is None else (int(start), int(forced))

    def encode(self, ids: torch.Tensor) -> torch.Tensor:
        """Return an encoder's hidden states of prompts of one length; (rows, tokens, width)."""
        output = self.module.get_encoder()(ids)
        hidden: torch.Tensor = output[0]
        return hidden

    def forward(
        self,
        ids: torch.Tensor,
        *,
        cache: Any = None,  # noqa: ANN401
        caching: bool = False,
        last: bool = False,
        mask: torch.Tensor | None = None,
        positions: torch.Tensor | None = None,
        encoded: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Any]:
        """Return the logits after tokens, and the cache that has taken these in.

        Args:
            ids: Token ids; (rows, tokens). Of an encoder-decoder model, the decoder's.
            cache: What an earlier call has returned, or :func:`keep_all_cache`.
            caching: Whether a cache is wanted.
            last: Whether the logits after the last token are enough.
            mask: Additive attention mask; (rows, 1, tokens, slots).
            positions: Position of each token; (rows, tokens).
            encoded: What :meth:`encode` has returned, one row for each row of ``ids``.

        Returns:
            Logits in the model's precision, (rows, tokens or 1, vocabulary), and the cache, or None.
        """
        needed: dict[str, Any] = {}
        if cache is not None:
            needed[self.names.cache] = cache
        if mask is not None:
            needed[self.names.mask] = mask
        if positions is not None:
            needed[self.names.positions] = positions
        if self.keeps_state and not caching:
            self._call(ids[:, :1].expand(-1, 2), encoded, {}, caching=True, last=True)
        output = self._call(ids, encoded, needed, caching, last)
        logits: torch.Tensor = output.logits if hasattr(output, "logits") else output[0]
        kept = [value for name, value in _items(output) if _is_cache(name, value)] if caching else []
        return (logits[:, -1:] if last else logits), (kept[0] if kept else None)

    def candidates(self) -> Iterator[Names]:
        """Yield the names to try: the model's own name of its cache, known names, guesses."""
        try:
            two = torch.ones((1, 2), dtype=torch.long, device=self.device)
            encoded = self.encode(two) if self.is_encoder_decoder else None
            output = self._call(two, encoded, {}, caching=True, last=True)
            reported = [name for name, value in _items(output) if _is_cache(name, value)]
        except Exception:  # noqa: BLE001  (a model that has no cache may say so in any way)
            reported = []
        caches = [*reported, *CACHE_NAMES, *self._guess("cache", "past", "")]
        masks = [*MASK_NAMES, *self._guess("mask")]
        positions = [*POSITION_NAMES, *self._guess("pos")]
        for names in product(dict.fromkeys(caches), dict.fromkeys(masks), dict.fromkeys(positions)):
            if len(set(names)) == len(names):
                yield Names(*names)

    def _call(
        self,
        ids: torch.Tensor,
        encoded: torch.Tensor | None,
        needed: Mapping[str, Any],
        caching: bool,
        last: bool,
    ) -> Any:  # noqa: ANN401
        """Call the model; optional arguments that it does not know are left out from then on."""
        while True:
            spared: dict[str, Any] = {"use_cache": caching}
            if last:  # only the last logits are needed
                spared |= dict.fromkeys([n for n in LAST_LOGITS_NAMES if n not in self._refused][:1], 1)
            spared = {name: value for name, value in spared.items() if name not in self._refused}
            try:
                if encoded is None:
                    return self.module(ids, **needed, **spared)
                from transformers.modeling_outputs import BaseModelOutput

                states = BaseModelOutput(last_hidden_state=encoded)
                return self.module(decoder_input_ids=ids, encoder_outputs=states, **needed, **spared)
            except (TypeError, ValueError) as error:
                unknown = {name for name in spared if f"'{name}'" in str(error)}
                if not unknown:
                    raise
                self._refused |= unknown

    def _guess(self, *hints: str) -> Sequence[str]:
        """Return names from the signature that hold a hint; the first hint's names come first."""
        try:
            parameters = inspect.signature(self.module.forward).parameters.values()
        except (TypeError, ValueError):
            return []
        names = [
            parameter.name
            for parameter in parameters
            if parameter.default is None and parameter.name not in _OTHER_NAMES
        ]
        names = [name for name in names if not name.startswith("output_")]
        return [name for hint in hints for name in names if hint in name]

    def _generation_setting(self, name: str) -> Any:  # noqa: ANN401
        for settings in (getattr(self.module, "generation_config", None), self.module.config):
            value = getattr(settings, name, None)
            if value is not None:
                return value
        return None


def keep_all_cache() -> Any:  # noqa: ANN401
    """Return a cache of which every layer keeps all slots, sliding windows included."""
    from transformers import DynamicCache

    return DynamicCache()  # without a config


def select_rows(cache: Any, rows: torch.Tensor) -> Any:  # noqa: ANN401
    """Return a cache that holds the given rows of another one, which may be changed in place.

    Args:
        cache: A cache of transformers, or nested tuples of tensors.
        rows: Row of the cache for each row of the new one, which may have more; long, (new rows,).

    Raises:
        TypeError: If it can be neither reordered nor taken apart.
    """
    if hasattr(cache, "reorder_cache"):
        cache.reorder_cache(rows)
        return cache
    if isinstance(cache, torch.Tensor):
        return cache.index_select(0, rows)
    if isinstance(cache, (tuple, list)) and type(cache) in (tuple, list):
        return type(cache)(select_rows(part, rows) for part in cache)
    raise TypeError(f"its cache ({type(cache).__name__}) cannot be reordered")


def _items(output: Any) -> list[tuple[str, Any]]:  # noqa: ANN401
    return list(output.items()) if isinstance(output, Mapping) else []


def _is_cache(name: str, value: Any) -> bool:  # noqa: ANN401
    return value is not None and (name in CACHE_NAMES or hasattr(value, "reorder_cache"))
