"""Turn the tokens of a response into text while they come: only what no later token can change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, cast

from swift_rm.tokens.stop_text import cut_at_stop_string

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class IncrementalDetokenizer:
    """The text of one response, token by token; what ``push`` and ``finish`` return is, joined, the response's text.

    Held back are half characters, for as long as it takes, and what may be the beginning of a stop string. ``open_ends`` are
    those of the tokenizer, see :func:`unsettled_tokens`. Only the latest tokens are turned into text again, after those in front
    of them, without which some tokenizers drop a space.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stop: Sequence[str], open_ends: frozenset[int]) -> None:
        self._tokenizer, self._stop, self._open_ends = tokenizer, list(stop), open_ends
        self._longest = max(map(len, stop), default=1) - 1  # of a stop string's beginnings
        self._start = self._done = self._seen = 0  # ids[start:done] is context, whose text has `seen` characters
        self._held, self._sent, self._over = "", 0, False

    def push(self, ids: Sequence[int]) -> str:
        """Return what is certain now and was not before, of all the tokens so far."""
        if len(ids) <= self._done or ids[-1] in self._open_ends:
            return ""
        text = self._text(ids[self._start :])
        if text.endswith("\ufffd"):
            return ""
        more, latest = text[self._seen :], self._text(ids[self._done :])
        self._start, self._seen = (self._done, len(latest)) if latest else (self._start, len(text))
        self._done = len(ids)
        return self._certain(more)

    def finish(self, text: str) -> str:
        """Return what is left of the response, now that all its ``text`` is known."""
        return text[self._sent :]

    def _certain(self, more: str) -> str:
        held = "" if self._over else self._held + more
        certain = cut_at_stop_string(held, self._stop)
        self._over = self._over or certain != held
        if not self._over:
            sizes = range(min(self._longest, len(held)), 0, -1)
            size = next((size for size in sizes if any(s.startswith(held[-size:]) for s in self._stop)), 0)
            certain = held[: len(held) - size]
        self._held = held[len(certain) :]
        self._sent += len(certain)
        return certain

    def _text(self, ids: Sequence[int]) -> str:
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def unsettled_tokens(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens after which text may still change: those that show nothing, and those that stand for single bytes.

    With tokens <0x00> to <0xFF> some tokenizers write characters that they have no token for. One that is no part of a
    character makes all bytes beside it unreadable, across tokens that show nothing, too.
    """
    names = [f"<0x{byte:02X}>" for byte in range(256)]
    ids = cast("list[int | None]", tokenizer.convert_tokens_to_ids(names))
    found = [one for one in ids if one is not None]  # the unknown token's is none of a byte
    single = [one for one, name in zip(found, tokenizer.convert_ids_to_tokens(found), strict=True) if name in names]
    return frozenset([*tokenizer.all_special_ids, *single])
