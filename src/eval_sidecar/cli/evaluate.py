"""``eval-sidecar evaluate``: runs the evaluation script of the package, without a sidecar."""

from __future__ import annotations

import os
import sys

import click

from eval_sidecar.errors import UsageError
from eval_sidecar.installation import own_evaluation_script


@click.command()
@click.argument("sft_root")
def evaluate(sft_root: str) -> None:
    """Evaluate the checkpoints of a model once, without a ledger.

    The same as `bash evaluate_sft_3b.sh SFT_ROOT` in a checkout. Results go to results/ under the current
    folder. Everything else comes from variables, such as CATEGORY, CUDA_LIST, TEST_DATA_PATH, INDEX_PATH, and
    CKPT_LIST (names of checkpoints; by default all).
    """
    os.environ.setdefault("PYTHON_BIN", sys.executable)
    os.environ["EVAL_SIDECAR_PYTHON"] = sys.executable
    # Do not use the warm processes of a sidecar that this may run in.
    os.environ.pop("EVAL_SIDECAR_WARM", None)
    try:
        os.execvp("bash", ["bash", str(own_evaluation_script()), sft_root])
    except FileNotFoundError as error:
        raise UsageError("bash is not on the PATH, and the evaluation script needs it") from error
