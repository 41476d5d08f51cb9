"""The features of a token where only log-probabilities are to be had: a fixed vector, whatever the vocabulary."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from swift_rm.reward.logprobs import ALL_MASS, TokenLogprobs, packed_logprobs

VERSION = 1
PROBABILITIES, MARGINS, RANKS = 8, 4, 4  # of the likeliest tokens
UNLIKELY = (-1.0, -2.0, -4.0)  # log-probabilities below which a chosen token is ever more of a surprise
LONG = 64  # tokens
LEAST_DEVIATION = 0.01  # what varies by less is rounding, or so rare that what is learnt of it would carry too far


def feature_names(top: int) -> tuple[str, ...]:
    """Return the names of the features of a token with ``top`` alternatives, in their order.

    ``logprob``, ``prob``: of the chosen token. ``unlikely_*``: how far its log-probability is below -1, -2, -4, a
    sigmoid. ``top_*``, ``prob_*``: the alternatives', sorted. ``margin_*``: how much likelier one is than the next. ``rank_*``:
    whether so many alternatives are likelier than the chosen one. ``entropy`` of what was returned, with the ``missing`` mass
    (beyond 0.001) as one more outcome. ``regret``: how much likelier the likeliest is than the chosen one. ``mean_*``,
    ``least_*``, ``most_*``, ``sum_*``: of the response so far. ``previous_*``, ``before_*``: of the token before, and the one
    before that. ``position``, ``log_position``. With ``top`` = 0 there is only what follows from the chosen tokens.
    """
    local = _local(top)
    names = ["logprob", "prob", *(f"unlikely_{-limit:g}" for limit in UNLIKELY)]
    if top:
        names += [f"top_{i}" for i in range(1, top + 1)] + [f"prob_{i}" for i in range(1, min(PROBABILITIES, top) + 1)]
        names += [f"margin_{i}" for i in range(1, min(MARGINS, top - 1) + 1)] + [f"rank_{i}" for i in range(min(RANKS, top))]
        names += ["entropy", "missing", "regret", "most_entropy", "most_regret"]
    names += [f"{when}_{name}" for when in ("mean", "previous", "before") for name in local]
    return (*names, "least_logprob", "sum_logprob", "log_position", "position")


def _local(top: int) -> tuple[str, ...]:
    """Return the names of what is remembered of the tokens before."""
    return ("logprob", "entropy", "regret", "missing") if top else ("logprob",)


class LogprobFeatures:
    """Make the features of token after token, rows side by side; a row keeps a few floats, whatever its length.

    ``begin(rows)``, then :meth:`step` once a token. Version :data:`VERSION`, recorded in the configuration of a reward model.
    """

    def __init__(self, top: int) -> None:
        self.top, self._local = top, len(_local(top))

    def begin(self, rows: int, device: torch.device | str = "cpu") -> None:
        """Start responses."""
        self._count = 0
        # sums, the previous token's and the one's before; then least logprob, most entropy, most regret
        self._kept = torch.zeros(rows, 3 * self._local + 3, device=device)

    def select(self, rows: Tensor) -> None:
        """Keep these rows ``[kept]``, in this order; one may be kept several times."""
        self._kept = self._kept.index_select(0, rows.to(self._kept.device))

    def row_bytes(self) -> int:
        """Return the bytes that are kept for a row."""
        return self._kept.shape[1] * self._kept.itemsize

    def step(self, chosen: Tensor, top: Tensor) -> Tensor:
        """Return the features ``[rows, F]`` of the next tokens: log-probabilities ``chosen [rows]``, ``top [rows, top]``."""
        self._count += 1
        width, kept = self._local, self._kept
        sums, previous, before = kept[:, :width], kept[:, width : 2 * width], kept[:, 2 * width : 3 * width]
        least, most = kept[:, -3:-2], kept[:, -2:]
        logprob = chosen[:, None]
        local, features = logprob, [logprob, logprob.exp()]
        features += [(4 * (limit - logprob)).sigmoid() for limit in UNLIKELY]
        if self.top:
            probs = top.exp()
            missing = (1 - probs.sum(1, keepdim=True) - ALL_MASS).clamp_min(0)  # less is within a server's rounding
            entropy = torch.special.entr(probs).sum(1, keepdim=True) + torch.special.entr(missing)
            regret = (top[:, :1] - logprob).clamp_min(0)
            rank = (top > logprob).sum(1, keepdim=True)
            local = torch.cat([logprob, entropy, regret, missing], dim=1)
            most = torch.maximum(most, local[:, 1:3])
            features += [top, probs[:, :PROBABILITIES], (top[:, :-1] - top[:, 1:])[:, :MARGINS]]
            features += [(rank == torch.arange(min(RANKS, self.top), device=rank.device)).to(top), entropy, missing, regret, most]
        sums, least = sums + local, torch.minimum(least, logprob)
        place = torch.full_like(logprob, self._count - 1)
        features += [sums / self._count, previous, before, least, sums[:, :1] / 10, place.log1p(), (place / LONG).clamp_max(4)]
        self._kept = torch.cat([sums, local, previous, least, most], dim=1)
        return torch.cat(features, dim=1)


def features_of(responses: Sequence[TokenLogprobs], top: int, names: Sequence[str] | None = None) -> tuple[Tensor, Tensor]:
    """Return the features ``[T, F]`` of whole responses and ``offsets [B + 1]``; raise ValueError as ``packed_logprobs``."""
    chosen, alternatives, offsets = packed_logprobs(responses, top, names)
    return response_features(chosen, alternatives, offsets), offsets


def response_features(chosen: Tensor, top: Tensor, offsets: Tensor) -> Tensor:
    """Return the features ``[T, F]`` of whole responses from ``chosen [T]``, ``top [T, top]`` and ``offsets [B + 1]``."""
    lengths: Sequence[int] = offsets.diff().tolist()
    starts = offsets[:-1].to(chosen.device)
    maker = LogprobFeatures(top.shape[1])
    maker.begin(len(lengths), chosen.device)
    found = torch.empty(len(chosen), len(feature_names(top.shape[1])), device=chosen.device)
    left = torch.arange(len(lengths), device=chosen.device)  # the responses that go on, of the rows that are kept
    for step in range(max(lengths, default=0)):
        here = torch.tensor([lengths[row] > step for row in left.tolist()], device=chosen.device)
        if not bool(here.all()):
            maker.select(here.nonzero().flatten())
            left = left[here]
        places = starts[left] + step
        found[places] = maker.step(chosen[places], top[places])
    return found
