"""Decides which rows are searched together. Plain arithmetic, no torch."""

from __future__ import annotations

from collections.abc import Sequence

#: Cache slots of a batch for each unit of ``--batch-size``. ``generate()`` at the same batch size holds
#: ``batch_size * num_beams`` whole prompts, several times as much.
SLOTS_PER_ROW = 1024

#: Logits of a level for each unit of ``--batch-size`` (numbers, not bytes).
LOGITS_PER_ROW = 1 << 26


def plan_batches(
    lengths: Sequence[int],
    num_beams: int,
    depth: int,
    batch_size: int,
    vocabulary: int,
    one_length: bool = False,
) -> list[list[int]]:
    """Return batches of row numbers, each of similar lengths, within a budget of tokens.

    Args:
        lengths: Tokens of each row's prompt.
        num_beams: Beams of a row.
        depth: Tokens of the longest item: levels of the tree, the root apart.
        batch_size: What the budget is proportional to.
        vocabulary: Width of the model's logits.
        one_length: Whether all rows of a batch must have the same length; each beam then holds its own
            prompt, and a batch has ``batch_size`` rows at most, as in ``generate()``.

    Returns:
        Batches, longest rows last; rows of one length stand in the test set's order.
    """
    by_length = sorted(range(len(lengths)), key=lambda row: lengths[row])
    widest = max(1, batch_size * LOGITS_PER_ROW // (num_beams * vocabulary))
    if one_length:
        widest = min(widest, batch_size)
    budget = batch_size * SLOTS_PER_ROW
    batches: list[list[int]] = []
    for row in by_length:
        slots = lengths[row] + depth * num_beams
        # Rows come by rising length: the last one decides how far all are padded.
        fits = bool(batches) and len(batches[-1]) < widest
        if fits and one_length:
            fits = lengths[batches[-1][0]] == lengths[row]
        elif fits:
            fits = (len(batches[-1]) + 1) * slots <= budget
        if fits:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
