"""Reads the index of items and the test set. No tokens, models or torch."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eval_sidecar.genrec.errors import EvaluationError, one_line

#: What every row of a test set must hold, each as a string.
ROW_FIELDS = ("system", "instruction", "input", "output")


@dataclass(frozen=True)
class ItemIndex:
    """The items that may be recommended, each distinct semantic ID once.

    Attributes:
        items: Semantic IDs, the tokens of each joined to one string, in the index's order.
        names: For each of ``items``, the first item id that has it; for messages.
        by_full_id: A semantic ID with all its levels, joined, to its place in ``items``. Differs from
            ``items`` only where levels are left out.
    """

    items: tuple[str, ...]
    names: tuple[str, ...]
    by_full_id: dict[str, int]

    def find(self, semantic_id: str) -> int | None:
        """Return the place in ``items`` of a target with all its levels, or None if it is not an item."""
        return self.by_full_id.get(semantic_id)


@dataclass(frozen=True)
class TestSet:
    """What every checkpoint is evaluated on.

    Attributes:
        rows: Rows of the test set.
        index: The items.
    """

    __test__ = False  # not a test class, despite its name

    rows: list[dict[str, Any]]
    index: ItemIndex


def load_index(path: Path, sid_levels: int = -1) -> ItemIndex:
    """Read ``id2sid.json``: item id to the list of its semantic-ID tokens.

    Args:
        path: The file.
        sid_levels: Levels to keep, counted from the first; 0 or less keeps all.

    Raises:
        EvaluationError: If the file cannot be read, is empty, or an entry is not a list of tokens.
    """
    entries = _load_json(path, "index")
    if not isinstance(entries, dict):
        raise EvaluationError(
            f"index {path}: expected an object of item id to tokens, found {_kind(entries)}"
        )
    if not entries:
        raise EvaluationError(f"index {path} is empty: it must map item ids to lists of tokens")
    places: dict[str, int] = {}
    names: list[str] = []
    by_full_id: dict[str, int] = {}
    for name, tokens in entries.items():
        if (
            not isinstance(tokens, list)
            or not tokens
            or not all(isinstance(token, str) and token for token in tokens)
        ):
            raise EvaluationError(
                f"index {path}, entry {json.dumps(name)}: expected a list of tokens such as "
                f'["<a_1>", "<b_2>", "<c_3>"], found {json.dumps(tokens)[:80]}'
            )
        kept = "".join(tokens[:sid_levels] if sid_levels > 0 else tokens)
        place = places.setdefault(kept, len(places))
        if place == len(names):
            names.append(name)
        by_full_id["".join(tokens)] = place
    # A test set that was made with fewer levels names its targets by the shortened ID.
    for kept, place in places.items():
        by_full_id.setdefault(kept, place)
    return ItemIndex(tuple(places), tuple(names), by_full_id)


def load_rows(path: Path) -> list[dict[str, Any]]:
    """Read the test set: a list of rows with ``system``, ``instruction``, ``input`` and ``output``.

    Raises:
        EvaluationError: If the file cannot be read, is empty, or a row lacks a field.
    """
    rows = _load_json(path, "test set")
    if not isinstance(rows, list):
        raise EvaluationError(f"test set {path}: expected a list of rows, found {_kind(rows)}")
    if not rows:
        raise EvaluationError(f"test set {path} is empty: there is nothing to evaluate")
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise EvaluationError(f"test set {path}, row {number}: expected an object, found {_kind(row)}")
        for field in ROW_FIELDS:
            if not isinstance(row.get(field), str):
                found = _kind(row[field]) if field in row else "nothing"
                raise EvaluationError(
                    f"test set {path}, row {number}: expected a string as {field!r}, found {found}"
                )
    return rows


def find_targets(rows: list[dict[str, Any]], index: ItemIndex) -> list[int | None]:
    """Return each row's target as its place in the index, None if it is not in the index."""
    return [index.find(row["output"].strip()) for row in rows]


def _load_json(path: Path, what: str) -> Any:  # noqa: ANN401  (any JSON value)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise EvaluationError(f"{what} {path} does not exist") from None
    except (OSError, ValueError) as error:
        raise EvaluationError(f"{what} {path} cannot be read: {one_line(error)}") from None


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")
