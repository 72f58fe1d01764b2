"""The index as tensors: which tokens may follow which beam, found by one gather."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class TrieLevel:
    """The edges that leave the nodes of one depth, padded to the widest of these nodes.

    Attributes:
        tokens: Token id of each edge, 0 for padding; long, (nodes, width).
        heads: Where the edge leads: a node of the next depth, or, for an end-of-sequence edge, the item
            that is then complete; long, (nodes, width).
        allowed: True for an edge, False for padding; bool, (nodes, width).
        ends: Whether the edge is the end-of-sequence token; bool, (nodes, width).
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
        items: Token ids of each item, without the end of sequence, which must not occur in them; an
            end-of-sequence edge leads to the item's place in this list.
        eos: Token id that ends an item.
    """
    depth = max(len(ids) for ids in items)
    table = torch.tensor([[*ids, eos] + [eos] * (depth - len(ids)) for ids in items])
    span = int(table.max()) + 1
    # The items that go on at the present depth, and the node that each is at.
    passing = torch.arange(len(items))
    nodes = torch.zeros_like(passing)
    count = 1
    levels: list[TrieLevel] = []
    while len(passing):
        tokens = table[passing, len(levels)]
        edges, edge_of_item = torch.unique(nodes * span + tokens, return_inverse=True)
        tails, ends = edges // span, edges % span == eos
        heads = torch.cumsum(~ends, dim=0) - 1  # what does not end gets the nodes of the next depth
        ending = tokens == eos
        heads[edge_of_item[ending]] = passing[ending]
        levels.append(_tabulate(tails, edges % span, heads, ends, count))
        count = int((~ends).sum())
        passing, nodes = passing[~ending], heads[edge_of_item[~ending]]
    return Trie(tuple(levels))


def _tabulate(
    tails: torch.Tensor, tokens: torch.Tensor, heads: torch.Tensor, ends: torch.Tensor, nodes: int
) -> TrieLevel:
    """Turn a list of edges, sorted by the node that each leaves, into tables of one row a node."""
    widths = torch.bincount(tails, minlength=nodes)
    columns = torch.arange(len(tails)) - (torch.cumsum(widths, dim=0) - widths)[tails]
    shape = (nodes, int(widths.max()))

    def fill(values: torch.Tensor) -> torch.Tensor:
        table = torch.zeros(shape, dtype=values.dtype)
        table[tails, columns] = values
        return table

    return TrieLevel(fill(tokens), fill(heads), fill(torch.ones_like(ends)), fill(ends))
