"""The manifest: which model dirs there are, and which run each belongs to. Prepare, override, load.

A manifest may come from elsewhere and is not trusted: a model dir's name may not leave the results root.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.errors import UsageError
from eval_sidecar.ledger.lookalikes import is_clutter, is_model
from eval_sidecar.manifest.run_ids import infer_cb_setting, infer_dataset, run_key
from eval_sidecar.system.files import write_text
from eval_sidecar.types import ModelSpec, now_text

VERSION = 1


#: Keys of a model that overrides may set, and the types that they take.
_KEYS: dict[str, tuple[type, ...]] = {
    "dataset": (str,),
    "cb_setting": (str,),
    "eval_split": (str,),
    "seed": (int,),
    "num_beams": (int,),
    "sid_levels": (int,),
    "num_train_epochs": (int, float, type(None)),
    "wandb_group": (str, type(None)),
    "wandb_project": (str,),
    "wandb_entity": (str, type(None)),
    "wandb_run_id": (str, type(None)),
    "wandb_run_name": (str, type(None)),
    "variants": (list, dict, type(None)),
}


@dataclass(frozen=True)
class Defaults:
    """What a manifest says of a new model.

    Attributes:
        chosen: Which of these the user asked for: they also apply to models that the manifest already has.
        project: W&B project.
        entity: W&B entity, or None for the key's default.
        eval_split: Split that was evaluated.
        run_id_prefix: What comes before the hash in a run id.
    """

    project: str = "MIMIGenRec-Eval"
    entity: Optional[str] = None
    eval_split: str = "test"
    run_id_prefix: str = "eval"
    chosen: frozenset[str] = frozenset()


def write_manifest(
    results_root: Path,
    output: Path,
    *,
    overrides: Optional[Path] = None,
    defaults: Defaults = Defaults(),
) -> Path:
    """Write the manifest of every model dir below a results root; return its path.

    What an existing manifest says of a model is kept, also unknown keys, unless the user asks for something
    else: writing it again never moves a model to another run. If only the time would change, the file stays
    as it is.

    Raises:
        UsageError: if there are no results, or the overrides do not fit them.
        StateError: if it cannot be written.
    """
    before = _read_object(output) if output.exists() else {}
    known = {model.get("model_dir"): model for model in before.get("models") or [] if isinstance(model, dict)}
    names = _model_dirs(results_root, known)
    models = {name: {**_inferred(name, defaults), **known.get(name, {})} for name in names}
    prefixes = {name: _derived_prefix(model) for name, model in models.items()}
    for name, model in models.items():
        model.update(_chosen(defaults))
        if prefixes[name] is not None:
            model["wandb_run_id"] = None  # derived from the other keys; derive it again
    if overrides is not None:
        apply_overrides(models, read_overrides(overrides), str(overrides))
    asked = "run_id_prefix" in defaults.chosen
    rows = [
        _with_run(model, defaults.run_id_prefix if asked else prefixes[name] or defaults.run_id_prefix)
        for name, model in models.items()
    ]
    root = str(results_root)
    manifest = {**before, "version": VERSION, "results_root": root, "models": rows}
    if manifest != before:
        manifest = {"version": VERSION, "generated_at": now_text(), **_without_time(manifest)}
        # Fully indented, since people read and edit it.
        write_text(output, json.dumps(manifest, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
    return output


def _model_dirs(results_root: Path, known: Collection[Any]) -> list[str]:
    """Return the folders in a results root that are models: with a checkpoint in them, or known before."""
    try:
        folders = [path for path in results_root.iterdir() if path.is_dir() and not is_clutter(path.name)]
    except OSError as error:
        raise UsageError(f"{results_root}: results cannot be listed ({error.strerror})") from error
    for path in folders:
        require_text(path.name, str(results_root))
    return sorted(path.name for path in folders if path.name in known or is_model(path))


def _without_time(manifest: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in manifest.items() if key not in ("version", "generated_at")}


def _chosen(defaults: Defaults) -> dict[str, Any]:
    """Return the values that the user asked for, for every model."""
    keys = {"project": "wandb_project", "entity": "wandb_entity", "eval_split": "eval_split"}
    return {key: getattr(defaults, field) for field, key in keys.items() if field in defaults.chosen}


def _derived_prefix(model: Mapping[str, Any]) -> Optional[str]:
    """Return what is before the hash in a run id made from the model's other keys; None for another id."""
    run_id = str(model.get("wandb_run_id"))
    return run_id.rpartition("-")[0] if run_id.endswith(f"-{_key_of(model)}") else None


def _inferred(name: str, defaults: Defaults) -> dict[str, Any]:
    return {
        "model_dir": name,
        "dataset": infer_dataset(name),
        "cb_setting": infer_cb_setting(name),
        "eval_split": defaults.eval_split,
        "seed": 42,
        "num_beams": 50,
        "sid_levels": -1,
        "wandb_project": defaults.project,
        "wandb_entity": defaults.entity,
        "wandb_run_id": None,
        "wandb_run_name": None,
    }


def _with_run(model: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """Return the model with its run's id and name filled in if they are not given."""
    key = run_key(model["model_dir"], model["dataset"], model["cb_setting"], model["eval_split"])
    return {
        **model,
        "wandb_run_id": model.get("wandb_run_id") or f"{prefix}-{key}",
        "wandb_run_name": model.get("wandb_run_name") or f"{model['model_dir']}-eval",
    }


# -- overrides --------------------------------------------------------------------------------------


def read_overrides(path: Path) -> dict[str, dict[str, Any]]:
    """Return overrides by model dir, from ``{"models": {name: {…}}}``, a list of objects, or a bare mapping.

    Raises:
        UsageError: if the file is none of these.
    """
    value = _read_json(path)
    models = value.get("models", value) if isinstance(value, dict) else value
    if isinstance(models, list):
        if not all(isinstance(item, dict) and isinstance(item.get("model_dir"), str) for item in models):
            raise UsageError(f"{path}: each object of the list must have a model_dir")
        models = {
            item["model_dir"]: {key: found for key, found in item.items() if key != "model_dir"}
            for item in models
        }
    if not isinstance(models, dict) or not all(isinstance(item, dict) for item in models.values()):
        raise UsageError(
            f'{path}: has no overrides: give {{"models": {{"<model dir>": {{"<key>": value}}}}}}'
        )
    return {name: item for name, item in models.items() if not name.startswith("_")}


def apply_overrides(
    models: Mapping[str, dict[str, Any]], overrides: Mapping[str, Mapping[str, Any]], source: str
) -> None:
    """Change models in place.

    Raises:
        UsageError: naming every model dir and key that does not exist, with the nearest that does.
    """
    wrong = []
    for name, changes in overrides.items():
        if name not in models:
            wrong.append(f"there is no model dir {name!r}{_nearest(name, models)}")
        for key, value in changes.items():
            if key not in _KEYS:
                wrong.append(f"{name}: there is no key {key!r}{_nearest(key, _KEYS)}")
            elif not isinstance(value, _KEYS[key]) or isinstance(value, bool):
                wrong.append(f"{name}: {key} cannot be {json.dumps(value)}")
    if wrong:
        raise UsageError(f"{source}: " + "; ".join(wrong))
    for name, changes in overrides.items():
        models[name].update(changes)


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


# -- load -------------------------------------------------------------------------------------------


def load_manifest(path: Path, overrides: Optional[Path] = None) -> list[ModelSpec]:
    """Read a manifest, in its own order.

    Args:
        path: The manifest.
        overrides: Overrides on top of it, as if it had been prepared with them.

    Raises:
        UsageError: if it is missing, corrupt, from a newer version, or lists a model dir outside the
            results root or twice, or one run for two models.
    """
    manifest = _read_object(path)
    version = manifest.get("version")
    if not isinstance(version, int) or version > VERSION:
        raise UsageError(
            f"{path}: is of version {version}, this program supports {VERSION}; update eval-sidecar"
        )
    found = manifest.get("models")
    if not isinstance(found, list):
        raise UsageError(f"{path}: has no list of models; make it again with prepare-manifest")
    models: dict[str, dict[str, Any]] = {}
    for number, model in enumerate(found):
        name = _checked_name(model, f"{path}: models[{number}]")
        if name in models:
            raise UsageError(f"{path}: lists {name} twice")
        models[name] = dict(model)
    if overrides is not None:
        _apply_to_prepared(models, read_overrides(overrides), str(overrides))
    loaded = [_model(model, f"{path}: {name}") for name, model in models.items()]
    _refuse_shared_runs(loaded, path)
    return loaded


def _apply_to_prepared(
    models: dict[str, dict[str, Any]], overrides: Mapping[str, Mapping[str, Any]], source: str
) -> None:
    """Apply overrides; a run id that was derived from the old values is derived from the new ones."""
    derived = {
        name: prefix for name, model in models.items() if (prefix := _derived_prefix(model)) is not None
    }
    apply_overrides(models, overrides, source)
    for name, changes in overrides.items():
        if name in derived and "wandb_run_id" not in changes:
            models[name]["wandb_run_id"] = f"{derived[name]}-{_key_of(models[name])}"


def _key_of(model: Mapping[str, Any]) -> str:
    parts = [str(model.get(key)) for key in ("model_dir", "dataset", "cb_setting", "eval_split")]
    return run_key(*parts)


def _checked_name(model: Any, where: str) -> str:  # noqa: ANN401 - whatever the file holds
    name = model.get("model_dir") if isinstance(model, dict) else None
    if not isinstance(name, str) or not name:
        raise UsageError(f"{where}: has no model_dir")
    require_text(name, f"{where}: model_dir")
    if name in (".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise UsageError(f"{where}: model_dir {name!r} would leave the results root")
    return name


def require_text(name: str, where: str) -> None:
    """Refuse a model dir whose run could not have its name.

    Args:
        name: The model dir's name.
        where: What to say before it.

    Raises:
        UsageError: if it is not text.
    """
    try:
        name.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where} {name!r}: the name is not valid UTF-8; rename the folder") from error


def _model(model: Mapping[str, Any], where: str) -> ModelSpec:
    full = {**_inferred(model["model_dir"], Defaults()), **{k: v for k, v in model.items() if v is not None}}
    for key, kinds in _KEYS.items():
        value = full.get(key)
        if value is not None and (not isinstance(value, kinds) or isinstance(value, bool)):
            raise UsageError(f"{where}: {key} cannot be {json.dumps(value)}")
    full = _with_run(full, Defaults().run_id_prefix)
    epochs = full.get("num_train_epochs")
    return ModelSpec(
        model_dir=full["model_dir"],
        dataset=full["dataset"],
        cb_setting=full["cb_setting"],
        eval_split=full["eval_split"],
        seed=full["seed"],
        num_beams=full["num_beams"],
        sid_levels=full["sid_levels"],
        project=full["wandb_project"],
        entity=full.get("wandb_entity"),
        run_id=full["wandb_run_id"],
        run_name=full["wandb_run_name"],
        group=full.get("wandb_group"),
        num_train_epochs=float(epochs) if epochs else None,
    )


def _refuse_shared_runs(models: Iterable[ModelSpec], path: Path) -> None:
    owners: dict[tuple[Optional[str], str, str], str] = {}
    for spec in models:
        other = owners.setdefault((spec.entity, spec.project, spec.run_id), spec.model_dir)
        if other != spec.model_dir:
            raise UsageError(f"{path}: {other} and {spec.model_dir} have the same run id, {spec.run_id}")


def _read_object(path: Path) -> dict[str, Any]:
    value = _read_json(path)
    if not isinstance(value, dict):
        raise UsageError(f"{path}: holds a JSON {type(value).__name__}, not an object")
    return value


def _read_json(path: Path) -> Any:  # noqa: ANN401 - whatever the file holds
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise UsageError(f"{path}: there is no such file") from error
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: is not valid JSON ({error})") from error
