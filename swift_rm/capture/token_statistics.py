"""Log-probabilities of sampled tokens, gathered while `generate` runs, in constant memory per token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from swift_rm.capture.step_order import out_of_step

TOP_K = 20


@dataclass(frozen=True)
class TokenStatistics:
    """Figures of sampled tokens, ``[rows, steps]`` each, from the model's distribution before temperature and top-p.

    ``logprob`` of the chosen token; ``confidence``: DeepConf's, minus the mean of the top 20 log-probabilities;
    ``certainty``: self-certainty's term, ``-(1/V) sum_j log(V p_j)``. ``top [rows, steps, k]``: the log-probabilities of the
    k likeliest tokens, sorted, as many as were asked for.
    """

    logprob: Tensor
    confidence: Tensor
    certainty: Tensor
    top: Tensor

    def row(self, row: int) -> TokenStatistics:
        """Return the figures of one row, ``[steps]`` each."""
        return TokenStatistics(*(part[row] for part in vars(self).values()))


class StatisticsRecorder:
    """Record token statistics as a logits processor that changes nothing.

    A processor sees logits before their token is drawn, so each step's log-probabilities wait one call for their token;
    ``finish`` gives the last one. ``top`` is the number of the likeliest tokens whose log-probabilities are kept. Raises
    RuntimeError where a step does not add one token to each row, or what comes out is not what was chosen.
    """

    def __init__(self, top: int = 0) -> None:
        self._kept = top
        self._top: list[Tensor] = []
        self._waiting: Tensor | None = None
        self._first: tuple[int, int] | None = None  # rows and tokens of what is there before the first step
        self._chosen: list[Tensor] = []  # a step: [rows]
        self._logprob: list[Tensor] = []
        self._confidence: list[Tensor] = []
        self._certainty: list[Tensor] = []

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Take the logits ``[rows, V]`` of the next token; return them as they are."""
        self._settle(input_ids)
        logprobs = torch.log_softmax(scores.float(), dim=-1)
        finite = torch.isfinite(logprobs)
        mean = logprobs.masked_fill(~finite, 0).sum(-1) / finite.sum(-1)
        self._certainty.append(-(mean + math.log(logprobs.shape[-1])))
        top = logprobs.topk(min(TOP_K, logprobs.shape[-1])).values
        kept = torch.isfinite(top)
        self._confidence.append(-top.masked_fill(~kept, 0).sum(-1) / kept.sum(-1))
        self._top.append(top[:, : self._kept])
        self._waiting = logprobs
        return scores

    def finish(self, sequences: Tensor) -> TokenStatistics:
        """Return the statistics of all steps, given what `generate` returned ``[rows, prompt + steps]``."""
        self._settle(sequences)
        chosen = torch.stack(self._chosen, dim=1)
        if not torch.equal(chosen, sequences[:, sequences.shape[1] - chosen.shape[1] :].to(chosen.device)):
            raise out_of_step("the recorder of token statistics", "the tokens that came out are not those that were chosen")
        kept = (self._logprob, self._confidence, self._certainty, self._top)
        return TokenStatistics(*(torch.stack(part, dim=1).cpu() for part in kept))

    def _settle(self, input_ids: Tensor) -> None:
        """Give the step before its token, the last of ``input_ids [rows, seq]``, to which each step adds one."""
        if self._first is None:
            self._first = (input_ids.shape[0], input_ids.shape[1])
        rows, width = self._first
        steps = len(self._certainty)  # that have chosen a token by now
        if tuple(input_ids.shape) != (rows, width + steps):
            seen = f"after {steps} steps there are tokens {list(input_ids.shape)}, where {[rows, width + steps]} belong"
            raise out_of_step("the recorder of token statistics", seen)
        if self._waiting is not None:
            chosen = input_ids[:, -1]
            self._chosen.append(chosen)
            self._logprob.append(self._waiting.gather(-1, chosen[:, None]).squeeze(-1))
            self._waiting = None
