"""Where tags stand among sampled token ids: the ids are cut at the tags, and nothing is tokenised again."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_HALF = "\ufffd"  # what a tokenizer reads bytes as that are not, or not yet, a character
_WINDOW, _LONGEST = 4, 16  # tokens that are decoded together: at least, and where no character ever becomes whole


@dataclass(frozen=True)
class Piece:
    """A tag, or text between tags (``tag`` None), with its place ``[start, end)`` among the ids."""

    text: str
    start: int
    end: int
    tag: str | None = None


def cut_at_tags(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, tags: Sequence[str]) -> list[Piece]:
    """Cut ids into tags and the text between them; a tag counts however many tokens spell it.

    A token that holds the end of one piece and the beginning of the next belongs to the one that it begins in. Takes time
    linear in the number of ids.
    """
    found = re.compile("|".join(map(re.escape, sorted(tags, key=len, reverse=True))))
    single = {token: tag for tag in tags if (token := single_token(tokenizer, tag)) is not None}
    if len(single) == len(tags):
        pieces = _by_id(ids, tokenizer, single)
        if not any(piece.tag is None and found.search(piece.text) for piece in pieces):
            return pieces
    return _by_text(ids, tokenizer, found)


def single_token(tokenizer: PreTrainedTokenizerBase, tag: str) -> int | None:
    """Return the id of the token that is this tag, None if the vocabulary has none."""
    token = tokenizer.convert_tokens_to_ids(tag)
    return token if isinstance(token, int) and tokenizer.convert_ids_to_tokens(token) == tag else None


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of the tokenizer's special tokens: those with a part to play, and those added as special."""
    added = (token for token, about in tokenizer.added_tokens_decoder.items() if about.special)
    return {*tokenizer.all_special_ids, *added}


def token_starts(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase) -> tuple[str, list[int]]:
    """Return the text of the ids and where in it each token begins, one number an id.

    Tokens are decoded with a few before them, as a tokenizer may write a token in another way at the beginning of a text. A
    character that spans tokens begins with the first of them.
    """
    text, starts = [], []
    length = first = done = 0  # of the text; of the window's tokens; how much of the window's text has been taken
    for i in range(len(ids)):
        starts.append(length)
        window = _decode(tokenizer, ids[first : i + 1])
        whole = window.rstrip(_HALF)
        tokens = i + 1 - first
        if tokens >= _LONGEST or i + 1 == len(ids):
            whole = window
        if len(whole) > done:
            text.append(whole[done:])
            length += len(whole) - done
            done = len(whole)
        if tokens >= _WINDOW and len(whole) == len(window):
            first, done = i, len(_decode(tokenizer, [ids[i]]))
    return "".join(text), starts


def _by_id(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, tags: dict[int, str]) -> list[Piece]:
    pieces, start = [], 0
    for i, token in enumerate(ids):
        if token in tags:
            pieces += _between(ids, tokenizer, start, i)
            pieces.append(Piece(tags[token], i, i + 1, tags[token]))
            start = i + 1
    return pieces + _between(ids, tokenizer, start, len(ids))


def _between(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, start: int, end: int) -> list[Piece]:
    return [Piece(_decode(tokenizer, ids[start:end]), start, end)] if end > start else []


def _by_text(ids: Sequence[int], tokenizer: PreTrainedTokenizerBase, tags: re.Pattern[str]) -> list[Piece]:
    text, starts = token_starts(ids, tokenizer)

    def place(character: int) -> int:
        return bisect_left(starts, character) if character < len(text) else len(ids)

    pieces, last = [], 0
    for match in tags.finditer(text):
        if match.start() > last:
            pieces.append(Piece(text[last : match.start()], place(last), place(match.start())))
        pieces.append(Piece(match[0], place(match.start()), place(match.end()), match[0]))
        last = match.end()
    return pieces + ([Piece(text[last:], place(last), len(ids))] if last < len(text) else [])


def _decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
