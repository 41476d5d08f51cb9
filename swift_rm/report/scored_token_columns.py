"""The tokens that `swift-rm score --tokens` keeps in a record: their texts, gates and rewards."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from swift_rm.records.rollouts import Rollout
from swift_rm.report.token_view import TokenView

_LARGEST = 1e300  # JSON's numbers know no bounds


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
