"""Flags of watching, and the one place where they become configuration."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Optional, TypeVar

import click

from eval_sidecar.checkpoints.space import Limits, parse_amount
from eval_sidecar.cli.launching import choose_launcher
from eval_sidecar.cli.reporting import MODE_METAVAR, parse_mode
from eval_sidecar.errors import UsageError
from eval_sidecar.evaluation.config import WatchConfig
from eval_sidecar.installation import EVALUATION_SCRIPT, own_evaluation_script
from eval_sidecar.launchers.base import Launcher
from eval_sidecar.ledger.settings import Settings
from eval_sidecar.manifest.manifest import dataset_of_test_data, infer_cb_setting, require_text, run_key
from eval_sidecar.paths import ManagerPaths
from eval_sidecar.system.scripts import why_no_shell_script
from eval_sidecar.types import ModelSpec, step_of

_F = TypeVar("_F", bound=Callable[..., Any])

#: What file systems take as one name, in bytes.
_LONGEST_NAME = 255
#: Variables of the evaluation script, from the flags of the same name.
_SCRIPT_VARIABLES = (
    *("category", "python_bin", "batch_size", "max_new_tokens", "num_beams", "temperature"),
    *("do_sample", "length_penalty", "sid_levels", "seed"),
)

#: Flags that bear on the numbers, beside the files.
_BEARING = (
    *("category", "num_beams", "max_new_tokens", "temperature", "do_sample", "length_penalty"),
    *("sid_levels", "seed"),
)

#: Flags that say where and how long evaluations run.
_PLACEMENT = (
    *("cuda_list", "gpus_per_eval", "launcher", "warm", "eval_timeout_seconds"),
    *("slurm_partition", "slurm_gres", "slurm_time", "slurm_extra"),
)

_OPTIONS: tuple[Callable[[Any], Any], ...] = (
    click.option("--repo-root", default=".", show_default=True, help="Where the evaluation script runs; results/ is below it."),
    click.option("--sft-root", help="Folder that holds the checkpoint-* folders.  [required]"),
    click.option("--model-name", help="What the model is called: in results, run, ledger and logs.  [default: the folder's name]"),
    click.option("--moved", is_flag=True, help="SFT_ROOT is the training that had this name elsewhere before."),
    click.option("--eval-script", help="Run as `bash SCRIPT SFT_ROOT`.  [default: evaluate_sft_3b.sh in REPO_ROOT; where there is none, the one that comes with eval-sidecar]"),
    click.option("--test-data-path", envvar="TEST_DATA_PATH", help="Test set.  [default: data/CATEGORY/sft/test.json]"),
    click.option("--index-path", envvar="INDEX_PATH", help="Item index.  [default: data/CATEGORY/id2sid.json]"),
    click.option("--category", envvar="CATEGORY", default="Industrial_and_Scientific", show_default=True),
    click.option("--cuda-list", envvar="CUDA_LIST", default="0", show_default=True, help='GPUs: "0 1 2 3", 0-3, all, or UUIDs (GPU-…, MIG-…).'),
    click.option("--launcher", type=click.Choice(["local", "slurm"]), default="local", show_default=True, help="Where evaluations run: on this machine's GPUs, or as Slurm jobs."),
    click.option("--slurm-partition", help="Partition of the jobs.  [default: the cluster's]"),
    click.option("--slurm-gres", help="What a job needs, such as gpu:1."),
    click.option("--slurm-time", help="Time limit of a job, as sbatch takes it: 90 (minutes), 2:00:00, 1-12.  [default: the partition's]"),
    click.option("--slurm-extra", multiple=True, metavar="OPTION[=VALUE]", help="Any other long option of sbatch, such as account=lab, mem=64G or exclusive; may be given several times."),
    click.option("--max-jobs", type=click.IntRange(min=1), help="Slurm jobs in flight at a time, waiting or running.  [default: 4]"),
    click.option("--gpus-per-eval", type=int, default=0, help="Split the GPUs, and evaluate several checkpoints at a time; 0 gives all to one."),
    click.option("--warm/--no-warm", default=None, help="Keep the evaluator of evaluate_sft_3b.sh between checkpoints, one process for each list of GPUs.  [default: keep it, if SCRIPT is the one that comes with eval-sidecar]"),
    click.option("--python-bin", envvar="PYTHON_BIN", help="Python of the evaluation script.  [default: this one]"),
    click.option("--batch-size", envvar="BATCH_SIZE", type=int, default=8, show_default=True),
    click.option("--max-new-tokens", envvar="MAX_NEW_TOKENS", type=int, default=256, show_default=True),
    click.option("--num-beams", envvar="NUM_BEAMS", type=int, default=50, show_default=True),
    click.option("--temperature", envvar="TEMPERATURE", type=float, default=1.0, show_default=True),
    click.option("--do-sample", envvar="DO_SAMPLE", type=bool, default=False, show_default=True, metavar="True|False"),
    click.option("--length-penalty", envvar="LENGTH_PENALTY", type=float, default=0.0, show_default=True),
    click.option("--sid-levels", envvar="SID_LEVELS", type=int, default=-1, show_default=True, help="Levels of a semantic ID to use; <= 0 means all."),
    click.option("--seed", envvar="SEED", type=int, default=42, show_default=True),
    click.option("--poll-interval-seconds", type=click.FloatRange(min=0.05), default=60.0, show_default=True),
    click.option("--checkpoint-ready-seconds", type=click.FloatRange(min=0), default=120.0, show_default=True, help="Quiet period of a checkpoint that cannot be proved complete."),
    click.option("--max-pending-per-cycle", type=click.IntRange(min=0), default=0, show_default=True, help="Evaluations a cycle may start; 0 means any number."),
    click.option("--order", type=click.Choice(["oldest", "newest"]), default="oldest", show_default=True, help="Which checkpoint comes first."),
    click.option("--eval-timeout-seconds", type=click.FloatRange(min=0), default=86400.0, show_default=True, help="End an evaluation that takes longer; 0 means never."),
    click.option("--min-free-space", default="1%", show_default=True, help="Below this free space, a size (20G) or a share (5%), waiting checkpoints are not kept from rotation; nor where the training's next checkpoint would not fit."),
    click.option("--max-pins", type=click.IntRange(min=0), default=0, show_default=True, help="Checkpoints to keep that the training has deleted; 0 means any number."),
    click.option("--max-pin-size", default="50%", show_default=True, help="Space that those may keep in use: a size (200G), or a share of what is free without them (50%)."),
    click.option("--force-eval", is_flag=True, help="Evaluate every checkpoint that is there once more."),
    click.option("--once", is_flag=True, help="Do what can be done now, then end."),
    click.option("--state-dir", help="Where the ledgers are.  [default: state/wandb_eval_sidecar in REPO_ROOT]"),
    click.option("--instance", envvar="INSTANCE", help="Name for `status`, `tail` and `stop`."),
    click.option("--dataset", help="Data set of the run.  [default: from .../DATASET/sft/test.json]"),
    click.option("--cb-setting", help="Codebook setting of the run.  [default: from the model's name]"),
    click.option("--eval-split", help="Split of the run.  [default: the test file's name]"),
    click.option("--disable-wandb", is_flag=True, help="Evaluate only; a later pass without this delivers."),
    click.option("--wandb-project", envvar="WANDB_PROJECT", default="MIMIGenRec-Eval", show_default=True),
    click.option("--wandb-entity", envvar="WANDB_ENTITY"),
    # Not from WANDB_RUN_ID, WANDB_NAME, WANDB_RESUME, WANDB_JOB_TYPE: a training in the same shell has those
    # set for its own run.
    click.option("--wandb-run-id", help="[default: eval-<hash of model, data set, codebook, split>]"),
    click.option("--wandb-run-name", help="Name that a new run gets.  [default: <model>-eval]"),
    click.option("--wandb-mode", envvar="WANDB_MODE", callback=parse_mode, metavar=MODE_METAVAR, help="[default: online where a key is configured, else offline]"),
    click.option("--wandb-resume", type=click.Choice(["allow", "must", "never", "auto"]), default="allow", show_default=True),
    click.option("--wandb-job-type", default="eval", show_default=True),
    click.option("--confirm-seconds", type=click.FloatRange(min=0), default=60.0, show_default=True, help="How long a server may take to show a point before it counts as not delivered."),
)  # fmt: skip


def watch_options(command: _F) -> _F:
    """Give a command every flag of watching."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


@dataclass(frozen=True)
class WatchPlan:
    """Everything that watching needs, checked.

    Attributes:
        config: What to evaluate and how.
        spec: The model and its run.
        state_dir: Where the ledger is.
        launcher: What runs the evaluations.
        flags: The flags as given, for what concerns the command line alone.
    """

    config: WatchConfig
    spec: ModelSpec
    state_dir: Path
    launcher: Launcher
    flags: Mapping[str, Any]


def plan_watch(flags: Mapping[str, Any], log_folder: Path) -> WatchPlan:
    """Check the flags and what they name.

    Raises:
        UsageError: naming the flag and the path that are wrong.
    """
    repo_root = Path(os.path.abspath(flags["repo_root"]))
    _require_folder(repo_root, "--repo-root")
    model_dir = _find_model_dir(flags["sft_root"], repo_root)
    model = name_of_model(flags["model_name"], model_dir)
    eval_script = _find_runnable_script(flags["eval_script"], repo_root)
    data = Path("data") / flags["category"]
    test_data = find_path(flags["test_data_path"] or data / "sft" / "test.json", repo_root)
    _require_file(test_data, "--test-data-path", "the test set")
    index = find_path(flags["index_path"] or data / "id2sid.json", repo_root)
    _require_file(index, "--index-path", "the item index")
    _require_writable(repo_root / "results")
    environment = {name.upper(): str(flags[name]) for name in _SCRIPT_VARIABLES}
    environment.update(
        PYTHON_BIN=flags["python_bin"] or sys.executable,
        EVAL_SIDECAR_PYTHON=sys.executable,
        TEST_DATA_PATH=str(test_data),
        INDEX_PATH=str(index),
    )
    spec = _spec(flags, model, test_data)
    config = WatchConfig(
        model_dir=model_dir,
        repo_root=repo_root,
        eval_script=eval_script,
        environment=environment,
        log_dir=ManagerPaths(log_folder).evaluations,
        ready_seconds=flags["checkpoint_ready_seconds"],
        max_pending=flags["max_pending_per_cycle"],
        newest_first=flags["order"] == "newest",
        force=flags["force_eval"],
        time_limit=flags["eval_timeout_seconds"],
        limits=Limits(
            floor=parse_amount(flags["min_free_space"], "--min-free-space"),
            most=flags["max_pins"],
            size=parse_amount(flags["max_pin_size"], "--max-pin-size", most=1.0000001),
        ),
        name=model,
        settings=_settings(flags, spec, test_data_path=test_data, index_path=index, eval_script=eval_script),
        placement={name: flags[name] for name in _PLACEMENT},
        force_anew=flags["once"],
    )
    return WatchPlan(
        config=config,
        spec=spec,
        state_dir=state_folder(flags["state_dir"], repo_root),
        launcher=choose_launcher(flags),
        flags=flags,
    )


def _find_model_dir(given: Optional[str], repo_root: Path) -> Path:
    if not given:
        raise UsageError("--sft-root is missing: name the folder that holds the checkpoint-* folders")
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
    """What a model is called: as given, or as its folder.

    Raises:
        UsageError: where results could not lie in a folder of that name.
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


def _settings(flags: Mapping[str, Any], spec: ModelSpec, **files: Path) -> Settings:
    """What bears on the numbers."""
    values = {name: flags[name] for name in _BEARING}
    return Settings({"dataset": spec.dataset, "eval_split": spec.eval_split, **values}, files)


def _spec(flags: Mapping[str, Any], model: str, test_data: Path) -> ModelSpec:
    dataset = flags["dataset"] or dataset_of_test_data(test_data, flags["category"])
    cb_setting = flags["cb_setting"] or infer_cb_setting(model)
    eval_split = flags["eval_split"] or test_data.stem
    return ModelSpec(
        model_dir=model,
        dataset=dataset,
        cb_setting=cb_setting,
        eval_split=eval_split,
        seed=flags["seed"],
        num_beams=flags["num_beams"],
        sid_levels=flags["sid_levels"],
        project=flags["wandb_project"],
        entity=flags["wandb_entity"] or None,
        run_id=flags["wandb_run_id"] or f"eval-{run_key(model, dataset, cb_setting, eval_split)}",
        run_name=flags["wandb_run_name"] or f"{model}-eval",
    )


def state_folder(given: Optional[str], repo_root: Path) -> Path:
    """The folder of the ledgers: as given, or the default below the repository root."""
    return Path(os.path.abspath(given)) if given else repo_root / "state" / "wandb_eval_sidecar"


def find_script(given: Optional[str], repo_root: Path) -> Path:
    """The evaluation script: as given, the repository's own, or the one that comes with this package."""
    chosen = find_path(given or EVALUATION_SCRIPT, repo_root)
    return chosen if given or chosen.exists() else own_evaluation_script()


def find_path(given: Any, repo_root: Path) -> Path:  # noqa: ANN401 - text or path
    """An absolute path: below the repository root where it is there, else from the working folder.

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
        raise UsageError(f"{flag} {path}: is no file ({what})")
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
