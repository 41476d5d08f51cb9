"""Tell which of the tokens that a server reports make up a response: its end token, and what else it hides, do not."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

_NUMBERED = re.compile(r"token_id:\d+")  # vLLM's, where it is told to return ids instead of texts
_ESCAPED = re.compile(r"(\\x[0-9a-fA-F]{2})+")  # OpenAI's text of a token that is a part of a character
_LOST = "\ufffd".encode()  # in place of a part of a character
_SPACE = re.compile(rb"\s|\xe2\x96\x81|\xc4\xa0|\xc4\x8a")  # and what tokenizers write for it


def content_tokens(entries: Sequence[Mapping[str, Any]], content: str, stopped: bool, hidden: bool = False) -> int:
    """Return how many of the first tokens ``entries`` of a reply make up its ``content``; what follows these is no part of it.

    The tokens' bytes are compared with the content's, then both without white space, which some servers strip or do not
    tell. What comes before the content (a thought, say) counts as a part of the response; with ``hidden`` thoughts, an empty
    content does not mean an empty response. Where some tokens' bytes are not known (ids in place of texts, parts of characters
    without ``bytes``) or the two do not fit, only what is certain is left out: the last token of a response that ``stopped``
    by itself, if its text is known and not that with which the content ends, or if only its id is known, which only servers
    do that report the end token.
    """
    pieces = [_bytes(entry) for entry in entries]
    if not content and not hidden:
        return 0
    whole = content.encode("utf-8", "surrogatepass")
    if content and None not in pieces:
        known = [piece or b"" for piece in pieces]
        found = _covering(known, whole)
        if found is None:
            found = _covering([_SPACE.sub(b"", piece) for piece in known], _SPACE.sub(b"", whole))
        if found is not None:
            return found
    if not stopped or not entries:
        return len(entries)
    last, text = pieces[-1], entries[-1].get("token")
    numbered = isinstance(text, str) and _NUMBERED.fullmatch(text) is not None
    return len(entries) - (numbered or (bool(last) and not (content and whole.endswith(last or b""))))


def _covering(pieces: Sequence[bytes], content: bytes) -> int | None:
    """Return how many pieces it takes to cover the content, or None if they do not hold it."""
    joined = b"".join(pieces)
    start = 0 if joined.startswith(content) else joined.rfind(content)
    if start < 0:
        return None
    end = start + len(content)
    return next((i for i, length in enumerate(accumulate(map(len, pieces), initial=0)) if length >= end), None)


def _bytes(entry: Mapping[str, Any]) -> bytes | None:
    """Return a token's bytes, or None where they are not known."""
    token, given = entry.get("token"), entry.get("bytes")
    if isinstance(token, str) and _NUMBERED.fullmatch(token):
        return None
    if isinstance(given, list) and all(type(value) is int and 0 <= value < 256 for value in given):
        found = bytes(given)
    elif isinstance(token, str) and not _ESCAPED.fullmatch(token):
        found = token.encode("utf-8", "surrogatepass")
    else:
        return None
    return None if _LOST in found else found
