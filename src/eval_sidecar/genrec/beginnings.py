"""Finds common beginnings of prompts, so that each is computed once. No torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

#: Tokens that a group of prompts must save. Each group has batches of its own, which costs time.
LEAST_SAVED = 1024


def group_by_beginning(prompts: Sequence[Sequence[int]]) -> list[tuple[list[int], int]]:
    """Group prompts by the template that they are made from.

    Args:
        prompts: Token ids of each prompt, at least one per prompt.

    Returns:
        Groups: the places of its prompts, and how many first tokens these share. That is less than the
        length of each of them, and 0 if computing them once would save little.
    """
    return list(_split(prompts, sorted(range(len(prompts)), key=lambda row: tuple(prompts[row]))))


def _split(prompts: Sequence[Sequence[int]], rows: list[int]) -> Iterator[tuple[list[int], int]]:
    """Yield the groups of some prompts, which are sorted by their tokens."""
    shared = _count_shared(prompts, rows)
    rest: list[int] = []
    for _, branch in groupby(rows, lambda row: prompts[row][shared : shared + 1]):
        members = list(branch)
        if (len(members) - 1) * (_count_shared(prompts, members) - shared) >= LEAST_SAVED:
            yield from _split(prompts, members)
        else:
            rest += members
    if rest:
        # The last token of a prompt is computed separately, for the scores after it.
        shared = min(_count_shared(prompts, rest), min(len(prompts[row]) for row in rest) - 1)
        yield sorted(rest), shared if (len(rest) - 1) * shared >= LEAST_SAVED else 0


def _count_shared(prompts: Sequence[Sequence[int]], rows: Sequence[int]) -> int:
    """Return how many first tokens are common to prompts that are sorted by their tokens."""
    first, last = prompts[rows[0]], prompts[rows[-1]]
    pairs = enumerate(zip(first, last))
    return next((place for place, (one, other) in pairs if one != other), min(len(first), len(last)))
