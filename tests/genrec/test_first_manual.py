"""The first manual's command with the evaluator that the project brings, through the root scripts."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from toolbox import CHECKOUT, MODEL, Repository

pytestmark = pytest.mark.genrec

ONCE = """PYTHON_BIN=python3 bash eval_wandb_sidecar.sh once \\
  --instance cb64 \\
  --repo-root . \\
  --sft-root {root}/saves/Instruments-grec-sft-qwen4B-4-64-dsz0 \\
  --eval-script evaluate_sft_3b.sh \\
  --category Instruments_grec \\
  --test-data-path {root}/data/Instruments_grec/sft/test.json \\
  --index-path {root}/data/Instruments_grec/id2sid.json \\
  --cuda-list "0" --disable-wandb"""


def test_once_evaluates_a_checkpoint_with_the_projects_own_evaluator(tiny, tmp_path: Path) -> None:
    repository = Repository(tmp_path / "GenRec")
    shutil.copy(CHECKOUT / "evaluate_sft_3b.sh", repository.script)
    arguments = dict(zip(tiny.arguments[::2], tiny.arguments[1::2]))
    shutil.copy(arguments["--test-data"], repository.test_data)
    shutil.copy(arguments["--index"], repository.index)
    checkpoint = repository.model_dir / "checkpoint-5"
    shutil.copytree(tiny.checkpoint, checkpoint)
    (checkpoint / "trainer_state.json").write_text('{"global_step": 5}')
    try:
        done = repository.type(
            ONCE.format(root=repository.root), {"OMP_WAIT_POLICY": "PASSIVE", "NUM_BEAMS": "10"}
        )
    finally:
        repository.clean_up()
    assert done.returncode == 0, done.stdout + done.stderr
    folder = repository.root / "results" / MODEL / "checkpoint-5"
    assert sorted(path.name for path in folder.iterdir()) == [
        "final_result.json",
        "metrics.json",
        "metrics.tsv",
        "provenance.json",
    ]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert list(metrics)[:2] == ["HR@1", "NDCG@1"]
    ranked = json.loads((folder / "final_result.json").read_text())
    assert [len(row["predict"]) for row in ranked] == [10] * len(tiny.rows)
    assert "<- best" in done.stdout
