"""The rewards of responses that are still being generated: a few floats per row, whatever the length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from swift_rm.capture.logits_tap import open_tap
from swift_rm.capture.running_logprobs import RunningLogprobs
from swift_rm.capture.running_mean import RunningMean
from swift_rm.capture.step_order import StepOrder
from swift_rm.capture.tap import LayerStates
from swift_rm.reward.head import TokenScores
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.tokens.region import Flag, MarkerWatch

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class RunningRewards:
    """Take each forward call's last states from ``tap``, and add them to their rows' rewards once their token is known.

    ``begin()``, a forward call on the prompts, and then, in turn, ``count(tokens, active)``, the tokens just chosen and
    in which rows they belong to a response, and a forward call on them. With ``position="generating"`` a token is scored
    by the state that chose it; with ``"token"`` by its own: ``due`` marks rows whose newest token the next forward
    call scores. States are held until their token is counted, and no longer. Where a reward model reads output logits, these
    are its states; where it reads log-probabilities, they are made into its features when the token is known.
    A row keeps a :class:`RunningMean`, and another for the tokens of a region with a marker; each is one ``gated_step``
    a head.
    ``guide`` is a second reward model, of the same states, whose rewards :meth:`partial` gives instead: one that was
    trained to judge unfinished responses, say. With ``keep_tokens`` every token's scores are kept as well.

    Raises RuntimeError where forward calls and tokens do not come in turn, or the tokens that are fed are not those that
    were chosen; of the latter :meth:`close` and :meth:`verify` tell.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        rm: SwiftRewardModel,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        guide: SwiftRewardModel | None = None,
        keep_tokens: bool = False,
    ) -> None:
        self.config, self._tokenizer, self._keep_tokens = rm.config, tokenizer, keep_tokens
        self._whole = RunningMean(rm.head)
        self._part = RunningMean(rm.head) if rm.config.marker else None
        self._guide = RunningMean(guide.head) if guide is not None else None
        self._means = [mean for mean in (self._whole, self._part, self._guide) if mean is not None]
        top = rm.config.top_logprobs
        self._logprobs = RunningLogprobs(model, top) if top is not None else None
        self.tap = open_tap(model, rm.config.source, rm.config.layers, keep=False, on_forward=self._see)
        self._order = StepOrder("the streaming reward", self.tap)
        self.begin()

    def ended_by(self, ends: Iterable[int]) -> None:
        """Say which tokens end a response in the calls to come, if not those that the model's own configuration names."""
        if self._logprobs is not None:
            self._logprobs.ended_by(ends)

    def begin(self) -> None:
        """Forget everything: the next forward call is that of new prompts."""
        self._order.begin()
        self._start(0)
        self._started = False
        self._states: list[Tensor] | None = None  # [rows, 1, d] a layer: of which the next tokens are chosen
        self.due: Tensor | None = None  # [rows]: rows whose latest token is still to be scored
        self._in_region: Tensor | None = None  # [rows]: as `due`, where the token is of the region
        self._tokens: list[tuple[Tensor, Tensor]] = []

    def _start(self, rows: int) -> None:
        for mean in self._means:
            mean.begin(rows)
        self._watch = MarkerWatch(self.config.region, self._tokenizer, rows) if self._part is not None else None
        if self._logprobs is not None:
            self._logprobs.begin()
        self._started = True

    def count(self, tokens: Tensor, active: Tensor) -> None:
        """Take the chosen tokens ``[rows]``; those of rows that are not ``active [rows]`` are padding."""
        self._order.chosen(tokens)
        if not self._started:
            self._start(len(tokens))
        if self._watch is not None:
            read = self._watch.push(tokens.tolist(), active.tolist())
            self._in_region = torch.tensor(read, device=active.device) if any(read) else None
        if self._states is None:
            self.due = active.clone()
        else:
            states, self._states = self._states, None
            if self._logprobs is not None:
                features, active = self._logprobs.step(states[0], tokens, active)
                states = [features]
            self._add(states, active)

    def latest(self) -> list[Tensor] | None:
        """Return the latest forward call's last states, if they choose a token that is not counted yet, for ``resume``."""
        return self._states

    @property
    def length(self) -> int | None:
        """The tokens of each row that the model has read, padding included, for ``resume``; None before any."""
        return self._order.length

    def resume(self, states: Sequence[Tensor] | None, rows: Tensor, length: int | None = None) -> None:
        """Begin new responses to prompts that were read before: for each of ``rows``, one to the prompt of that number.

        With the ``length`` to which the prompts had been read it is made sure that the steps go on from there.
        """
        self.begin()
        self._order.resume(length)
        self._states = None if states is None else _select(states, rows)

    def verify(self) -> None:
        """Raise RuntimeError if a row was fed a token that was not the one chosen for it; this waits for the device."""
        self._order.verify()

    def close(self) -> None:
        """End the generation: forward calls from here on are not its own."""
        self._order.close()

    def select(self, rows: Tensor) -> None:
        """Keep these rows ``[kept]``, in this order; one may be kept several times."""
        self._order.select(rows)
        self._states = None if self._states is None else _select(self._states, rows)
        for name in ("due", "_in_region"):
            value = getattr(self, name)
            if value is not None:
                setattr(self, name, value.index_select(0, rows.to(value.device)))
        if not self._started:  # before the first token there are only prompts
            return
        self._tokens = [
            (scores.index_select(1, rows.to(scores.device)), active.index_select(0, rows.to(active.device)))
            for scores, active in self._tokens
        ]
        for mean in self._means:
            mean.select(rows.to(mean.device))
        if self._logprobs is not None:
            self._logprobs.select(rows)
        if self._watch is not None:
            self._watch.select(rows.tolist())

    def rewards(self) -> Tensor:
        """Return the reward of what was counted of each row, ``[rows]``; NaN where that is nothing."""
        if self._part is None:
            return self._whole.rewards()
        return torch.where(self._part.begun(), self._part.rewards(), self._whole.rewards())

    def partial(self) -> Tensor:
        """Return the rewards so far, ``[rows]``: the guide's where there is one."""
        return self.rewards() if self._guide is None else self._guide.rewards()

    def flags(self) -> list[Flag | None]:
        """Return why the whole response is read instead of the region, or nothing of it, for each row."""
        if self._logprobs is not None:
            return [None if some else "region_empty" for some in self._whole.begun().tolist()]
        if self._watch is None or self._part is None:
            return [None] * len(self._whole)
        read = self._part.begun().tolist()
        return [
            None if some else "region_empty" if found else "marker_missing"
            for found, some in zip(self._watch.found, read, strict=True)
        ]

    def token_scores(self) -> list[TokenScores]:
        """Return gate and reward ``[t]`` of the counted tokens of each row (needs ``keep_tokens``)."""
        if not self._tokens:
            return [TokenScores(torch.empty(0), torch.empty(0)) for _ in range(len(self._whole))]
        scores = torch.stack([scores for scores, _ in self._tokens], dim=2)  # [M, rows, steps, 2]
        active = torch.stack([active for _, active in self._tokens], dim=1)  # [rows, steps]
        return [self._whole.token_scores(scores[:, row, on]) for row, on in enumerate(active)]

    def state_bytes(self) -> int:
        """Return the bytes kept per row, whatever the length of its response (without ``keep_tokens``)."""
        waiting = sum(value.itemsize for value in (self.due, self._in_region) if value is not None)
        kept = sum(mean.row_bytes() for mean in self._means) + (8 * self._watch.width if self._watch else 0)
        return waiting + kept + (self._logprobs.row_bytes() if self._logprobs is not None else 0)

    def _see(self, states: LayerStates) -> None:
        if not self._order.forward():
            return
        last = [states[layer] for layer in self.config.layers]
        if last[0].shape[1] > 1:  # a prompt: of which the last state chooses the first token, and the others may go
            last = [state[:, -1:].clone() for state in last]
        if self.config.position == "generating":
            self._states = last
        elif self.due is not None:  # these are the states at the tokens counted last
            due, self.due = self.due, None
            self._add(last, due)

    def _add(self, states: Sequence[Tensor], active: Tensor) -> None:
        device = self._whole.device
        if any(state.device != device for state in states):
            states = [state.to(device) for state in states]
        active = active.to(device).contiguous()
        scores = self._whole.new_scores(len(active)) if self._keep_tokens else None
        self._whole.add(states, active, scores)
        if self._part is not None and self._in_region is not None:
            self._part.add(states, self._in_region.to(device))
        if self._guide is not None:
            self._guide.add(states, active)
        if scores is not None:
            self._tokens.append((scores, active))
        self._in_region = None


def _select(states: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    return [state.index_select(0, rows.to(state.device)) for state in states]
