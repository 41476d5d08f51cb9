"""Read the choices of a chat completion: untrusted JSON, of which every type is checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from swift_rm.api.content_tokens import content_tokens
from swift_rm.api.failures import Malformed, Unusable
from swift_rm.reward.logprobs import TokenLogprobs

NO_LOGPROBS = (
    "this server accepted the request but returned no log-probabilities: reasoning models of OpenAI's and many hosted ones "
    "never do; take another model, or serve one yourself with vLLM or llama.cpp's server, both of which return them"
)
BROKEN = ("content_filter", "error", "abort")  # finish reasons of what is no whole response
THOUGHTS = ("reasoning_content", "reasoning")  # where servers put what they take out of the content


@dataclass(frozen=True)
class Answered:
    """One response: its text, its tokens' log-probabilities, why it ended, and how many tokens were generated for it.

    The log-probabilities are those of the tokens that make up the text; the end token is not among them. ``pieces`` are
    these tokens' texts.
    """

    text: str
    logprobs: TokenLogprobs
    finish_reason: Literal["stop", "length"]
    tokens: int
    pieces: tuple[str, ...] = ()


def read_reply(body: Any, count: int, alternatives: int) -> list[Answered]:
    """Return the first ``count`` responses of a reply, in the order of their index, without those that are malformed.

    Raises Malformed if none can be read, Unusable where log-probabilities, or some of so many ``alternatives``, are missing.
    """
    choices = body.get("choices") if isinstance(body, dict) else None
    if not isinstance(choices, list) or not choices:
        raise Malformed("a reply without choices")
    if all(isinstance(choice, dict) and type(choice.get("index")) is int for choice in choices):
        choices = sorted(choices, key=lambda choice: choice["index"])
    answers: list[Answered] = []
    fault = Malformed("a reply without choices")
    for choice in choices[:count]:
        try:
            answers.append(_read_choice(choice, alternatives))
        except Malformed as error:
            fault = error
    if not answers:
        raise fault
    return answers


def _read_choice(choice: Any, alternatives: int) -> Answered:
    message = choice.get("message") if isinstance(choice, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(message, dict) or not isinstance(content, str | None):
        raise Malformed("a choice without a message")
    reason = choice.get("finish_reason")
    if reason in BROKEN:
        raise Malformed(f"a response that ended with {reason!r}")
    text, hidden = content or "", any(isinstance(message.get(key), str) and message[key] for key in THOUGHTS)
    entries = _entries(choice, nothing=not text and not hidden)
    length = content_tokens(entries, text, reason != "length", hidden)
    read = entries[:length]
    try:
        logprobs = TokenLogprobs.of([entry.get("logprob") for entry in read], [_alternatives(entry) for entry in read])
    except ValueError as error:
        raise Malformed(f"a reply in which {error}") from None
    try:
        logprobs.alternatives(alternatives)
    except ValueError as error:
        raise Unusable(f"of a reply, {error}") from None
    pieces = tuple(str(entry.get("token", "")) for entry in read)
    return Answered(text, logprobs, "length" if reason == "length" else "stop", max(len(entries), 1), pieces)


def _entries(choice: Mapping[str, Any], nothing: bool) -> list[dict[str, Any]]:
    """Return the tokens that a choice reports; with ``nothing`` in its message there may be none."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    if nothing and content is None:
        return []
    if content is None or (content == [] and not nothing):
        raise Unusable(NO_LOGPROBS)
    if not isinstance(content, list) or not all(isinstance(entry, dict) for entry in content):
        raise Malformed("a choice whose log-probabilities are no list of tokens")
    return content


def _alternatives(entry: Mapping[str, Any]) -> list[Any]:
    """Return the log-probabilities of a token's alternatives."""
    top = entry.get("top_logprobs") or []
    if not isinstance(top, list) or not all(isinstance(one, dict) for one in top):
        raise ValueError("a token's alternatives are no list")
    return [one.get("logprob") for one in top]
