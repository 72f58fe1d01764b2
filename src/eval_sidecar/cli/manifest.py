"""``prepare-manifest``, and the flags that it shares with ``pack``, which prepares one too."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Optional

import click
from click.core import ParameterSource

from eval_sidecar.cli import show
from eval_sidecar.cli.flags import flag, takes
from eval_sidecar.cli.terminal import say
from eval_sidecar.ledger import lookalikes
from eval_sidecar.manifest.manifest import Defaults, load_manifest, write_manifest
from eval_sidecar.paths import MANIFEST, ResultPaths


@dataclass(frozen=True)
class ManifestFlags:
    """Where a manifest is written, and its values for new models."""

    results_root: str = flag("./results")
    output_manifest: Optional[str] = flag(help=f"[default: RESULTS_ROOT/{MANIFEST}]")
    overrides: Optional[str] = flag(
        help="JSON file that changes what is inferred from a model dir's name, or any other field."
    )
    default_project: str = flag("MIMIGenRec-Eval", env="WANDB_PROJECT")
    default_entity: Optional[str] = flag(env="WANDB_ENTITY")
    default_eval_split: str = flag("test")
    run_id_prefix: str = flag("eval")

    @property
    def manifest(self) -> Path:
        """The manifest's file."""
        return Path(self.output_manifest or ResultPaths(Path(self.results_root)).manifest)


def prepare(flags: ManifestFlags) -> Path:
    """Write the manifest, and return its path."""
    defaults = Defaults(
        flags.default_project,
        flags.default_entity or None,
        flags.default_eval_split,
        flags.run_id_prefix,
        chosen=_chosen_defaults(),
    )
    overrides = Path(flags.overrides) if flags.overrides else None
    return write_manifest(Path(flags.results_root), flags.manifest, overrides=overrides, defaults=defaults)


def _chosen_defaults() -> frozenset[str]:
    """Return which defaults are given on the command line, not by the environment or by default."""
    context = click.get_current_context()
    fields = {
        "default_project": "project",
        "default_entity": "entity",
        "default_eval_split": "eval_split",
        "run_id_prefix": "run_id_prefix",
    }
    return frozenset(
        field
        for name, field in fields.items()
        if context.get_parameter_source(name) == ParameterSource.COMMANDLINE
    )


@click.command("prepare-manifest")
@takes(ManifestFlags)
def prepare_manifest(flags: ManifestFlags) -> int:
    """Write the manifest of the models in results: which there are, and which run each belongs to."""
    path = prepare(flags)
    say(f"{len(load_manifest(path))} models in {path}")
    show.problems(lookalikes.everywhere(Path(flags.results_root)))
    return 0
