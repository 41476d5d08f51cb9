"""Which tokens of a response are read: all of them, those after a marker such as ``</think>``, or those that end a step."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Flag = Literal["marker_missing", "region_empty", "not_finite"]
WHOLE, AFTER, STEPS = "response", "after", "steps"


@dataclass(frozen=True)
class Region:
    """The indices of the response tokens that are read, ascending, and why all are where the region could not be had."""

    tokens: Sequence[int]
    flag: Flag | None = None


def parse_region(region: str) -> tuple[str, str | None]:
    """Return a region's kind and marker (None for the whole response); raise ValueError for what is no region."""
    kind, _, marker = region.partition(":")
    if region != WHOLE and not (kind in (AFTER, STEPS) and marker):
        raise ValueError(f"region must be 'response', 'after:<marker>' or 'steps:<marker>', got {region!r}")
    return kind, marker or None


def find_region(response_ids: Sequence[int], region: str, tokenizer: PreTrainedTokenizerBase | None) -> Region:
    """Find the tokens that a region reads: those that :class:`MarkerWatch` tells of while the response grows.

    If the marker never comes, or no token follows the one of ``after:<marker>``, the whole response is read and flagged.
    Raises ValueError if there is a marker but no tokenizer to find it with.
    """
    if parse_region(region)[1] is None:
        return Region(range(len(response_ids)))
    watch = MarkerWatch(region, tokenizer, rows=1)
    read = tuple(i for i, token in enumerate(response_ids) if watch.push([token], [True])[0])
    if not read:
        return Region(range(len(response_ids)), "region_empty" if watch.found[0] else "marker_missing")
    return Region(range(read[0], len(response_ids)) if watch.kind == AFTER else read)


class MarkerWatch:
    """Tell, token by token, which tokens of each row a region reads: ``after`` the marker's first, or those that complete it.

    A marker may span tokens or share one with other text; occurrences may overlap. Keeps as many of a row's last tokens as
    the marker may span, however long the response gets.
    """

    def __init__(self, region: str, tokenizer: PreTrainedTokenizerBase | None, rows: int) -> None:
        self.kind, marker = parse_region(region)
        if marker is None or tokenizer is None:
            raise ValueError(f"region '{region}' needs {'a marker' if marker is None else 'the tokenizer'}")
        self._marker, self._tokenizer = marker, tokenizer
        # A token is at least one byte of text; some more, for a dropped space or the rest of a character at the window's edge.
        self.width = len(marker.encode()) + 4
        self._recent: list[deque[int]] = [deque(maxlen=self.width) for _ in range(rows)]
        self.found = [False] * rows

    def push(self, tokens: Sequence[int], active: Sequence[bool]) -> list[bool]:
        """Take the next token of each row that is active, and return which of them are read; ``found`` is then up to date."""
        read = [False] * len(self.found)
        for row, (token, counts) in enumerate(zip(tokens, active, strict=True)):
            if not counts:
                continue
            if self.kind == AFTER and self.found[row]:
                read[row] = True
                continue
            self._recent[row].append(token)
            if self._completes(list(self._recent[row])):
                self.found[row] = True
                read[row] = self.kind == STEPS
        return read

    def _completes(self, window: list[int]) -> bool:
        """Tell whether the last token of the window completes the marker: its text reaches no earlier up to the marker's end."""
        text = self._text(window)
        for _ in range(3):  # a window that begins within a character begins with what some tokenizers read all bytes after as
            if not text.startswith("\ufffd") or len(window) == 1:
                break
            window = window[1:]
            text = self._text(window)
        if self._marker not in text:
            return False
        end = text.rfind(self._marker) + len(self._marker)
        # Not the token before alone: half a character may hide what was there, and the next token brings it back.
        return not any(self._text(window[:size]).startswith(text[:end]) for size in range(len(window) - 1, 0, -1))

    def _text(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one may be kept several times."""
        self._recent = [deque(self._recent[row], maxlen=self.width) for row in rows]
        self.found = [self.found[row] for row in rows]
