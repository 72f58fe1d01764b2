"""Measures the evaluator against the straightforward way: ``generate()`` with a Python trie.

    python benchmarks/evaluator.py [--reference DIR]

The straightforward way is in evaluator_baseline.py. Both rank the same rows with the same checkpoint, and
their lists are compared. Whole processes are measured from their start to their end, through the script that
the sidecar calls.

Without a reference, a small model with random weights and data of the shape of a real test set are made. With
one, they are read from ``DIR/saves/<model>/checkpoint-*`` and ``DIR/data/<dataset>/{id2sid,sft/test}.json``.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rows import Row, row

REPO = Path(__file__).resolve().parents[1]
BEAMS = 50
BATCH_SIZE = 8
COLD_RUNS = 3
WARM_RUNS = 3
#: Scores closer than this may come in either order: two ways of summing differ in their last digits.
NEAR_TIE = 1e-4
#: How much of the decoding, in percent, the model's own matrix products must take; None: it is shown only.
LEAST_SHARES = {"small": None, "large": None}


@dataclass(frozen=True)
class Setup:
    """What is evaluated.

    Attributes:
        checkpoints: At least one checkpoint.
        test_data: The test set.
        index: The items.
    """

    checkpoints: tuple[str, ...]
    test_data: str
    index: str


# -- what is measured -----------------------------------------------------------------------------------


def measure(reference: Path | None = None) -> list[Row]:
    """Measure all of it, one after the other.

    Args:
        reference: Folder of a real model and test set; ``$EVAL_SIDECAR_REFERENCE``, or None to make them.
    """
    given = reference or (Path(value) if (value := os.environ.get("EVAL_SIDECAR_REFERENCE")) else None)
    with tempfile.TemporaryDirectory(prefix="es-bench-") as name:
        folder = Path(name)
        setup = find_setup(given.absolute()) if given else make_setup(folder)
        return measure_setup(setup, folder)


def measure_setup(setup: Setup, folder: Path) -> list[Row]:
    """Run everything once or a few times, one after the other."""
    cold = [time_evaluation(setup, folder, number) for number in range(COLD_RUNS)]
    cold_lists = read_lists(setup, folder)
    began = time.monotonic()
    baseline = run_child("baseline", setup, folder)
    baseline_seconds = baseline["ended"] - began
    warm = time_warm_evaluations(setup, folder)
    memory = run_child("memory", setup, folder, MALLOC_MMAP_THRESHOLD_="65536")
    expected = json.loads(Path(baseline["lists"]).read_text())
    other = count_other(cold_lists, expected) + count_other(read_lists(setup, folder), expected)
    count = len(expected)
    whole, median = f"whole process, {count} rows", statistics.median
    middle = "ours: the middle one of three, as below"
    return [
        row(
            f"decoding, {count} rows, {BEAMS} beams",
            baseline["generate"],
            baseline["tree"],
            ratio=20,
            note=middle,
        ),
        row(f"{whole}, cold", baseline_seconds, median(cold), ratio=4),
        row(f"{whole}, warm", baseline_seconds, median(warm), ratio=15),
        row(
            "peak memory, weights included, as a multiple of one prefill",
            memory["generate"] / memory["prefill_of_generate"],
            memory["tree"] / memory["prefill"],
            "x",
            at_most=1.5,
        ),
        *(limit_row(run_child(size, setup, folder), size, least) for size, least in LEAST_SHARES.items()),
        {
            **row("rows ranked otherwise, cold and warm (near ties apart)", None, other, "rows", at_most=0),
            "target": "0 rows",
        },
    ]


def limit_row(found: dict[str, Any], size: str, least: float | None) -> Row:
    """Return how much of the decoding the model's matrix products take, as a row of the table."""
    what = {"small": "the model above", "large": "0.5 B parameters, vocabulary 151,936, random weights"}[size]
    limit = row(
        f"time of the model's matrix products, as a share of decoding: {what}",
        None,
        100 * found["share"],
        "%",
        note=f"{found['rows']} rows in {found['seconds']:.3g} s; the rest: attention, activations, scores, search",
    )
    if least is None:
        return limit
    return {**limit, "target": f"{least:g} % or more", "reached": limit["ours"] >= least}


def time_evaluation(setup: Setup, folder: Path, number: int, **variables: str) -> float:
    """Evaluate one checkpoint as the sidecar does, through the script; return the seconds it took."""
    checkpoint = setup.checkpoints[number % len(setup.checkpoints)]
    environment = {
        **os.environ,
        "PYTHON_BIN": sys.executable,
        "CKPT_LIST": checkpoint,
        "TEST_DATA_PATH": setup.test_data,
        "INDEX_PATH": setup.index,
        "NUM_BEAMS": str(BEAMS),
        "BATCH_SIZE": str(BATCH_SIZE),
        **variables,
    }
    began = time.monotonic()
    done = subprocess.run(
        ["bash", str(REPO / "evaluate_sft_3b.sh"), str(Path(checkpoint).parent)],
        cwd=folder, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        sys.exit(f"evaluator.py: the evaluation of {checkpoint} failed:\n{done.stdout}{done.stderr}")
    return time.monotonic() - began


def time_warm_evaluations(setup: Setup, folder: Path) -> list[float]:
    """Return the seconds of evaluations in a process that has done one before."""
    with tempfile.TemporaryDirectory(prefix="es-bench-") as warm, (Path(warm) / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        seconds = [
            time_evaluation(setup, folder, number, EVAL_SIDECAR_WARM=warm) for number in range(WARM_RUNS + 1)
        ]
    return seconds[1:]


def run_child(work: str, setup: Setup, folder: Path, **variables: str) -> dict[str, Any]:
    """Do a part of the measurements in a process of its own, and return what it finds."""
    script = "evaluator_limit.py" if work in ("small", "large") else "evaluator_baseline.py"
    command = [sys.executable, str(Path(__file__).with_name(script)), work]
    command.append(json.dumps(asdict(setup)))
    # Threads that wait in a loop would make the straightforward way much slower on a busy machine.
    environment = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONPATH": str(REPO / "src"), **os.environ, **variables}
    done = subprocess.run(command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def read_lists(setup: Setup, folder: Path) -> list[list[str]]:
    """Return the ranked list of each row that the latest evaluation of the first checkpoint has written."""
    checkpoint = Path(setup.checkpoints[0])
    path = folder / "results" / checkpoint.parent.name / checkpoint.name / "final_result.json"
    return [result["predict"] for result in json.loads(path.read_text())]


def count_other(lists: Sequence[Sequence[str]], expected: Sequence[Sequence[tuple[str, float]]]) -> int:
    """Return how many lists are not the baseline's; items of all but equal scores may swap places."""
    other = abs(len(lists) - len(expected))
    for items, ranked in zip(lists, expected):
        scores = dict(ranked)
        last = min(scores.values(), default=0.0)
        # Each item once, and as many as wanted: a list that is shorter agrees as far as it goes.
        whole = 0 < len(ranked) == len(items) == len(set(items))
        other += not whole or not all(
            item == wanted or abs(scores.get(item, last) - score) < NEAR_TIE
            for item, (wanted, score) in zip(items, ranked)
        )
    return other


# -- what it is measured on -----------------------------------------------------------------------------


def find_setup(reference: Path) -> Setup:
    """Return the checkpoints and the test set of a reference folder."""
    checkpoints = sorted(str(path) for path in reference.glob("saves/*/checkpoint-*"))
    indexes = sorted(reference.glob("data/*/id2sid.json"))
    if not checkpoints or not indexes:
        sys.exit(f"evaluator.py: {reference} holds no saves/*/checkpoint-* or no data/*/id2sid.json")
    return Setup(tuple(checkpoints), str(indexes[0].parent / "sft" / "test.json"), str(indexes[0]))


def make_setup(folder: Path) -> Setup:
    """Make a test set of the shape of a real one, and two checkpoints with random weights.

    The shape: 128 rows with histories of 1 to 10 items, prompts of 120 tokens on average, 3677 items in
    94 x 256 x 256 codes. The weights are spread wide, so that hardly any two items have the same score.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sys.path.insert(0, str(REPO / "examples" / "quickstart"))
    from train import make_tokenizer

    chance = random.Random(0)
    ids = {tuple(chance.randrange(size) for size in (94, 256, 256)) for _ in range(3677)}
    index = {str(number): [f"<{'abc'[level]}_{code}>" for level, code in enumerate(codes)]
             for number, codes in enumerate(sorted(ids))}  # fmt: skip
    items = ["".join(tokens) for tokens in index.values()]
    words = [
        f"{start}{end}"
        for start in ("re", "con", "in", "de", "ex")
        for end in ("fer", "tend", "form", "cite")
    ]
    system = " ".join(chance.choice(words) for _ in range(60))
    rows = [
        {
            "system": system,
            "instruction": "Which item is next?",
            "input": "History: "
            + ", ".join(chance.choices(items, k=chance.choice([1, 2, 3, 3, 4, 4, 5, 5, 7, 10]))),
            "output": chance.choice(items),
        }
        for _ in range(128)
    ]
    (folder / "test.json").write_text(json.dumps(rows))
    (folder / "id2sid.json").write_text(json.dumps(index))
    tokens = sorted({token for codes in index.values() for token in codes})
    tokenizer = make_tokenizer([system, "Which item is next?\n\nHistory: , "], tokens)
    checkpoints = []
    for step in (300, 600):
        checkpoint = folder / "saves" / "benchmark-sft-tiny" / f"checkpoint-{step}"
        torch.manual_seed(step)
        model = Qwen2ForCausalLM(
            Qwen2Config(
                vocab_size=-(-(len(tokenizer)) // 64) * 64,
                hidden_size=128,
                intermediate_size=384,
                num_hidden_layers=2,
                num_attention_heads=4,
                num_key_value_heads=2,
                max_position_embeddings=1024,
                initializer_range=0.2,
                tie_word_embeddings=True,
            )
        )
        model.save_pretrained(checkpoint)
        tokenizer.save_pretrained(checkpoint)
        checkpoints.append(str(checkpoint))
    return Setup(tuple(checkpoints), str(folder / "test.json"), str(folder / "id2sid.json"))


# -- the command line -----------------------------------------------------------------------------------


def main() -> int:
    """Print a row a line, as JSON; return 0 where every target is reached, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--reference", type=Path, metavar="DIR", help="a real model and test set")
    arguments = parser.parse_args()
    rows = measure(arguments.reference)
    for found in rows:
        print(json.dumps(found))
    return 0 if all(found["reached"] for found in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
