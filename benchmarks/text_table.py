"""Rows that print as an aligned table, so that one result serves people and JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Cells = Sequence[Sequence[str]]


class Table(list[Any]):
    """A JSON-ready list that prints as ``cells``: a header, and rows of texts."""

    def __init__(self, rows: Sequence[Any], cells: Cells) -> None:
        super().__init__(rows)
        self._cells = cells

    def __str__(self) -> str:
        """Print the cells."""
        return aligned(self._cells)


class NamedTable(dict[str, Any]):
    """A JSON-ready object with a row by each name, that prints as ``cells``."""

    def __init__(self, rows: Mapping[str, Any], cells: Cells) -> None:
        super().__init__(rows)
        self._cells = cells

    def __str__(self) -> str:
        """Print the cells."""
        return aligned(self._cells)


def aligned(cells: Cells) -> str:
    """Align the first column left and the others right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))])
        for row in cells
    ]
    return "\n" + "\n".join(lines)


def shown(interval: dict[str, float | None], signed: bool = False) -> str:
    """Return an interval in per cent: ``82.1 [80.3, 83.9]``, or a dash where it is not defined."""
    value, low, high = (interval[name] for name in ("value", "low", "high"))
    if value is None or low is None or high is None:
        return "-"
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"
