"""Fit texts into a number of bytes of HTML: one that is too long is cut in its middle, which says what is left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby
from typing import Any

from swift_rm.files.text import visible
from swift_rm.records.rollouts import Rollout
from swift_rm.report.html_page import Html
from swift_rm.report.token_view import token_text
from swift_rm.report.token_view_data import Scale, TokenView, numbers

_LARGEST = 1e300  # JSON's numbers know no bounds

HEAD_SHARE = 0.6  # of what is shown; the answer is at the end
NOTE_BYTES = 100
MARK_BYTES = len('<i class="r20 g4"></i>')
TOKEN_BYTES = MARK_BYTES + 3  # of a shaded token besides its text, at most: without text it is one sign


@dataclass(frozen=True)
class Fitted:
    """A text as HTML, and how many of its characters are left out."""

    html: Html
    left_out: int = 0


def size(html: str) -> int:
    """Return the number of bytes of HTML in a file."""
    return len(html) if html.isascii() else len(html.encode())


def clip_plain(said: str, room: int) -> Fitted:
    """Return a text in at most ``room`` bytes, or ``NOTE_BYTES`` if that is more."""
    whole = plain_html(said)
    if size(whole) <= room:
        return Fitted(Html(whole))
    room = max(0, room - NOTE_BYTES)
    head = _leading(said, int(HEAD_SHARE * room))
    tail = len(said) - _leading(said[::-1], int((1 - HEAD_SHARE) * room))
    note, left_out = _note(said[head:tail])
    return Fitted(Html(plain_html(said[:head]) + note + plain_html(said[tail:])), left_out)


def clip_shaded(tokens: Tokens, scale: Scale, room: int) -> Fitted:
    """Return tokens coloured by reward and shaded by gate in at most ``room`` bytes, or ``NOTE_BYTES`` if that is more.

    Neighbours of the same colour and shade are one element; tokens that hardly count, or are not read, have none.
    """
    count = len(tokens)
    if _first(tokens, range(count), scale, room) == count:
        return Fitted(Html(_marked(tokens, range(count), scale)))
    room = max(0, room - NOTE_BYTES)
    head = _first(tokens, range(count), scale, int(HEAD_SHARE * room))
    tail = count - _first(tokens, range(count - 1, -1, -1), scale, int((1 - HEAD_SHARE) * room))
    note, left_out = _note("".join(tokens.text[head:tail]))
    parts = _marked(tokens, range(head), scale), note, _marked(tokens, range(tail, count), scale)
    return Fitted(Html("".join(parts)), left_out)


def shaded_size(tokens: Tokens) -> int:
    """Return the number of bytes that :func:`clip_shaded` needs at most."""
    return size(token_text("".join(tokens.text))) + TOKEN_BYTES * len(tokens)


def level(sizes: Sequence[int], room: int) -> int:
    """Return the size down to which the largest must be cut so that all fit into ``room``; what is smaller stays whole."""
    left = room
    for index, one in enumerate(ordered := sorted(sizes)):
        share = left // (len(ordered) - index)
        if one > share:
            return max(0, share)
        left -= one
    return max(ordered, default=0)


def plain_html(said: str) -> str:
    """Return a text as HTML, whole."""
    return escape(visible(said), quote=False)


def _leading(said: str, room: int) -> int:
    """Return how many first characters fit into ``room`` bytes, nearly as many as possible."""
    count = min(len(said), room)  # none has fewer than one
    while count and (needed := size(plain_html(said[:count]))) > room:
        count = min(count - 1, count * room // needed)
    return count


def _classes(tokens: Tokens, place: int, scale: Scale) -> str | None:
    """Return a token's colour and shade; none if it is not read or in the palest shade, whose colour is hardly seen."""
    known = numbers(tokens[place])
    name = None if known is None else scale.classes(*known)
    return None if name is None or name.endswith(" g0") else name


def _first(tokens: Tokens, places: Sequence[int], scale: Scale, room: int) -> int:
    """Return how many of the places, in this order, fit into ``room`` bytes."""
    before = None
    for count, place in enumerate(places):
        name = _classes(tokens, place, scale)
        room -= size(token_text(tokens.text[place])) + (MARK_BYTES if name and name != before else 0)
        if room < 0:
            return count
        before = name
    return len(places)


def _marked(tokens: Tokens, places: Sequence[int], scale: Scale) -> str:
    runs = groupby(places, lambda place: _classes(tokens, place, scale))
    said = [(name, "".join(token_text(tokens.text[place]) for place in run)) for name, run in runs]
    return "".join(shown if name is None else f'<i class="{name}">{shown}</i>' for name, shown in said)


def _note(said: str) -> tuple[str, int]:
    lines = said.count("\n")
    more = f" and {lines:,} line ends" if lines else ""
    return f'<b class="cut">\u2026 {len(said):,} characters{more} left out \u2026</b>', len(said)


@dataclass(frozen=True)
class Tokens:
    """The tokens of one response in columns, as read from a file; gate and reward are None where a token is not read."""

    text: Sequence[str]
    gate: Sequence[float | None]
    reward: Sequence[float | None]

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.text)

    def __getitem__(self, place: int) -> TokenView:
        """Return one token."""
        return TokenView(self.text[place], place, self.gate[place], self.reward[place])


def tokens_of(rollout: Rollout) -> Tokens | None:
    """Return a record's tokens; None if there are none, or not in order: lists of one length, of texts and of numbers or null."""
    kept = rollout.extra.get("tokens")
    if not isinstance(kept, Mapping):
        return None
    columns: list[Any] = [kept.get(key) for key in ("text", "gate", "reward")]
    if not all(isinstance(column, list) for column in columns) or len({len(column) for column in columns}) != 1:
        return None
    texts, gates, rewards = columns
    if not all(isinstance(one, str) for one in texts) or not all(map(_is_number, gates)) or not all(map(_is_number, rewards)):
        return None
    return Tokens(texts, gates, rewards)


def _is_number(value: object) -> bool:
    return value is None or isinstance(value, float) or (isinstance(value, int) and abs(value) < _LARGEST)
