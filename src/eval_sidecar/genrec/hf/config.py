"""Reads a checkpoint's config.json with the installed transformers, which need not be the one that wrote it.

A version silently ignores what it does not know: transformers 4 reads a checkpoint of transformers 5 with the
default base of its rotary positions, and gives other numbers. So settings that are known to have moved are
translated first, and what cannot be translated is refused.
"""

from __future__ import annotations

import copy
import json
import logging
from pathlib import Path
from typing import Any

import transformers as _transformers

from eval_sidecar.genrec.errors import EvaluationError, one_line

log = logging.getLogger(__name__)

#: Untyped on purpose: its types differ between the versions that are supported.
transformers: Any = _transformers
# transformers imports what a class needs when the class is first named; here that is done with this module.
_AutoConfig = transformers.AutoConfig

VERSION = tuple(int(part) for part in transformers.__version__.split(".")[:2])

#: transformers 5 has the settings of rotary positions in one dictionary, and only it reads that.
_ROPE_PARAMETERS_SINCE = (5, 0)

#: What models of transformers 4 call a setting of ``rope_parameters``, if not by its own name.
_ROPE_NAMES = {
    "gpt_neox": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
    "gpt_neox_japanese": {"rope_theta": "rotary_emb_base", "partial_rotary_factor": "rotary_pct"},
}

#: Where transformers 4 has the base of rotary positions of each kind of layer: full, sliding.
_ROPE_OF_LAYERS = {
    "gemma3_text": ("rope_theta", "rope_local_base_freq"),
    "gemma3n_text": ("rope_theta", "rope_local_base_freq"),
    "modernbert-decoder": ("global_rope_theta", "local_rope_theta"),
}

#: A window of attention that is longer has no effect on any prompt and its item.
LONGEST_PROMPT = 1024

#: Settings that a version need not know: they change nothing for an evaluation, or are translated.
_HANDLED = {
    "transformers_version", "dtype", "torch_dtype", "architectures", "auto_map", "_name_or_path",
    "rope_parameters", "num_local_experts", "layer_types", "_sliding_window_pattern", "scale_decoder_outputs",
}  # fmt: skip


def load_config(source: str, checkpoint: str, trust_remote_code: bool) -> Any:  # noqa: ANN401
    """Return the config of a model, translated for the installed transformers.

    Args:
        source: Folder or hub name of the model.
        checkpoint: The checkpoint that needs it, for messages.
        trust_remote_code: Whether code that comes with the checkpoint may be run.

    Raises:
        EvaluationError: If it cannot be read, or only by another version or by the checkpoint's own code.
    """
    where = checkpoint if source == checkpoint else f"{checkpoint}: its base model {source}"
    try:
        written, _ = transformers.PretrainedConfig.get_config_dict(source)
    except Exception as error:  # broken files raise whatever the library in charge raises
        raise EvaluationError(f"{where}: config.json cannot be read: {one_line(error)}") from error
    check_known(written, where, trust_remote_code)
    try:
        config = _AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
        translated = translate(written)
        if translated != written:
            config = type(config).from_dict(translated)
            config.name_or_path = source
    except EvaluationError:
        raise
    except Exception as error:  # noqa: BLE001  (as above)
        # A setting in a newer form makes a version fail before its translation is tried.
        config = _from_translation(written, where, error)
    _check_understood(config, written, where)
    return config


def _from_translation(written: dict[str, Any], where: str, error: Exception) -> Any:  # noqa: ANN401
    try:
        return _AutoConfig.for_model(written["model_type"], **_without_type(translate(written)))
    except Exception:  # noqa: BLE001  (the first error is the one to show)
        raise EvaluationError(f"{where}: config.json cannot be read: {one_line(error)}") from error


def _without_type(settings: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name != "model_type"}


def is_encoder_decoder(checkpoint: Path) -> bool:
    """Return whether a checkpoint's model has an encoder for its prompts, from its files alone."""
    with_model, adapter = _read(checkpoint / "config.json"), _read(checkpoint / "adapter_config.json")
    if with_model is None:
        return bool(adapter and adapter.get("task_type") == "SEQ_2_SEQ_LM")
    if "is_encoder_decoder" in with_model:
        return bool(with_model["is_encoder_decoder"])
    try:
        return bool(_AutoConfig.for_model(with_model["model_type"]).is_encoder_decoder)
    except Exception:  # noqa: BLE001  (loading the model will say what is wrong)
        return False


def check_known(written: dict[str, Any], where: str, trust_remote_code: bool) -> None:
    """Check that the installed transformers knows a model's type, or may load it from the checkpoint.

    Raises:
        EvaluationError: If it does not know it, and code from the checkpoint is not allowed.
    """
    kind = written.get("model_type")
    if kind in getattr(transformers, "CONFIG_MAPPING", {kind: None}):
        return
    if written.get("auto_map"):
        if trust_remote_code:
            return
        raise EvaluationError(
            f"{where}: model type {kind!r} would run code from the checkpoint (auto_map in config.json): "
            "if you trust that code, allow it with TRUST_REMOTE_CODE=True or --trust-remote-code True"
        )
    if kind is None:
        raise EvaluationError(f"{where}: config.json has no model_type, so it is not a transformers model")
    raise EvaluationError(
        f"{where}: model type {kind!r} is not known to the installed transformers {transformers.__version__} "
        f"(saved by {written.get('transformers_version', 'an unknown version')}): pip install -U transformers"
    )


def translate(written: dict[str, Any]) -> dict[str, Any]:
    """Return a config's settings under the names that the installed transformers reads.

    Raises:
        EvaluationError: If these names cannot express them.
    """
    settings: dict[str, Any] = _plain_numbers(copy.deepcopy(written))
    for name in ("text_config", "decoder", "encoder"):
        if isinstance(settings.get(name), dict):
            settings[name] = translate(settings[name])
    if VERSION < (4, 56) and "dtype" in settings:
        settings.setdefault("torch_dtype", settings["dtype"])
    if VERSION < _ROPE_PARAMETERS_SINCE:
        _translate_rope(settings)
    if VERSION < (5, 12):
        kind, rope = str(settings.get("model_type")), settings.get("rope_parameters") or {}
        if "num_local_experts" in settings and kind.startswith("qwen3"):
            settings.setdefault("num_experts", settings["num_local_experts"])
        for name, old in _ROPE_NAMES.get(kind, {}).items():  # 5.0 still reads these, and prefers them
            if name in rope:
                settings.setdefault(old, rope[name])
    if VERSION < (4, 53):
        _translate_layers(settings)
    _translate_scaled_output(settings)
    return settings


def _plain_numbers(value: Any) -> Any:  # noqa: ANN401
    """Return a setting with infinities as numbers, which transformers 5 writes as ``{"__float__": …}``."""
    if isinstance(value, dict):
        if set(value) == {"__float__"}:
            return float(value["__float__"])
        return {name: _plain_numbers(part) for name, part in value.items()}
    return [_plain_numbers(part) for part in value] if isinstance(value, list) else value


def _translate_rope(settings: dict[str, Any]) -> None:
    """Say ``rope_parameters`` as transformers 4 does: a base, a share and a scaling."""
    rope = settings.pop("rope_parameters", None)
    if not isinstance(rope, dict):
        return
    kind = str(settings.get("model_type"))
    if any(isinstance(part, dict) for part in rope.values()):
        full, sliding = rope.get("full_attention"), rope.get("sliding_attention")
        if kind not in _ROPE_OF_LAYERS or not full or not sliding:
            raise _not_readable(f"rope_parameters of model type {kind!r}", settings)
        names = _ROPE_OF_LAYERS[kind]
        if sliding.get("rope_type", "default") != "default":
            raise _not_readable("scaled rotary positions of sliding layers", settings)
        settings[names[1]] = sliding["rope_theta"]
        rope = {**full, names[0]: full["rope_theta"]}
        settings[names[0]] = full["rope_theta"]
    rope = dict(rope)
    for name in ("rope_theta", "partial_rotary_factor"):
        value = rope.pop(name, None)
        if value is not None:
            settings.setdefault(_ROPE_NAMES.get(kind, {}).get(name, name), value)
    if rope.get("rope_type", rope.get("type", "default")) != "default":
        if kind == "phi3":  # which accepts nothing else
            rope = {"type": "longrope", **{name: rope[name] for name in ("short_factor", "long_factor")}}
        settings["rope_scaling"] = rope


def _translate_layers(settings: dict[str, Any]) -> None:
    """Write ``layer_types`` as transformers before 4.53 does: a full layer after n sliding ones."""
    kinds = settings.get("layer_types")
    if not kinds or set(kinds) != {"full_attention", "sliding_attention"}:
        return
    pattern = kinds.index("full_attention") + 1
    expected = ["sliding_attention" if (n + 1) % pattern else "full_attention" for n in range(len(kinds))]
    if kinds == expected:
        settings["sliding_window_pattern"] = pattern
    elif (settings.get("sliding_window") or LONGEST_PROMPT) < LONGEST_PROMPT:
        raise _not_readable("layer_types", settings)


def _translate_scaled_output(settings: dict[str, Any]) -> None:
    """T5 scales its decoder's output or not; transformers 4 tells that by whether its weights are tied."""
    if settings.get("model_type") not in ("t5", "mt5", "umt5", "longt5", "switch_transformers"):
        return
    if VERSION < (5, 0):
        if settings.get("scale_decoder_outputs") is False:
            settings["tie_word_embeddings"] = False
    elif settings.get("tie_word_embeddings") is False:
        settings.setdefault("scale_decoder_outputs", False)


def _not_readable(what: str, settings: dict[str, Any]) -> EvaluationError:
    return EvaluationError(
        f"config.json was saved by transformers {settings.get('transformers_version', '5')}, and the "
        f"installed {transformers.__version__} cannot express its {what}: pip install -U transformers"
    )


def _check_understood(config: Any, written: dict[str, Any], where: str) -> None:  # noqa: ANN401
    """Check that settings were taken in, of which other numbers would come if they were not.

    Raises:
        EvaluationError: If the installed version ignores a setting that it should know.
    """
    if "rope_parameters" not in written or VERSION >= _ROPE_PARAMETERS_SINCE:
        _name_unknown(config, written, where)
        return
    known = vars(type(config)())
    moved = {**written}
    _translate_rope(moved)
    for name in ("rope_theta", "partial_rotary_factor", "rope_scaling", "rotary_emb_base", "rotary_pct"):
        value = moved.get(name)
        harmless = value is None or (name == "partial_rotary_factor" and value == 1.0)
        if not harmless and name not in written and not hasattr(type(config), name) and name not in known:
            raise EvaluationError(f"{where}: {_not_readable(name, written)}")
    _name_unknown(config, written, where)


def _name_unknown(config: Any, written: dict[str, Any], where: str) -> None:  # noqa: ANN401
    """Say which settings of a newer version the installed one does not know: they may matter."""
    version = str(written.get("transformers_version", ""))
    try:
        newer = tuple(int(part) for part in version.split(".")[:2]) > VERSION
    except ValueError:
        return
    if not newer:
        return
    try:
        known = {*type(config)().to_dict(), *getattr(config, "attribute_map", {}), *_HANDLED}
    except Exception:  # noqa: BLE001  (a class that cannot be made without settings says nothing)
        return
    unknown = sorted(
        name for name, value in written.items() if name not in known and value not in (None, False)
    )
    if unknown:
        log.warning(
            "%s: saved by transformers %s; the installed %s does not know %s in its config.json",
            where,
            version,
            transformers.__version__,
            ", ".join(unknown[:5]),
        )


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
