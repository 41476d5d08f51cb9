"""Read the choices of a chat completion: untrusted JSON, of which every type is checked.

Of the tokens that a server reports, those that make up the response are read; its end token, and what else it hides, is not.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

from swift_rm.api.failures import RetryableFault, UnusableReply
from swift_rm.reward.logprobs import TokenLogprobs

_NUMBERED = re.compile(r"token_id:\d+")  # vLLM's, where it is told to return ids instead of texts
_ESCAPED = re.compile(r"(\\x[0-9a-fA-F]{2})+")  # OpenAI's text of a token that is a part of a character
_LOST = "\ufffd".encode()  # in place of a part of a character
_SPACE = re.compile(rb"\s|\xe2\x96\x81|\xc4\xa0|\xc4\x8a")  # and what tokenizers write for it

NO_LOGPROBS = (
    "this server accepted the request but returned no log-probabilities: reasoning models of OpenAI's and many hosted ones "
    "never do; take another model, or serve one yourself with vLLM or llama.cpp's server, both of which return them"
)
BROKEN = ("content_filter", "error", "abort")  # finish reasons of what is no whole response
THOUGHTS = ("reasoning_content", "reasoning")  # where servers put what they take out of the content


@dataclass(frozen=True)
class ApiResponse:
    """One response: its text, its tokens' log-probabilities, why it ended, and how many tokens were generated for it.

    The log-probabilities are those of the tokens that make up the text; the end token is not among them. ``pieces`` are
    these tokens' texts.
    """

    text: str
    logprobs: TokenLogprobs
    finish_reason: Literal["stop", "length"]
    tokens: int
    pieces: tuple[str, ...] = ()


def read_reply(body: Any, count: int, alternatives: int) -> list[ApiResponse]:
    """Return the first ``count`` responses of a reply, in the order of their index, without those that are malformed.

    Raises RetryableFault if none can be read, UnusableReply where log-probabilities, or some of so many ``alternatives``, are
    missing.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices:
        raise RetryableFault("a reply without choices")
    if all(isinstance(choice, dict) and type(choice.get("index")) is int for choice in choices):
        choices = sorted(choices, key=lambda choice: choice["index"])
    responses: list[ApiResponse] = []
    fault = RetryableFault("a reply without choices")
    for choice in choices[:count]:
        try:
            responses.append(_read_choice(choice, alternatives))
        except RetryableFault as error:
            fault = error
    if not responses:
        raise fault
    return responses


def _read_choice(choice: Any, alternatives: int) -> ApiResponse:
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(content, str | None):
        raise RetryableFault("a choice without a message")
    reason = choice.get("finish_reason")
    if reason in BROKEN:
        raise RetryableFault(f"a response that ended with {reason!r}")
    text, hidden = content or "", any(isinstance(message.get(key), str) and message[key] for key in THOUGHTS)
    entries = _entries(choice, nothing=not text and not hidden)
    length = content_tokens(entries, text, reason != "length", hidden)
    read = entries[:length]
    try:
        logprobs = TokenLogprobs.of([entry.get("logprob") for entry in read], [_alternatives(entry) for entry in read])
    except ValueError as error:
        raise RetryableFault(f"a reply in which {error}") from None
    try:
        logprobs.alternatives(alternatives)
    except ValueError as error:
        raise UnusableReply(f"of a reply, {error}") from None
    pieces = tuple(str(entry.get("token", "")) for entry in read)
    return ApiResponse(text, logprobs, "length" if reason == "length" else "stop", max(len(entries), 1), pieces)


def _entries(choice: Mapping[str, Any], nothing: bool) -> list[dict[str, Any]]:
    """Return the tokens that a choice reports; with ``nothing`` in its message there may be none."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if nothing and content is None:
        return []
    if content is None or (content == [] and not nothing):
        raise UnusableReply(NO_LOGPROBS)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise RetryableFault("a choice whose log-probabilities are no list of tokens")
    return content


def _alternatives(entry: Mapping[str, Any]) -> list[Any]:
    """Return the log-probabilities of a token's alternatives."""
    top = entry.get("top_logprobs") or []
    if not isinstance(top, list) or not all(isinstance(one, dict) for one in top):
        raise ValueError("a token's alternatives are no list")
    return [one.get("logprob") for one in top]


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
