"""Stop strings: end a response at certain text, whatever tokens write it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SPARE = 8  # tokens that are turned into text beyond one for each character of the longest stop string


def cut_at_stop_string(text: str, strings: Sequence[str]) -> str:
    """Return what comes before the first of the strings in a text."""
    found = [place for string in strings if (place := text.find(string)) >= 0]
    return text[: min(found, default=len(text))]


class StopText:
    """A stopping criterion: which rows ``[rows, seq]`` have just written one of the ``strings`` after their prompt's ``width``.

    transformers' own needs a tokenizer that can write any text, and searches its vocabulary. A string that holds a special
    token's text is looked for in the text with special tokens, any other in the text without them. What is found in a row's
    last tokens is looked for again in the whole response, since the first of several tokens may read otherwise alone.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, strings: str | Sequence[str], width: int) -> None:
        strings = [strings] if isinstance(strings, str) else strings
        special = [token for token in tokenizer.all_special_tokens if token]
        told = {skip: [s for s in strings if skip != any(token in s for token in special)] for skip in (True, False)}
        self._tokenizer, self._width = tokenizer, width
        self._kinds = [(skip, kind) for skip, kind in told.items() if kind]
        self._tail = max(map(len, strings)) + SPARE

    def __call__(self, input_ids: Tensor, scores: object = None, **kwargs: object) -> Tensor:
        """Return which rows are to end, ``[rows]``."""
        rows = input_ids[:, self._width :].tolist()
        hits = [any(self._ended(row, skip, strings) for skip, strings in self._kinds) for row in rows]
        return torch.tensor(hits, dtype=torch.bool, device=input_ids.device)

    def _ended(self, row: list[int], skip: bool, strings: Sequence[str]) -> bool:
        size, text = self._tail, ""
        while True:  # a character may be made of several tokens, and some tokens are not shown
            text = self._text(row[-size:], skip)
            if size >= len(row) or len(text.strip("\ufffd")) >= self._tail:
                break
            size *= 2
        found = any(string in text for string in strings)
        return found and (size >= len(row) or any(string in self._text(row, skip) for string in strings))

    def _text(self, row: list[int], skip: bool) -> str:
        return str(self._tokenizer.decode(row, skip_special_tokens=skip, clean_up_tokenization_spaces=False))
