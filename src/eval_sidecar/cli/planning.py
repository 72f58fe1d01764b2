"""From the flags of a watch to its configuration: what they name is looked for and checked."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Optional

from eval_sidecar.checkpoints.space import Limits
from eval_sidecar.cli.flags import UPLOAD_STATE, ScriptFlags, WatchFlags
from eval_sidecar.cli.launching import choose_launcher
from eval_sidecar.errors import UsageError
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.installation import EVALUATION_SCRIPT, own_evaluation_script
from eval_sidecar.launchers.base import Launcher
from eval_sidecar.ledger.settings import Settings
from eval_sidecar.manifest.manifest import require_text
from eval_sidecar.manifest.run_ids import dataset_of_test_data, infer_cb_setting, run_key
from eval_sidecar.paths import ManagerPaths
from eval_sidecar.system.scripts import why_no_shell_script
from eval_sidecar.types import ModelSpec, step_of

#: What file systems take as one name, in bytes.
_LONGEST_NAME = 255
#: Flags that say where and how long evaluations run.
_PLACEMENT = (
    "cuda_list",
    "gpus_per_eval",
    "launcher",
    "warm",
    "eval_timeout_seconds",
    "slurm_partition",
    "slurm_gres",
    "slurm_time",
    "slurm_extra",
)
#: Flags that bear on the numbers, beside the files.
_BEARING = (
    "category",
    "num_beams",
    "max_new_tokens",
    "temperature",
    "do_sample",
    "length_penalty",
    "sid_levels",
    "seed",
)


@dataclass(frozen=True)
class WatchPlan:
    """Everything that watching needs, checked.

    Attributes:
        config: What to evaluate and how.
        spec: The model and its run.
        state_dir: Where the ledger is.
        launcher: What runs the evaluations.
        flags: The flags, for what concerns the command line alone.
    """

    config: WatchConfig
    spec: ModelSpec
    state_dir: Path
    launcher: Launcher
    flags: WatchFlags


def plan_watch(flags: WatchFlags, log_folder: Path) -> WatchPlan:
    """Check the flags and what they name.

    Raises:
        UsageError: if one is wrong; names the flag and the path.
    """
    repo_root = Path(os.path.abspath(flags.repo_root))
    _require_folder(repo_root, "--repo-root")
    model_dir = _find_model_dir(flags.sft_root, repo_root)
    model = name_of_model(flags.model_name, model_dir)
    eval_script = _find_runnable_script(flags.eval_script, repo_root)
    data = Path("data") / flags.category
    test_data = find_path(flags.test_data_path or data / "sft" / "test.json", repo_root)
    _require_file(test_data, "--test-data-path", "the test set")
    index = find_path(flags.index_path or data / "id2sid.json", repo_root)
    _require_file(index, "--index-path", "the item index")
    _require_writable(repo_root / "results")
    spec = _spec(flags, model, test_data)
    config = WatchConfig(
        model_dir=model_dir,
        repo_root=repo_root,
        eval_script=eval_script,
        environment=_environment(flags, test_data, index),
        log_dir=ManagerPaths(log_folder).evaluations,
        ready_seconds=flags.checkpoint_ready_seconds,
        max_pending=flags.max_pending_per_cycle,
        newest_first=flags.order == "newest",
        force=flags.force_eval,
        time_limit=flags.eval_timeout_seconds,
        limits=Limits(
            floor=flags.min_free_space,
            most=flags.max_pins,
            size=flags.max_pin_size,
        ),
        name=model,
        settings=_settings(flags, spec, test_data_path=test_data, index_path=index, eval_script=eval_script),
        placement={name: getattr(flags, name) for name in _PLACEMENT},
        force_anew=flags.once,
    )
    return WatchPlan(
        config=config,
        spec=spec,
        state_dir=state_folder(flags.state_dir, repo_root),
        launcher=choose_launcher(flags, flags.poll_interval_seconds),
        flags=flags,
    )


def _environment(flags: ScriptFlags, test_data: Path, index: Path) -> dict[str, str]:
    """Return the variables that the evaluation script gets."""
    return {
        **{field.name.upper(): str(getattr(flags, field.name)) for field in fields(ScriptFlags)},
        "PYTHON_BIN": flags.python_bin or sys.executable,
        "EVAL_SIDECAR_PYTHON": sys.executable,
        "TEST_DATA_PATH": str(test_data),
        "INDEX_PATH": str(index),
    }


def _find_model_dir(given: Optional[str], repo_root: Path) -> Path:
    if not given:
        raise UsageError(
            "--sft-root is missing: give the folder that holds the checkpoint-* folders of the training to"
            " watch (to upload results of another machine instead, use `upload`)"
        )
    model_dir = find_path(given, repo_root)
    if model_dir.exists():  # else it is waited for
        _require_folder(model_dir, "--sft-root")
    if step_of(model_dir.name) is not None:
        raise UsageError(f"--sft-root {model_dir}: is itself a checkpoint; name the folder that holds it")
    return model_dir


def _find_runnable_script(given: Optional[str], repo_root: Path) -> Path:
    script = find_script(given, repo_root)
    hint = f"--repo-root is {repo_root}; without --eval-script, the one that comes with eval-sidecar is run"
    _require_file(script, "--eval-script", hint)
    if problem := why_no_shell_script(script):
        raise UsageError(f"--eval-script {script}: {problem}")
    return script


def name_of_model(given: Optional[str], model_dir: Path) -> str:
    """Return what a model is called: as given, or as its folder.

    Raises:
        UsageError: if results could not lie in a folder of that name.
    """
    if given is None:
        require_text(model_dir.name, "--sft-root")
        return model_dir.name
    require_text(given, "--model-name")
    if not given.strip() or given.startswith(".") or not given.isprintable() or set(given) & set("/\\"):
        raise UsageError(f"--model-name {given!r}: cannot be the name of a folder in results")
    if (size := len(given.encode("utf-8", "surrogateescape"))) > _LONGEST_NAME:
        raise UsageError(
            f"--model-name {given[:40]!r}…: has {size} bytes, and a folder's name at most {_LONGEST_NAME}"
        )
    return given


def _settings(flags: WatchFlags, spec: ModelSpec, **files: Path) -> Settings:
    """Return what bears on the numbers."""
    values = {name: getattr(flags, name) for name in _BEARING}
    return Settings({"dataset": spec.dataset, "eval_split": spec.eval_split, **values}, files)


def _spec(flags: WatchFlags, model: str, test_data: Path) -> ModelSpec:
    dataset = flags.dataset or dataset_of_test_data(test_data, flags.category)
    cb_setting = flags.cb_setting or infer_cb_setting(model)
    eval_split = flags.eval_split or test_data.stem
    return ModelSpec(
        model_dir=model,
        dataset=dataset,
        cb_setting=cb_setting,
        eval_split=eval_split,
        seed=flags.seed,
        num_beams=flags.num_beams,
        sid_levels=flags.sid_levels,
        project=flags.wandb_project,
        entity=flags.wandb_entity or None,
        run_id=flags.wandb_run_id or f"eval-{run_key(model, dataset, cb_setting, eval_split)}",
        run_name=flags.wandb_run_name or f"{model}-eval",
    )


def state_folder(given: Optional[str], repo_root: Path) -> Path:
    """Return the folder of the ledgers: as given, or the default below the repository root."""
    return Path(os.path.abspath(given)) if given else repo_root / "state" / "wandb_eval_sidecar"


def state_folders(repo_root: Path) -> list[Path]:
    """Return the folders that hold ledgers unless another is given: of watching, and of uploading."""
    return [state_folder(None, repo_root), repo_root / UPLOAD_STATE]


def find_script(given: Optional[str], repo_root: Path) -> Path:
    """Return the evaluation script: as given, the repository's own, or the one of this package."""
    chosen = find_path(given or EVALUATION_SCRIPT, repo_root)
    return chosen if given or chosen.exists() else own_evaluation_script()


def find_path(given: Any, repo_root: Path) -> Path:  # noqa: ANN401 - text or path
    """Return an absolute path: below the repository root if it is there, else from the working folder.

    Symbolic links stay as they are: the last part of a model dir's path is the model's name.
    """
    below_root = repo_root / Path(given).expanduser()
    chosen = below_root if below_root.exists() else Path(given).expanduser()
    return Path(os.path.abspath(chosen))


def _require_folder(path: Path, flag: str) -> None:
    if not path.exists():
        raise UsageError(f"{flag} {path}: there is no such folder")
    if not path.is_dir():
        raise UsageError(f"{flag} {path}: is a file, not a folder")
    if not os.access(path, os.R_OK | os.X_OK):
        raise UsageError(f"{flag} {path}: permission denied")


def _require_file(path: Path, flag: str, what: str) -> None:
    if not path.exists():
        raise UsageError(f"{flag} {path}: there is no such file ({what})")
    if not path.is_file():
        raise UsageError(f"{flag} {path}: is not a file ({what})")
    if not os.access(path, os.R_OK):
        raise UsageError(f"{flag} {path}: permission denied ({what})")


def _require_writable(results: Path) -> None:
    try:
        results.mkdir(parents=True, exist_ok=True)
        probe = results / f".writable-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UsageError(f"{results}: results cannot be written there ({error.strerror})") from error
