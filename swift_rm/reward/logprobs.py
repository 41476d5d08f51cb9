"""The log-probabilities of a response as an API returns them: each token's, and those of its alternatives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

FLOOR = -20.0  # e^-20 = 2e-9: what is less likely, -inf, and the -9999 of servers whose JSON has no -inf, is read as this
MOST_ALTERNATIVES = 20  # of a token, that chat completions return
ALL_MASS = 1e-3  # alternatives that leave less than this probability to others are all there are
ROUNDING = 1e-2  # a log-probability above 0 by no more than this was rounded


@dataclass(frozen=True)
class TokenLogprobs:
    """The log-probability of each of a response's tokens, ``chosen [R]``, and of the likeliest at its place, ``top [R]`` lists.

    ``top`` is sorted, the likeliest first; a list is empty where nothing was returned. Make one by :meth:`of`, which checks.
    """

    chosen: list[float]
    top: list[list[float]]

    @classmethod
    def of(cls, chosen: Sequence[Any], top: Sequence[Sequence[Any]] | None = None) -> TokenLogprobs:
        """Check and sort; raise ValueError that names the token for what is missing, no number, NaN, or above 0."""
        top = [()] * len(chosen) if top is None else top
        if len(top) != len(chosen):
            raise ValueError(f"there are {len(chosen)} tokens' log-probabilities, but alternatives of {len(top)} tokens")
        read = [_logprob(value, f"token {place}") for place, value in enumerate(chosen)]
        others = [sorted(_alternatives(values or (), place), reverse=True) for place, values in enumerate(top)]
        return cls(read, others)

    @classmethod
    def of_record(cls, record: Mapping[str, Any]) -> TokenLogprobs:
        """Read ``token_logprobs`` and ``top_logprobs`` of a rollout's extra values; raise ValueError if they are not there.

        Where ``end_token`` says that the last one ends the response, it is left out: most APIs do not return it.
        """
        chosen, top = record.get("token_logprobs"), record.get("top_logprobs")
        if not isinstance(chosen, list):
            raise ValueError("it has no 'token_logprobs'")
        if top is not None and not (isinstance(top, list) and all(isinstance(values, list) for values in top)):
            raise ValueError("its 'top_logprobs' must be a list with the alternatives' log-probabilities of each token")
        read = len(chosen) - bool(record.get("end_token"))
        return cls.of(chosen[:read], top if top is None or len(top) != len(chosen) else top[:read])

    def to_record(self) -> dict[str, Any]:
        """Return what a rollout's record keeps, rounded to five decimals."""
        chosen = [round(value, 5) for value in self.chosen]
        return {"token_logprobs": chosen, "top_logprobs": [[round(value, 5) for value in values] for values in self.top]}

    def alternatives(self, count: int) -> list[list[float]]:
        """Return ``count`` alternatives of each token, further ones left out; raise ValueError where some were not returned.

        Fewer are as good where they have all the probability between them (a small vocabulary, a grammar): then the
        rest is :data:`FLOOR`.
        """
        rows = []
        for place, values in enumerate(self.top if count else ()):
            if len(values) < count and 1 - sum(math.exp(value) for value in values) > ALL_MASS:
                raise ValueError(
                    f"token {place} has {len(values)} alternatives, but the reward model reads {count}: sample with "
                    f"top_logprobs={count}, or train a reward model that reads fewer (--top {len(values)})"
                )
            rows.append([*values[:count], *[FLOOR] * (count - len(values))])
        return rows if count else [[] for _ in self.chosen]


def packed_logprobs(
    responses: Sequence[TokenLogprobs], count: int, names: Sequence[str] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``chosen [T]``, ``top [T, count]`` and ``offsets [B + 1]``; raise ValueError that names the response.

    A response is called by its name, "response 3" where there are no ``names``.
    """
    rows: list[list[float]] = []
    for name, one in zip(names or [f"response {i}" for i in range(len(responses))], responses, strict=True):
        if not one.chosen:
            raise ValueError(f"{name} has no token but the end token")
        try:
            rows.extend(one.alternatives(count))
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
    chosen = torch.tensor([value for one in responses for value in one.chosen])
    offsets = torch.tensor([0, *(len(one.chosen) for one in responses)]).cumsum(0)
    return chosen, torch.tensor(rows).view(len(chosen), count), offsets


def logprobs_of(logits: Tensor, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return what a server would of logits ``[T, V]`` and chosen ``tokens [T]``: ``chosen [T]`` and ``top [T, count]``."""
    logprobs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logprobs.gather(-1, tokens[:, None]).squeeze(-1).clamp_min(FLOOR)
    top = logprobs.topk(min(count, logprobs.shape[-1]), dim=-1).values.clamp_min(FLOOR)
    return chosen, torch.nn.functional.pad(top, (0, count - top.shape[1]), value=FLOOR)


def _alternatives(values: Sequence[Any], place: int) -> Sequence[float]:
    """Return a token's alternatives as they are read; most lists are read as they stand, without a loop over their items."""
    plain = set(map(type, values)) == {float} and math.isfinite(sum(values)) and min(values) >= FLOOR and max(values) <= 0
    return values if plain else [_logprob(value, f"an alternative of token {place}") for value in values]


def _logprob(value: Any, whose: str) -> float:
    """Return a log-probability as it is read; raise ValueError for what is none."""
    if value is None:
        raise ValueError(f"the log-probability of {whose} is missing")
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"the log-probability of {whose} must be a number, got {value!r:.60}")
    if value != value or value > ROUNDING:
        raise ValueError(f"the log-probability of {whose} must be at most 0, got {value!r:.60}")
    return min(0.0, float(max(FLOOR, value)))  # JSON's whole numbers may be too large for a float
