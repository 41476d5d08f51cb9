"""Which tokens of a response are read: all of them, or those after a marker such as ``</think>``."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Flag = Literal["marker_missing", "region_empty", "not_finite"]


@dataclass(frozen=True)
class Region:
    """Where reading starts in a response, and why the whole response is read instead where the region could not be had."""

    start: int
    flag: Flag | None = None


def find_region(response_ids: Sequence[int], marker: str | None, tokenizer: PreTrainedTokenizerBase | None) -> Region:
    """Find the first token after the marker's first occurrence; the marker may span tokens or share one with other text.

    Without a marker in the configuration the whole response is the region. If the marker never comes, or no token
    follows it, the whole response is read and flagged. Raises ValueError if there is a marker but no tokenizer to find
    it with.
    """
    if marker is None:
        return Region(0)
    if tokenizer is None:
        raise ValueError(f"region 'after:{marker}' needs the tokenizer")
    if marker not in _text(tokenizer, response_ids):
        return Region(0, "marker_missing")
    low, high = 1, len(response_ids)  # smallest prefix that contains the marker
    while low < high:
        middle = (low + high) // 2
        if marker in _text(tokenizer, response_ids[:middle]):
            high = middle
        else:
            low = middle + 1
    return Region(low) if low < len(response_ids) else Region(0, "region_empty")


class MarkerWatch:
    """Tell, token by token, in which rows the marker has come: :func:`find_region` for responses that are still growing.

    Keeps as many of a row's last tokens as the marker may span, however long the response gets.
    """

    def __init__(self, marker: str, tokenizer: PreTrainedTokenizerBase | None, rows: int) -> None:
        if tokenizer is None:
            raise ValueError(f"region 'after:{marker}' needs the tokenizer")
        self._marker, self._tokenizer = marker, tokenizer
        # A token is at least one byte of text; some more, because a tokenizer may drop a space at the window's edge.
        self.width = len(marker.encode()) + 4
        self._recent: list[deque[int]] = [deque(maxlen=self.width) for _ in range(rows)]
        self.found = [False] * rows

    def push(self, tokens: Sequence[int], active: Sequence[bool]) -> None:
        """Take the next token of each row that is active; ``found`` is then up to date."""
        for row, (token, counts) in enumerate(zip(tokens, active, strict=True)):
            if counts and not self.found[row]:
                self._recent[row].append(token)
                self.found[row] = self._marker in _text(self._tokenizer, self._recent[row])

    def select(self, rows: Sequence[int]) -> None:
        """Keep these rows, in this order; one may be kept several times."""
        self._recent = [deque(self._recent[row], maxlen=self.width) for row in rows]
        self.found = [self.found[row] for row in rows]


def _text(tokenizer: PreTrainedTokenizerBase, ids: Iterable[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
