"""Loads a checkpoint's model, as ``save_pretrained`` writes it or as a PEFT adapter over its base."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import torch

from eval_sidecar.genrec.errors import EvaluationError, one_line
from eval_sidecar.genrec.hf.config import VERSION, load_config, transformers
from eval_sidecar.genrec.hf.forward import LanguageModel
from eval_sidecar.installation import install_command

log = logging.getLogger(__name__)

# As in hf.config: imported with this module, not at its first use.
_AutoModel, _ = transformers.AutoModelForCausalLM, transformers.PreTrainedModel

#: Classes whose head predicts something else than tokens. Their weights may still fit a language model.
_OTHER_HEADS = re.compile(
    r"For(Sequence|Token|Image|Audio)Classification|ForQuestionAnswering|ForMultipleChoice|ForMaskedLM|"
    r"ForNextSentencePrediction|RewardModel|ValueHead"
)


def load_model(checkpoint: Path, device: torch.device, trust_remote_code: bool = False) -> LanguageModel:
    """Load the model of a checkpoint onto a device, in evaluation mode.

    On a GPU it has the precision that its config names, on a CPU float32 (half precision is slow there).
    An adapter is merged into its base model, which makes it as fast as a model without one.

    Raises:
        EvaluationError: If the checkpoint, or the base model of its adapter, is missing, broken, not a
            language model, or needs its own code without permission to run it.
    """
    if not transformers.utils.is_torch_available():  # it is: imported above
        raise EvaluationError(
            f"transformers {transformers.__version__} does not work with torch {torch.__version__}: install a"
            " newer torch, or an older transformers"
        )
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if (checkpoint / "config.json").is_file():
        model = _load_pretrained(str(checkpoint), device, str(checkpoint), trust_remote_code)
    elif (checkpoint / "adapter_config.json").is_file():
        model = _load_adapter(checkpoint, device, trust_remote_code)
    else:
        raise EvaluationError(
            f"{checkpoint}: not a checkpoint: it contains neither config.json nor adapter_config.json"
        )
    return LanguageModel(model.to(device).eval())


def _load_pretrained(source: str, device: torch.device, checkpoint: str, trust_remote_code: bool) -> Any:  # noqa: ANN401
    """Load a whole model; every weight must come from the files."""
    config = load_config(source, checkpoint, trust_remote_code)
    what = "its model" if source == checkpoint else f"its base model {source}"
    kind = _find_class(config, f"{checkpoint}: {what}")
    dtype: Any = torch.float32 if device.type == "cpu" else "auto"
    options = {
        "config": config,
        "dtype" if VERSION >= (4, 56) else "torch_dtype": dtype,
        "trust_remote_code": trust_remote_code,
        "output_loading_info": True,
    }
    try:
        model, report = _load_weights(kind, source, options)
    except Exception as error:  # broken files raise whatever the library in charge raises
        raise EvaluationError(f"{checkpoint}: {what} cannot be loaded: {one_line(error)}") from error
    # transformers fills what is missing with random numbers, with only a warning.
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise EvaluationError(
            f"{checkpoint}: {len(missing)} weights are missing or have another shape in {source}, such as "
            f"{missing[0]} (is it still being written?)"
        )
    _restore_frequencies(model, checkpoint)
    unused = sorted(report["unexpected_keys"])
    if unused:
        log.warning(
            "%s: %d weights in %s are not used by %s, such as %s",
            checkpoint,
            len(unused),
            source,
            type(model).__name__,
            unused[0],
        )
    return model


def _restore_frequencies(model: Any, checkpoint: str) -> None:  # noqa: ANN401
    """Set the frequencies of rotary positions that were left uninitialised.

    They are not in any file, and transformers 5.0 does not set those of some models (RecurrentGemma). A
    module that is created from the config alone has the right ones.

    Raises:
        EvaluationError: If they cannot be recomputed.
    """
    for name, buffer in model.named_buffers():
        # A frequency is a power of the base, from 1 down, divided by what scales it.
        if not name.endswith("inv_freq") or bool(((buffer > 1e-12) & (buffer <= 1.001)).all()):
            continue
        owner, _, own_name = name.rpartition(".")
        try:
            fresh = dict(type(model.get_submodule(owner))(model.config).named_buffers())[own_name]
            buffer.copy_(fresh.to(buffer.device, buffer.dtype))
        except Exception as error:
            raise EvaluationError(
                f"{checkpoint}: transformers {transformers.__version__} leaves {name} of a "
                f"{type(model).__name__} unset: install another version"
            ) from error


def _find_class(config: Any, what: str) -> Any:  # noqa: ANN401
    """Return the class that loads a model with a language-model head.

    Raises:
        EvaluationError: If the checkpoint's model has another kind of head.
    """
    heads = [str(name) for name in getattr(config, "architectures", None) or ()]
    other = [name for name in heads if _OTHER_HEADS.search(name)]
    if other:
        raise EvaluationError(
            f"{what} cannot be evaluated: it is a {other[0]}, which has neither a causal nor an "
            "encoder-decoder language-model head"
        )
    if getattr(config, "is_encoder_decoder", False):
        return transformers.AutoModelForSeq2SeqLM
    return _AutoModel


def _load_weights(kind: Any, source: str, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:  # noqa: ANN401
    """Return a model and what was missing, with the quickest attention that computes the same numbers."""
    if getattr(options["config"].get_text_config(), "attn_logit_softcapping", None):
        # In earlier versions, 5.0 among them, the other kinds silently ignore the cap.
        loaded: tuple[Any, dict[str, Any]] = kind.from_pretrained(
            source, attn_implementation="eager", **options
        )
        return loaded
    try:
        loaded = kind.from_pretrained(source, attn_implementation="sdpa", **options)
    except (ValueError, ImportError) as error:
        if "attention" not in str(error).lower():
            raise
        loaded = kind.from_pretrained(source, **options)  # what the model has instead
    return loaded


def _load_adapter(checkpoint: Path, device: torch.device, trust_remote_code: bool) -> Any:  # noqa: ANN401
    """Load an adapter's base model, put the adapter on it, and merge the two."""
    try:
        config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
        source = config["base_model_name_or_path"]
        if not isinstance(source, str) or not source:
            raise ValueError(f"base_model_name_or_path is {source!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{checkpoint}: adapter_config.json does not name a base model: {one_line(error)}"
        ) from None
    try:
        from peft import PeftModel
    except ImportError:
        raise EvaluationError(
            f"{checkpoint}: is a PEFT adapter, and peft is not installed: run {install_command('peft')}"
        ) from None
    if source.startswith((".", "/", "~")):
        source = str(Path(source).expanduser())
        if not Path(source).is_dir():
            raise EvaluationError(
                f"{checkpoint}: its base model {source} (base_model_name_or_path in adapter_config.json) "
                "cannot be found"
            )
    model = _load_pretrained(source, device, str(checkpoint), trust_remote_code)
    try:
        rows = _adapter_vocabulary(checkpoint)
        if rows and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)  # the adapter brings these rows
        return PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload()
    except Exception as error:  # as above
        raise EvaluationError(f"{checkpoint}: its adapter cannot be loaded: {one_line(error)}") from error


def _adapter_vocabulary(checkpoint: Path) -> int | None:
    """Return the rows of the embedding that an adapter saves, None if it saves none."""
    path = checkpoint / "adapter_model.safetensors"
    if not path.is_file():
        return None
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            if name.endswith(("embed_tokens.weight", "lm_head.weight", "shared.weight")):
                return int(file.get_slice(name).get_shape()[0])
    return None
