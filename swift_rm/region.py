"""Which tokens of a response are read: all of them, or those after a marker such as ``</think>``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Flag = Literal["marker_missing", "region_empty"]


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


def _text(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
