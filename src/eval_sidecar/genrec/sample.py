"""Creates the files of a small evaluation, in a second: ``start.py eval_sidecar.genrec.sample FOLDER``.

A checkpoint with random weights and its own tokenizer, an index of items and a test set.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

from eval_sidecar.genrec.libraries import importing

ROWS, ITEMS = 4, 27
CHECKPOINT = Path("model", "checkpoint-1")


def main() -> None:
    """Write ``model/checkpoint-1``, ``id2sid.json`` and ``test.json`` below a folder."""
    folder = Path(sys.argv[1])
    index = {
        f"item{number}": [f"<{level}_{code}>" for level, code in zip("abc", codes)]
        for number, codes in enumerate(itertools.product(range(3), repeat=3))
    }
    rows = [
        {
            "system": "Recommend.",
            "instruction": "What comes next?",
            "input": "".join(tokens),
            "output": "".join(tokens),
        }
        for tokens in list(index.values())[:ROWS]
    ]
    (folder / "id2sid.json").write_text(json.dumps(index), encoding="utf-8")
    (folder / "test.json").write_text(json.dumps(rows), encoding="utf-8")
    with importing():
        from eval_sidecar.genrec.hf.sample import save_model
    save_model(folder / CHECKPOINT, sorted({token for tokens in index.values() for token in tokens}))
