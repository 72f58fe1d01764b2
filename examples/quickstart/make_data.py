"""Make a small shop, its customers and their histories, as data for a generative recommender.

Nothing is downloaded. The shop has 64 shelves of 5 items. A customer who took something from one shelf
mostly goes on to the shelf that follows it, and takes a popular item there: what a model can learn is which
shelf follows which. Files are laid out as the evaluation expects them:

    <folder>/data/Quickstart/id2sid.json       item id -> semantic-ID tokens
    <folder>/data/Quickstart/sft/train.json    rows of system, instruction, input, output
    <folder>/data/Quickstart/sft/test.json     the same, for customers that are not in train.json
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

DATASET = "Quickstart"
SHELVES = 64
ITEMS_PER_SHELF = 5
TRAIN_ROWS = 6000
TEST_ROWS = 128
SEED = 42

SYSTEM = "Recommend the next item."
INSTRUCTION = "What will this customer take next?"


def make_index(rng: random.Random) -> list[list[str]]:
    """Return the semantic ID of each item, three tokens, coarse to fine: department, shelf, item."""
    codes = {level: rng.sample(range(64), 64) for level in "abc"}
    index = []
    for shelf in range(SHELVES):
        department, place = divmod(shelf, 8)
        for item in range(ITEMS_PER_SHELF):
            a, b, c = codes["a"][department], codes["b"][place], codes["c"][item * 8 + place]
            index.append([f"<a_{a}>", f"<b_{b}>", f"<c_{c}>"])
    return index


def make_history(rng: random.Random, following_shelf: list[int]) -> list[int]:
    """Return the item ids that one customer took, oldest first."""
    shelf = rng.randrange(SHELVES)
    history = []
    for _ in range(rng.randint(4, 7)):
        popularity = [1 / (rank + 1) for rank in range(ITEMS_PER_SHELF)]
        item = rng.choices(range(ITEMS_PER_SHELF), popularity)[0]
        history.append(shelf * ITEMS_PER_SHELF + item)
        follows = rng.random() < 0.9
        shelf = following_shelf[shelf] if follows else rng.randrange(SHELVES)
    return history


def make_row(history: list[int], index: list[list[str]]) -> dict[str, str]:
    """Return one example: everything but the last item is the prompt, the last item is the answer."""
    items = ["".join(index[item]) for item in history]
    return {
        "system": SYSTEM,
        "instruction": INSTRUCTION,
        "input": "History: " + ", ".join(items[:-1]),
        "output": items[-1],
    }


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as JSON; the folder is made if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Write the three files; the same seed gives the same files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path, help="where data/ is made")
    folder = parser.parse_args().folder / "data" / DATASET

    rng = random.Random(SEED)
    index = make_index(rng)
    following_shelf = rng.sample(range(SHELVES), SHELVES)
    rows = [make_row(make_history(rng, following_shelf), index) for _ in range(TRAIN_ROWS + TEST_ROWS)]

    write_json(folder / "id2sid.json", dict(enumerate(index)))
    write_json(folder / "sft" / "train.json", rows[TEST_ROWS:])
    # Last, because the quickstart takes this file as the sign that the data is complete.
    write_json(folder / "sft" / "test.json", rows[:TEST_ROWS])


if __name__ == "__main__":
    main()
