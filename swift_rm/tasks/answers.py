r"""Find the final answer in a response, and compare answers as words.

An answer is looked for after the last ``</think>``, if there is one, in this order: the last ``<answer>...</answer>``,
the last ``\boxed{...}``, the last ``#### ...``, the last "the answer is ..." (or "answer: ..."). A response that is
nothing but one short line is its own answer. Any other response has none: None, which is counted apart from wrong.
Only the end of a very long response is read, so that no response takes more than a fraction of a second.
"""

from __future__ import annotations

import re
import string

READ_CHARS = 50_000
SHORT_CHARS = 80

TEXT_COMMAND = re.compile(r"\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox)\s*\{([^{}]*)\}")
_BRACES = re.compile(r"(?P<box>\\(?:boxed|fbox)\s*+\{)|\\boxed\s++(?P<bare>[^\s${}]++)|\\.|[{}]", re.DOTALL)
_ANSWER_IS = re.compile(r"\banswer(?:\s++is\b\s*+:?|\s*+\*{0,2}:)\**+\s*+(?P<answer>[^\n]*+)", re.IGNORECASE)
_HASHES = re.compile(r"####[ \t]*+(?P<answer>[^\n]*+)")
_PLAIN_NUMBER = re.compile(r"[-+]?\$?[0-9][0-9,./]*+%?\s*+")
_SENTENCE_END = re.compile(r"[.!?](?=\s|$)")
_CHOICE = re.compile(r"\(?([a-z])\)")
_AROUND = string.whitespace + "*\N{NO-BREAK SPACE}"
_DELIMITERS = (("$$", "$$"), ("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("`", "`"))


def final_part(response: str) -> str:
    """Return where the answer may stand: after the last ``</think>`` if any, at most the last 50,000 characters."""
    return response.rpartition("</think>")[2][-READ_CHARS:]


def find_answer(response: str) -> str | None:
    """Return the response's final answer as it is written, without delimiters around it, or None if there is none."""
    text = final_part(response)
    for find in (answer_block, boxed, after_hashes, answer_sentence):
        if (found := find(text)) is not None:
            return strip_delimiters(found) or None
    line = strip_delimiters(text)
    return line if line and len(line) <= SHORT_CHARS and "\n" not in line else None


def answer_block(text: str) -> str | None:
    """Return the content of the last ``<answer>`` block; if none is closed, of the one that the end of text closes."""
    end = text.rfind("</answer>")
    end = len(text) if end < 0 else end
    start = text.rfind("<answer>", 0, end)
    if start < 0:
        return None
    block = text[start + len("<answer>") : end]
    inner = boxed(block)
    return block if inner is None else inner


def boxed(text: str) -> str | None:
    r"""Return the content of the last complete ``\boxed{...}`` (``\fbox{...}``, ``\boxed 5``), braces balanced."""
    opened: list[int | None] = []  # for each open brace: where the content of its box starts, None if it is no box
    last_start, content = -1, None
    for token in _BRACES.finditer(text):
        start = None
        if token["box"]:
            opened.append(token.end())
        elif token["bare"]:
            start, end = token.span("bare")
        elif token[0] == "{":
            opened.append(None)
        elif token[0] == "}" and opened:
            start, end = opened.pop(), token.start()
        if start is not None and start > last_start:
            last_start, content = start, text[start:end]
    return content


def after_hashes(text: str) -> str | None:
    """Return what follows ``####``, as in GSM8K's solutions: the last time that it is a number or the last line.

    Otherwise ``####`` is a heading.
    """
    found = list(_HASHES.finditer(text))
    if found and not text[found[-1].end() :].strip():
        return found[-1]["answer"]
    return next((match["answer"] for match in reversed(found) if _PLAIN_NUMBER.fullmatch(match["answer"])), None)


def answer_sentence(text: str) -> str | None:
    """Return what follows the last "answer is" or "answer:", up to the end of the sentence."""
    found = list(_ANSWER_IS.finditer(text))
    return _SENTENCE_END.split(found[-1]["answer"], maxsplit=1)[0] if found else None


def strip_delimiters(text: str) -> str:
    """Return the text without the white space, full stop, asterisks and math delimiters around it."""
    before = None
    while text != before:
        before = text
        text = text.lstrip(_AROUND).rstrip(_AROUND + ".")
        for opening, closing in _DELIMITERS:
            inner = text[len(opening) : len(text) - len(closing)]
            if text == opening + inner + closing and opening not in inner and closing not in inner:
                text = inner
    return text


def normalise(text: str) -> str:
    r"""Return the form in which words are compared: one case, single spaces, no ``\text{}``; ``(B)`` becomes ``b``."""
    text = " ".join(strip_delimiters(TEXT_COMMAND.sub(r"\1", text)).split()).casefold()
    choice = _CHOICE.fullmatch(text)
    return choice[1] if choice else text


def same_text(reference: str, answer: str) -> bool:
    """Tell whether two answers are the same words."""
    return normalise(reference) == normalise(answer)
