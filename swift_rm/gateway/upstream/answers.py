"""Make answers of what an upstream drew: rewards from log-probabilities, the order, and what the page shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from swift_rm.api.reply import Answered
from swift_rm.api.reply_scoring import candidates_of
from swift_rm.gateway.request.backend import Answer
from swift_rm.gateway.request.request import Asking
from swift_rm.gateway.upstream.sampler import Drawn
from swift_rm.report.token_view import CandidateView, TokenView
from swift_rm.selection.candidates import Candidate, Ended, ranked

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel


def answer_of(rm: SwiftRewardModel, asking: Asking, drawn: Drawn, views: bool) -> Answer:
    """Return the answer to one prompt; a response without a token is an empty one without a reward, and comes last."""
    answers = [answer for _, answer in sorted(drawn.answers.items())]
    candidates = candidates_of(rm, answers)
    order = list(range(len(candidates)))
    ended: Ended = "all" if len(answers) == asking.drawn else "failed"
    if asking.rule is not None and any(one.complete for one in candidates):
        result = ranked(None, candidates, asking.rule, drawn.completion_tokens, 0, ended)
        place = {id(one): i for i, one in enumerate(candidates)}
        order = [place[id(one)] for one in (result.best, *(one for one in result.candidates if one is not result.best))]
    told = [replace(candidates[i], finish_reason=answers[i].finish_reason) for i in order]  # with a reward or without
    shown = views_of(rm, [answers[i] for i in order], told) if views else ()
    return Answer(drawn.prompt_tokens, drawn.completion_tokens, len(answers), told, ended, shown)


def views_of(rm: SwiftRewardModel, answers: Sequence[Answered], candidates: Sequence[Candidate]) -> list[CandidateView]:
    """Return responses with the gate and reward of each of their tokens."""
    import torch

    from swift_rm.reward.logprob_features import features_of

    read = [answer.logprobs for answer in answers if answer.logprobs.chosen]
    gates: list[float] = []
    rewards: list[float] = []
    if read:
        features, _ = features_of(read, rm.config.top_logprobs or 0)
        with torch.inference_mode():
            scores = rm.token_scores(features.to(rm.head.weight))
        gates, rewards = scores.gate.tolist(), scores.reward.tolist()
    numbers = iter(zip(gates, rewards, strict=True))
    return [
        CandidateView(
            [TokenView(piece, None, *next(numbers)) for piece in answer.pieces], one.reward, one.probability, one.answer,
            finish_reason=one.finish_reason, flag=one.flag,
        )
        for answer, one in zip(answers, candidates, strict=True)
    ]  # fmt: skip
