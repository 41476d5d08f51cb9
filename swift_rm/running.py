"""The rewards of responses that are still being generated: a few floats per row, whatever the length."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from swift_rm.head import TokenScores
from swift_rm.region import Flag, MarkerWatch
from swift_rm.reward_model import SwiftRewardModel
from swift_rm.running_mean import RunningMean
from swift_rm.tap import HiddenStateTap, States

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class RunningRewards:
    """Read each forward call's last states through ``tap``, and add them to their rows' rewards once their token is known.

    ``begin()``, a forward call on the prompts, and then, in turn, ``count(tokens, active)``, the tokens just chosen and
    in which rows they belong to a response, and a forward call on them. With ``position="generating"`` a token is scored
    by the state that chose it; with ``"token"`` by its own, which the next forward call shows: ``due`` tells which rows
    wait for it.
    A row keeps a :class:`RunningMean`, another for a region that begins after a marker, and one token's scores.
    ``guide`` is a second reward model, of the same states, whose rewards :meth:`partial` gives instead: one that was
    trained to judge unfinished responses, say. With ``keep_tokens`` every token's scores are kept as well.
    """

    def __init__(
        self,
        model: nn.Module,
        rm: SwiftRewardModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        guide: SwiftRewardModel | None = None,
        keep_tokens: bool = False,
    ) -> None:
        self.config, self._tokenizer, self._keep_tokens = rm.config, tokenizer, keep_tokens
        heads = [rm.head] if guide is None else [rm.head, guide.head]
        self._weight = torch.cat([head.weight.detach() for head in heads])  # [2 or more, D]
        self._bias = torch.cat([head.bias.detach() for head in heads])
        self._width = len(rm.head.bias)  # the first columns are the reward model's, the others the guide's
        self._guided = guide is not None
        self.tap = HiddenStateTap(model, rm.config.layers, keep=False, on_forward=self._see)
        self.begin()

    def begin(self) -> None:
        """Forget everything: the next forward call is that of new prompts."""
        self._start(0)
        self._started = False
        self._scores: Tensor | None = None  # [rows, 2 or more]: of the latest forward call's last states
        self._used = False  # whether tokens were counted since, so that these cannot be the next ones' scores
        self.due: Tensor | None = None  # [rows]: rows whose latest token is still to be scored
        self._in_region: Tensor | None = None  # [rows]: as `due`, where the token comes after the marker
        self._tokens: list[tuple[Tensor, Tensor]] = []

    def _start(self, rows: int) -> None:
        device, marker = self._weight.device, self.config.marker
        self._whole = RunningMean(rows, device)
        self._after = RunningMean(rows, device) if marker else None
        self._watch = MarkerWatch(marker, self._tokenizer, rows) if marker else None
        self._guide = RunningMean(rows, device) if self._guided else None
        self._started = True

    def count(self, tokens: Tensor, active: Tensor) -> None:
        """Take the chosen tokens ``[rows]``; those of rows that are not ``active [rows]`` are padding."""
        if self._used or self.due is not None:
            raise RuntimeError("tokens were chosen by a forward call that the hooks did not see (a compiled one?)")
        if not self._started:
            self._start(len(tokens))
        found = self._watch.found if self._watch else None
        self._in_region = active & torch.tensor(found, device=active.device) if found is not None else None
        if self._watch is not None:
            self._watch.push(tokens.tolist(), active.tolist())
        if self.config.position == "generating":
            self._add(active)
            self._used = True
        else:
            self.due = active

    def latest(self) -> Tensor | None:
        """Return the scores of the latest forward call's last states, for ``resume``."""
        return self._scores

    def resume(self, scores: Tensor | None, rows: Tensor) -> None:
        """Begin new responses to prompts that were read before: for each of ``rows``, one to the prompt of that number."""
        self.begin()
        self._scores = None if scores is None else scores.index_select(0, rows.to(scores.device))

    def select(self, rows: Tensor) -> None:
        """Keep these rows ``[kept]``, in this order; one may be kept several times."""
        for name in ("_scores", "due", "_in_region"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.index_select(0, rows.to(value.device)))
        if not self._started:  # before the first token there are only prompts
            return
        for mean in (self._whole, self._after, self._guide):
            if mean is not None:
                mean.select(rows.to(self._weight.device))
        if self._watch is not None:
            self._watch.select(rows.tolist())

    def rewards(self) -> Tensor:
        """Return the reward of what was counted of each row, ``[rows]``; NaN where that is nothing."""
        if self._after is None:
            return self._whole.rewards()
        return torch.where(self._after.begun(), self._after.rewards(), self._whole.rewards())

    def partial(self) -> Tensor:
        """Return the rewards so far, ``[rows]``: the guide's where there is one."""
        return self.rewards() if self._guide is None else self._guide.rewards()

    def flags(self) -> list[Flag | None]:
        """Return why the whole response is read instead of the region after the marker, for each row."""
        if self._watch is None or self._after is None:
            return [None] * len(self._whole)
        read = self._after.begun().tolist()
        return [
            None if some else "region_empty" if found else "marker_missing"
            for found, some in zip(self._watch.found, read, strict=True)
        ]

    def token_scores(self) -> list[TokenScores]:
        """Return gate and reward ``[t]`` of the counted tokens of each row (needs ``keep_tokens``)."""
        if not self._tokens:
            return [TokenScores(torch.empty(0), torch.empty(0)) for _ in range(len(self._whole))]
        scores = torch.stack([scores for scores, _ in self._tokens], dim=1)  # [rows, steps, 2]
        active = torch.stack([active for _, active in self._tokens], dim=1)  # [rows, steps]
        gate = torch.sigmoid(scores[..., 0]) if scores.shape[-1] == 2 else torch.ones_like(scores[..., 0])
        return [TokenScores(g[on], r[on]) for g, r, on in zip(gate, scores[..., -1], active, strict=True)]

    def state_bytes(self) -> int:
        """Return the bytes kept per row, whatever the length of its response (without ``keep_tokens``)."""
        kept = [value[:1].nbytes for value in (self._scores, self.due, self._in_region) if value is not None]
        means = [mean.row_bytes() for mean in (self._whole, self._after, self._guide) if mean is not None]
        return sum(kept) + sum(means) + (8 * self._watch.width if self._watch else 0)

    def _see(self, states: States) -> None:
        last = [states[layer] for layer in self.config.layers]
        if last[0].shape[1] > 1:  # a prompt: of which the last state chooses the first token
            last = [state[:, -1:] for state in last]
        if any(state.device != self._weight.device for state in last):
            last = [state.to(self._weight.device) for state in last]
        features = torch.cat(last, dim=-1)[:, 0]  # [rows, D]
        self._scores, self._used = F.linear(features.to(self._weight.dtype), self._weight, self._bias), False
        if self.due is not None:  # with position "token": these are the states at the tokens counted last
            due, self.due = self.due, None
            self._add(due)

    def _add(self, active: Tensor) -> None:
        if self._scores is None:
            raise RuntimeError("tokens were counted before a forward call of the model was seen")
        active = active.to(self._weight.device)
        own = self._scores if self._guide is None else self._scores[:, : self._width]
        self._whole.add(own, active)
        if self._after is not None and self._in_region is not None:
            self._after.add(own, self._in_region.to(active.device))
        if self._guide is not None:
            self._guide.add(self._scores[:, self._width :], active)
        if self._keep_tokens:
            self._tokens.append((own, active))
        self._in_region = None
