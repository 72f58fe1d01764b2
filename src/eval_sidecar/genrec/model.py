"""Loads a checkpoint's model, as ``save_pretrained`` writes it or as a PEFT adapter over its base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
import transformers as _transformers

from eval_sidecar.genrec.errors import EvaluationError, one_line
from eval_sidecar.installation import install_command

#: Untyped on purpose: its types differ between the versions that are supported.
transformers: Any = _transformers
# transformers imports what a class needs when the class is first named; here that is done with this module.
_AutoModel, _ = transformers.AutoModelForCausalLM, transformers.PreTrainedModel


def load_model(checkpoint: Path, device: torch.device) -> Any:  # noqa: ANN401
    """Load the model of a checkpoint onto a device, in evaluation mode.

    On a GPU it has the precision that its config names, on a CPU float32 (half precision is slow there).
    An adapter is merged into its base model, which makes it as fast as a model without one.

    Raises:
        EvaluationError: The checkpoint, or the base model of its adapter, is missing or broken.
    """
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if (checkpoint / "config.json").is_file():
        model = _load_pretrained(str(checkpoint), device, str(checkpoint))
    elif (checkpoint / "adapter_config.json").is_file():
        model = _load_adapter(checkpoint, device)
    else:
        raise EvaluationError(
            f"{checkpoint}: no checkpoint: it holds neither config.json nor adapter_config.json"
        )
    return model.to(device).eval()


def _load_pretrained(source: str, device: torch.device, checkpoint: str) -> Any:  # noqa: ANN401
    """Load a whole model; every weight must come from the files."""
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    dtype: Any = torch.float32 if device.type == "cpu" else "auto"
    options = {"dtype" if version >= (4, 56) else "torch_dtype": dtype}
    try:
        model, report = _AutoModel.from_pretrained(
            source, attn_implementation="sdpa", output_loading_info=True, **options
        )
    except Exception as error:  # broken files raise whatever the library in charge raises
        what = "its model" if source == checkpoint else f"its base model {source}"
        raise EvaluationError(f"{checkpoint}: {what} cannot be loaded: {one_line(error)}") from error
    # transformers fills what is missing with random numbers, and says so in a warning only.
    missing = sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"])
    if missing:
        raise EvaluationError(
            f"{checkpoint}: {len(missing)} weights are missing or have another shape in {source}, such as "
            f"{missing[0]} (is it still being written?)"
        )
    return model


def _load_adapter(checkpoint: Path, device: torch.device) -> Any:  # noqa: ANN401
    """Load an adapter's base model, put the adapter on it, and merge the two."""
    try:
        config = json.loads((checkpoint / "adapter_config.json").read_text(encoding="utf-8"))
        source = config["base_model_name_or_path"]
        if not isinstance(source, str) or not source:
            raise ValueError(f"base_model_name_or_path is {source!r}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EvaluationError(
            f"{checkpoint}: adapter_config.json names no base model: {one_line(error)}"
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
    model = _load_pretrained(source, device, str(checkpoint))
    try:
        rows = _adapter_vocabulary(checkpoint)
        if rows and rows != model.get_input_embeddings().weight.shape[0]:
            model.resize_token_embeddings(rows, mean_resizing=False)  # the adapter brings these rows
        return PeftModel.from_pretrained(model, str(checkpoint)).merge_and_unload()
    except Exception as error:  # as above
        raise EvaluationError(f"{checkpoint}: its adapter cannot be loaded: {one_line(error)}") from error


def _adapter_vocabulary(checkpoint: Path) -> int | None:
    """Return the rows of the embedding that an adapter saves, None where it saves none."""
    path = checkpoint / "adapter_model.safetensors"
    if not path.is_file():
        return None
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118  (no mapping)
            if name.endswith(("embed_tokens.weight", "lm_head.weight")):
                return int(file.get_slice(name).get_shape()[0])
    return None
