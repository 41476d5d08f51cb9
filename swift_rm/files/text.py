"""Text for people: counted things, aligned rows, what cannot be seen made visible, long texts cut."""

from __future__ import annotations

import re
from collections.abc import Sequence

LONGEST_LABEL = 20


_UNCOMMON = re.compile(r"[^\n\t -~]")


def counted(count: int, what: str) -> str:
    """Return a number of things, the name of which takes an s in the plural."""
    return f"{count:,} {what}{'s' * (count != 1)}"


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Align the first column left, the others right; a header line is ruled off where there are columns."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = []
    for row in rows:
        right = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *right]).rstrip())
    if len(widths) > 1:
        lines.insert(1, "-" * (sum(widths) + 2 * len(widths) - 2))
    return "\n".join(lines)


def visible(text: str) -> str:
    """Replace what cannot be seen or reorders text by its code point; line feeds, tabs and spaces stay."""
    return _UNCOMMON.sub(lambda c: c[0] if c[0].isprintable() else f"\u2039U+{ord(c[0]):04X}\u203a", text)


def printable(text: str) -> str:
    """Return model output on one line without control characters, which could drive the terminal."""
    return "".join(c if c.isprintable() else " " for c in text)


def shortened(text: str, longest: int = LONGEST_LABEL) -> str:
    """Return the text, its middle left out if it is too long for a picture."""
    if len(text) <= longest:
        return text
    head = longest // 2
    return f"{text[:head]}\u2026{text[-(longest - 1 - head) :]}"


def clip(said: object, characters: int) -> str:
    """Return a text's first characters, and how many more there are."""
    whole = str(said)
    more = len(whole) - characters
    return whole if more <= 0 else f"{whole[:characters]}\u2026 ({more:,} more characters)"


def brief(said: str, characters: int) -> str:
    """Return the beginning of a text that stands whole elsewhere."""
    return said if len(said) <= characters else f"{said[:characters]}\u2026"
