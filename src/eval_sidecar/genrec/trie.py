"""The index as tensors: which tokens may follow which beam, found by one gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TrieLevel:
    """The edges that leave the nodes of one depth, padded to the widest of these nodes.

    Attributes:
        tokens: Token id of each edge, 0 where padded; long, (nodes, width).
        heads: Where the edge leads: a node of the next depth, or, for an end-of-sequence edge, the item
            that is then complete; long, (nodes, width).
        allowed: False where padded; bool, (nodes, width).
        ends: True where the edge is the end-of-sequence token; bool, (nodes, width).
    """

    tokens: torch.Tensor
    heads: torch.Tensor
    allowed: torch.Tensor
    ends: torch.Tensor

    def to(self, device: torch.device) -> TrieLevel:
        """Return the level with its tensors on a device."""
        return TrieLevel(
            self.tokens.to(device), self.heads.to(device), self.allowed.to(device), self.ends.to(device)
        )


@dataclass(frozen=True)
class Trie:
    """A trie over token ids in which each item ends with an end-of-sequence edge.

    Attributes:
        levels: One table a depth. The last holds end-of-sequence edges only; their number minus one is the
            longest item's length in tokens.
    """

    levels: tuple[TrieLevel, ...]

    @property
    def depth(self) -> int:
        """Tokens of the longest item, end of sequence not counted."""
        return len(self.levels) - 1

    def to(self, device: torch.device) -> Trie:
        """Return the trie with its tensors on a device."""
        return Trie(tuple(level.to(device) for level in self.levels))


def build_trie(items: Sequence[Sequence[int]], eos: int) -> Trie:
    """Build the trie of distinct items; one item may be a prefix of another.

    Args:
        items: Token ids of each item, without the end of sequence; an end-of-sequence edge leads to the
            item's place in this list.
        eos: Token id that ends an item.
    """
    levels: list[TrieLevel] = []
    # The nodes of the present depth, each as the items that pass through it.
    nodes = [list(range(len(items)))]
    while nodes:
        depth = len(levels)
        edges: list[list[tuple[int, int, bool]]] = []
        following: list[list[int]] = []
        for passing in nodes:
            branches: dict[int, list[int]] = {}
            row: list[tuple[int, int, bool]] = []
            for item in passing:
                if len(items[item]) == depth:
                    row.append((eos, item, True))
                else:
                    branches.setdefault(items[item][depth], []).append(item)
            for token, members in branches.items():
                row.append((token, len(following), False))
                following.append(members)
            edges.append(row)
        levels.append(_pad(edges))
        nodes = following
    return Trie(tuple(levels))


def _pad(edges: list[list[tuple[int, int, bool]]]) -> TrieLevel:
    """Turn the edges of each node, as (token, head, ends), into tables."""
    width = max(len(row) for row in edges)
    padding = [(0, 0, False)]
    table = torch.tensor([row + padding * (width - len(row)) for row in edges], dtype=torch.long)
    counts = torch.tensor([len(row) for row in edges])
    return TrieLevel(
        tokens=table[..., 0].contiguous(),
        heads=table[..., 1].contiguous(),
        allowed=torch.arange(width) < counts[:, None],
        ends=table[..., 2].bool(),
    )
