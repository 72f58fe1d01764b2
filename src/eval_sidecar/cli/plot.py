"""Curves in a terminal, in Braille dots: two by four to a character."""

from __future__ import annotations

from collections.abc import Sequence

#: Bit of each dot of a Braille character, by column and row.
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))


def plot(points: Sequence[tuple[float, float]], width: int, height: int = 10) -> list[str]:
    """Return the lines of a curve with its highest and lowest value and its first and last step.

    Args:
        points: Step and value, by step; at least one.
        width: Columns for everything.
        height: Lines of the curve.
    """
    steps, values = [step for step, _ in points], [value for _, value in points]
    low, high = min(values), max(values)
    labels = {0: f"{high:.4g}", height - 1: f"{low:.4g}"} if high > low else {height // 2: f"{high:.4g}"}
    margin = max(map(len, labels.values()))
    columns = max(2, width - margin - 3)
    pixels = [
        (
            _scaled(step, steps[0], steps[-1], columns * 2),
            height * 4 - 1 - _scaled(value, low, high, height * 4),
        )
        for step, value in points
    ]
    cells = [[0] * columns for _ in range(height)]
    for (x0, y0), (x1, y1) in zip(pixels, [*pixels[1:], pixels[-1]]):
        length = max(abs(x1 - x0), abs(y1 - y0), 1)
        for part in range(length + 1):
            x, y = x0 + (x1 - x0) * part // length, y0 + (y1 - y0) * part // length
            cells[y // 4][x // 2] |= _DOTS[x % 2][y % 4]
    lines = [
        f"{labels.get(row, ''):>{margin}} ┤" + "".join(chr(0x2800 + dots) for dots in line).rstrip("\u2800")
        for row, line in enumerate(cells)
    ]
    first, last = f"{steps[0]:g}", f"{steps[-1]:g}"
    axis = f"{first}{last:>{columns - len(first)}}" if len(steps) > 1 else first
    return [*lines, " " * margin + " └" + "─" * columns, " " * (margin + 2) + axis]


def _scaled(value: float, low: float, high: float, size: int) -> int:
    return round((value - low) / (high - low) * (size - 1)) if high > low else (size - 1) // 2
