"""Every flag that several commands share, and how a command gets its flags: as one frozen object.

A field of these classes is a flag: its name with ``-`` for ``_``, its type, default, environment variable and
help. A class is a group of them, and a command's flags are a class made of groups.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass
from typing import Any, Callable, Optional, TypeVar

import click

from eval_sidecar.checkpoints.space import Amount, parse_amount
from eval_sidecar.cli.groups import GroupedOption
from eval_sidecar.errors import SidecarError, UsageError

#: Where uploading keeps its ledgers unless another folder is given.
UPLOAD_STATE = "state/wandb_eval_uploader"

_T = TypeVar("_T")

#: Key of a field's metadata under which its keywords for `click.option` are.
_OPTION = "option"
#: Key of a field's metadata under which its group in the help is.
_GROUP = "group"
#: What ``--wandb-mode`` takes; its variable is W&B's own, which has other words for the same.
_MODES = {
    **{mode: mode for mode in ("online", "offline", "disabled")},
    **{"dryrun": "offline", "run": "online", "shared": "online"},
}


def flag(
    default: Any = None,  # noqa: ANN401 - what the field holds
    help: Optional[str] = None,
    *,
    env: Optional[str] = None,
    group: Optional[str] = None,
    **keywords: Any,  # noqa: ANN401 - as click takes them
) -> Any:  # noqa: ANN401 - the type checker takes the field's own type
    """Declare a field to be a flag.

    Args:
        default: Its value if it is not given.
        help: What ``--help`` says.
        env: The environment variable that it falls back to.
        group: Where the help shows it; default: the `GROUP` of its class.
        **keywords: More of `click.option`, such as `type`.
    """
    is_shown = default is not None and default != () and not keywords.get("is_flag")
    if not keywords.get("required"):
        keywords["default"] = default
    keywords = {"help": help, "envvar": env, "show_default": is_shown, **keywords}
    return dataclasses.field(default=default, metadata={_OPTION: keywords, _GROUP: group})


def takes(kind: type[_T]) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command the flags of a class; it is called with an object of it first."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]  # a dataclass, which no type of 3.9 says

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def with_flags(**values: Any) -> Any:  # noqa: ANN401 - one a flag
            given = kind(**{field.name: values.pop(field.name) for field in fields})
            return command(given, **values)

        for field in reversed(fields):
            name = f"--{field.name.replace('_', '-')}"
            keywords = {"cls": GroupedOption, "group": _group(kind, field), **field.metadata[_OPTION]}
            with_flags = click.option(keywords.pop("names", name), field.name, **keywords)(with_flags)
        return with_flags

    return decorate


def _group(kind: type[_T], field: dataclasses.Field[Any]) -> Optional[str]:
    """Return the group of a flag: its own, or that of the class which declares it first."""
    declaring = next(
        one for one in reversed(kind.__mro__) if field.name in vars(one).get("__annotations__", {})
    )
    group: Optional[str] = field.metadata[_GROUP] or getattr(declaring, "GROUP", None)
    return group


def message_of(error: SidecarError) -> str:
    """Return an error's text with the flag of its setting."""
    if not error.setting:
        return str(error)
    name = f"--{error.setting.replace('_', '-')}"
    return f"{name} {error}" if isinstance(error, UsageError) else f"{error} ({name})"


class Parsed(click.ParamType):  # type: ignore[type-arg]  # not generic in older releases
    """A flag whose text a function reads.

    Args:
        name: What the value is.
        parse: Reads the text; a ValueError or a UsageError says what is wrong with it.
    """

    def __init__(self, name: str, parse: Callable[[str], Any]) -> None:
        self.name = name
        self._parse = parse

    def convert(
        self,
        value: Any,  # noqa: ANN401 - as click has it
        param: Optional[click.Parameter],
        ctx: Optional[click.Context],
    ) -> Any:  # noqa: ANN401 - what the function returns
        """See `click.ParamType`."""
        if not isinstance(value, str):
            return value  # converted before
        try:
            return self._parse(value)
        except UsageError as error:
            raise UsageError(str(error), setting=(param and param.name) or "") from error
        except ValueError as error:
            self.fail(str(error), param, ctx)


def _parse_mode(text: str) -> Optional[str]:
    """Read W&B's mode in one of its spellings; empty is as if it were not given."""
    mode = _MODES.get(text.strip().lower())
    if text and mode is None:
        raise ValueError(f"{text!r} is not one of 'online', 'offline', 'disabled'.")
    return mode


_AMOUNT = Parsed("amount", parse_amount)
_MODE = Parsed("mode", _parse_mode)


# fmt: off
@dataclass(frozen=True)
class PlaceFlags:
    """Which model, and where its ledger is."""

    GROUP = "What to watch"

    repo_root: str = flag(".", "Where the evaluation script runs; results/ is below it.", group="Files")
    sft_root: Optional[str] = flag(help="Folder that holds the checkpoint-* folders.  [required]")
    model_name: Optional[str] = flag(help="What the model is called: in results, run, ledger and logs.  [default: the folder's name]")
    state_dir: Optional[str] = flag(help="Where the ledgers are.  [default: state/wandb_eval_sidecar in REPO_ROOT]", group="Files")


@dataclass(frozen=True)
class RunFlags:
    """How a command runs that watches or uploads."""

    once: bool = flag(False, "Do what can be done now, then end.", is_flag=True)
    poll_interval_seconds: float = flag(60.0, "Longest time between two looks at the folder.", type=click.FloatRange(min=0.05))
    instance: Optional[str] = flag(help="Name for `status`, `tail`, `stop` and `restart`.", env="INSTANCE")
    moved: bool = flag(False, "What had this name in another place before is the same training.", is_flag=True)
    disable_wandb: bool = flag(False, "Deliver nothing; a later pass without this delivers.", is_flag=True, group="W&B")


@dataclass(frozen=True)
class TrackerFlags:
    """How points are delivered."""

    GROUP = "W&B"

    wandb_mode: Optional[str] = flag(help="Send points, keep them in wandb/ (offline), or neither.  [default: online]", env="WANDB_MODE", type=_MODE, metavar="[online|offline|disabled]")
    wandb_resume: str = flag("allow", "What W&B does if the run is there already.", type=click.Choice(["allow", "must", "never", "auto"]))
    wandb_job_type: str = flag("eval", "Job type that a new run gets.")
    confirm_seconds: float = flag(60.0, "How long a server may take to show a point before it counts as not delivered.", type=click.FloatRange(min=0))


@dataclass(frozen=True)
class LauncherFlags:
    """Where evaluations run, and how many at a time."""

    GROUP = "GPUs and cluster"

    cuda_list: str = flag("0", 'GPUs: "0 1 2 3", 0-3, all, or UUIDs (GPU-…, MIG-…).', env="CUDA_LIST")
    launcher: str = flag("local", "Where evaluations run: on this machine's GPUs, or as Slurm jobs.", type=click.Choice(["local", "slurm"]))
    slurm_partition: Optional[str] = flag(help="Partition of the jobs.  [default: the cluster's]")
    slurm_gres: Optional[str] = flag(help="What a job needs, such as gpu:1.")
    slurm_time: Optional[str] = flag(help="Time limit of a job, as sbatch takes it: 90 (minutes), 2:00:00, 1-12.  [default: the partition's]")
    slurm_extra: tuple[str, ...] = flag((), "Any other long option of sbatch, such as account=lab, mem=64G or exclusive; may be given several times.", multiple=True, metavar="OPTION[=VALUE]")
    max_jobs: Optional[int] = flag(help="Slurm jobs at a time, waiting or running.  [default: 4]", type=click.IntRange(min=1))
    gpus_per_eval: int = flag(0, "Split the GPUs, and evaluate several checkpoints at a time; 0 gives all to one.", type=int)
    warm: Optional[bool] = flag(help="Keep the evaluator of evaluate_sft_3b.sh between checkpoints, one process for each list of GPUs.  [default: keep it, if SCRIPT is the one that comes with eval-sidecar]", names="--warm/--no-warm")


@dataclass(frozen=True)
class ScriptFlags:
    """What the evaluation script is given, as variables of the same names."""

    GROUP = "Evaluation"

    category: str = flag("Industrial_and_Scientific", "Category of the items; names the folder in data/.", env="CATEGORY")
    python_bin: Optional[str] = flag(help="Python of the evaluation script.  [default: this one]", env="PYTHON_BIN")
    batch_size: int = flag(8, "Prompts at a time.", env="BATCH_SIZE", type=int)
    max_new_tokens: int = flag(256, "Longest answer, in tokens.", env="MAX_NEW_TOKENS", type=int)
    num_beams: int = flag(50, "Beams of the search; as many items are ranked.", env="NUM_BEAMS", type=int)
    temperature: float = flag(1.0, "Temperature, if DO_SAMPLE.", env="TEMPERATURE", type=float)
    do_sample: bool = flag(False, "Sample instead of searching for the most likely.", env="DO_SAMPLE", type=bool, metavar="True|False")
    length_penalty: float = flag(0.0, "Exponent of the length by which a beam's score is divided.", env="LENGTH_PENALTY", type=float)
    sid_levels: int = flag(-1, "Levels of a semantic ID to use; <= 0 means all.", env="SID_LEVELS", type=int)
    seed: int = flag(42, "Seed of the random numbers.", env="SEED", type=int)


@dataclass(frozen=True)
class EvaluationFlags:
    """What is evaluated, in which order, and what it may cost."""

    GROUP = "Evaluation"

    eval_script: Optional[str] = flag(help="Run as `bash SCRIPT SFT_ROOT`.  [default: evaluate_sft_3b.sh in REPO_ROOT; if there is none, the one that comes with eval-sidecar]")
    test_data_path: Optional[str] = flag(help="Test set.  [default: data/CATEGORY/sft/test.json]", env="TEST_DATA_PATH")
    index_path: Optional[str] = flag(help="Item index.  [default: data/CATEGORY/id2sid.json]", env="INDEX_PATH")
    checkpoint_ready_seconds: float = flag(120.0, "Quiet period of a checkpoint that cannot be proved complete.", type=click.FloatRange(min=0))
    max_pending_per_cycle: int = flag(0, "Evaluations a cycle may start; 0 means any number.", type=click.IntRange(min=0))
    order: str = flag("oldest", "Which checkpoint comes first.", type=click.Choice(["oldest", "newest"]))
    eval_timeout_seconds: float = flag(86400.0, "End an evaluation that takes longer; 0 means never.", type=click.FloatRange(min=0))
    min_free_space: Amount = flag(0.01, "Below this free space, a size (20G) or a share (5%), waiting checkpoints are not kept from rotation; nor if the training's next checkpoint would not fit.  [default: 1%]", type=_AMOUNT, show_default=False)
    max_pins: int = flag(0, "Checkpoints to keep that the training has deleted; 0 means any number.", type=click.IntRange(min=0))
    max_pin_size: Amount = flag(0.5, "Space that those may keep in use: a size (200G), or a share of what is free without them (50%).  [default: 50%]", type=Parsed("amount", functools.partial(parse_amount, most=1.0000001)), show_default=False)
    force_eval: bool = flag(False, "Evaluate every checkpoint that is there once more.", is_flag=True)


@dataclass(frozen=True)
class WandbRunFlags:
    """The run that a watched model belongs to."""

    GROUP = "W&B"

    dataset: Optional[str] = flag(help="Data set of the run.  [default: from .../DATASET/sft/test.json]")
    cb_setting: Optional[str] = flag(help="Codebook setting of the run.  [default: from the model's name]")
    eval_split: Optional[str] = flag(help="Split of the run.  [default: the test file's name]")
    wandb_project: str = flag("MIMIGenRec-Eval", "Project of the run.", env="WANDB_PROJECT")
    wandb_entity: Optional[str] = flag(help="Team or user of the project.  [default: W&B's own]", env="WANDB_ENTITY")
    # Not from WANDB_RUN_ID, WANDB_NAME, WANDB_RESUME, WANDB_JOB_TYPE: a training in the same shell has those
    # set for its own run.
    wandb_run_id: Optional[str] = flag(help="Id of the run.  [default: eval-<hash of model, data set, codebook, split>]")
    wandb_run_name: Optional[str] = flag(help="Name that a new run gets.  [default: <model>-eval]")


@dataclass(frozen=True)
class WatchFlags(
    TrackerFlags, WandbRunFlags, RunFlags, LauncherFlags, ScriptFlags, EvaluationFlags, PlaceFlags
):
    """Every flag of watching."""

    wandb_mode: Optional[str] = flag(help="Send points, keep them in wandb/ (offline), or neither.  [default: online if a key is configured, else offline]", env="WANDB_MODE", type=_MODE, metavar="[online|offline|disabled]")
