"""Packing fifty thousand small files, and packing again when ten are new.

The straightforward way is a shell loop over the files: a checksum, a line in a list, a copy, and one tar of
the copies at the end.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

from passes import RESULTS, make_results
from rows import COMMAND, Row, row, seconds_of

MODELS = 1_000
#: The loop is linear in the files, and slow: it is measured on the files of this many models, and multiplied.
BASELINE_MODELS = 40
LOOP = """
set -e
mkdir -p staged
find results -name metrics.json | while read -r file; do
  sum=$(sha256sum "$file" | cut -d' ' -f1)
  echo "$sum  $file" >>staged/list
  mkdir -p "staged/$(dirname "$file")"
  cp "$file" "staged/$file"
done
tar -czf staged.tar.gz staged
"""


def confirm_everything(results: Path) -> None:
    """Write the receipt of the other machine, as if all of it had been uploaded there."""
    from eval_sidecar.manifest.manifest import load_manifest
    from eval_sidecar.types import digest

    models = {}
    for spec in load_manifest(results / ".wandb_eval_manifest.json"):
        confirmed = {
            path.parent.name.rpartition("-")[2]: {
                "digest": digest(json.loads(path.read_text())),
                "revision": 0,
            }
            for path in (results / spec.model_dir).glob("*/metrics.json")
        }
        models[spec.model_dir] = {"run_id": spec.run_id, "confirmed": confirmed}
    receipt = {"version": 1, "generated_at": "", "models": models}
    (results / ".wandb_eval_receipt.json").write_text(json.dumps(receipt))


def measure() -> list[Row]:
    """Measure a full pack and an incremental one."""
    with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
        folder = Path(name)
        small = folder / "small"
        make_results(small, BASELINE_MODELS)
        scale = MODELS / BASELINE_MODELS
        loop = seconds_of(["bash", "-c", LOOP], small)[0] * scale

        make_results(folder, MODELS)
        for place in ("full", "new"):
            (folder / place).mkdir()
        full, _ = seconds_of([*COMMAND, "pack", "--output-dir", "full"], folder)
        confirm_everything(folder / "results")
        for model in range(10):
            new = folder / "results" / f"Games-grec-sft-qwen4B-4-256-dsz{model}" / "checkpoint-999999"
            new.mkdir()
            (new / "metrics.json").write_text('{"HR@10": 0.5}')
        incremental, said = seconds_of([*COMMAND, "pack", "--incremental", "--output-dir", "new"], folder)
        assert "10 " in said, said
    files = MODELS * RESULTS
    note = f"baseline: {files // int(scale):,} files, times {scale:g}"
    return [
        row(f"pack {files:,} small files", loop, full, at_most=8, note=note),
        row(f"pack --incremental, 10 new of {files:,} files", loop, incremental, at_most=1.5, note=note),
    ]
