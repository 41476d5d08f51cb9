"""Best-of-N behind an API: the server's choices, ranked by the log-probabilities that it returns with them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from swift_rm.api.endpoint import Endpoint
from swift_rm.api.failures import ApiFailure, Hopeless
from swift_rm.api.reply_scoring import candidates_of, check_reads
from swift_rm.api.request_scheduler import Drawing, Wanted, request_of
from swift_rm.api.usage import Usage
from swift_rm.files.json_lines import json_line
from swift_rm.records.rollouts import Prompt
from swift_rm.selection.candidates import BestOfN, Ended, ranked
from swift_rm.selection.rule_table import DEFAULT_RULE, EXTERNAL_RULES
from swift_rm.selection.rules import select
from swift_rm.tasks.answers import find_answer

if TYPE_CHECKING:
    from swift_rm.reward.reward_model import SwiftRewardModel


class ApiBestOfN:
    """Answer prompts with the best of ``n`` responses of ``model`` at ``base_url`` (None: OpenAI's own), ranked by ``rm``.

    ``rm`` reads log-probabilities (the source "top_logprobs") and was trained on samples of a model of this name, unless
    ``any_model``. ``select`` is a rule of :mod:`swift_rm.selection`, votes are cast with ``answer(text)``. ``max_tokens`` None
    leaves the limit to the server, ``seed`` None sends none. The key is that of the environment variable ``key_env``; the
    other settings are those of :class:`swift_rm.api.endpoint.Endpoint`. ``usage`` counts requests and tokens over all calls.
    Raises ValueError for settings that do not fit, ImportError without the `openai` package.
    """

    def __init__(
        self,
        model: str,
        rm: SwiftRewardModel,
        base_url: str | None = None,
        *,
        n: int = 16,
        select: str = DEFAULT_RULE,
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int | None = None,
        seed: int | None = 0,
        concurrency: int = 8,
        timeout_s: float = 60.0,
        retries: int = 5,
        extra_body: Mapping[str, Any] | None = None,
        answer: Callable[[str], str | None] = find_answer,
        key_env: str = "OPENAI_API_KEY",
        any_model: bool = False,
        progress: bool = False,
    ) -> None:
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        if select in EXTERNAL_RULES:
            raise ValueError(f"select={select!r} fuses with an external reward, of which an API's responses have none")
        _check_rule(select)
        check_reads(rm, model, any_model)
        self.endpoint = Endpoint(
            model, base_url, key_env=key_env, timeout_s=timeout_s, retries=retries, concurrency=concurrency, extra_body=extra_body
        )
        self.rm, self.n, self.rule, self.seed, self.answer, self.progress = rm, n, select, seed, answer, progress
        self.request = request_of(temperature, top_p, max_tokens)

    @property
    def usage(self) -> Usage:
        """Return what was asked for and what it cost."""
        return self.endpoint.usage

    def __call__(
        self,
        prompts: Sequence[Prompt],
        on_results: Callable[[list[BestOfN]], None] | None = None,
        *,
        names: Sequence[str] | None = None,
    ) -> list[BestOfN]:
        """Return each prompt's candidates, in the order of their rewards, and the one chosen; ``token_ids`` are empty.

        ``names`` of the questions decide their seeds; without, their texts do, and how many equal ones are before them.
        ``on_results`` gets each result when it and those before it are done. A question of which some requests failed is
        answered from what came, ``ended`` "failed"; after Ctrl-C the questions for which a candidate had come are returned,
        with a warning. Raises ApiFailure, whose ``results`` are those of the other questions, if one has no candidate.
        """
        if isinstance(prompts, str) or not len(prompts):
            raise ValueError("prompts must be a list of at least one prompt")
        drawing = Drawing(self.endpoint, self._wanted(prompts, names), self.request, self.rm.config.top_logprobs or 0, self.seed)
        results: dict[int, BestOfN | None] = {}

        def finish(number: int, ended: Ended) -> None:
            results[number] = result = self._result(drawing.wanted[number], ended)
            if result is not None and on_results is not None:
                on_results([result])

        bar = tqdm(total=len(prompts), desc="best of n", unit="question", disable=not self.progress, delay=1)
        try:
            with bar, closing(drawing.run()) as run:
                for number in run:
                    finish(number, "all" if drawing.wanted[number].complete else "failed")
                    bar.update()
        except (KeyboardInterrupt, Hopeless) as error:
            for number, one in enumerate(drawing.wanted):
                if number not in results and one.answers:
                    finish(number, "all" if one.complete else "interrupted")
            answered = [result for _, result in sorted(results.items()) if result is not None]
            if isinstance(error, Hopeless) and not answered:
                raise
            if isinstance(error, Hopeless):
                raise ApiFailure(
                    f"{len(prompts) - len(answered)} of {len(prompts)} questions were not answered: {error}",
                    [results.get(number) for number in range(len(prompts))],
                ) from None
            warnings.warn(f"stopped by Ctrl-C: {len(answered)} of {len(prompts)} questions have an answer", stacklevel=2)
            return answered
        found = [result for _, result in sorted(results.items()) if result is not None]
        if len(found) < len(prompts):
            raise ApiFailure(
                f"{len(prompts) - len(found)} of {len(prompts)} questions have no candidate: {drawing.commonest_reason()}",
                [results[number] for number in range(len(prompts))],
            )
        return found

    def _wanted(self, prompts: Sequence[Prompt], names: Sequence[str] | None) -> list[Wanted]:
        """Name each question, by its prompt and how many equal ones are before it where it has no name."""
        seen: Counter[str] = Counter()
        wanted = []
        for prompt in prompts:
            if not prompt or not isinstance(prompt, str | list) or not all(isinstance(one, str | dict) for one in prompt):
                raise ValueError(f"a prompt must be text or a list of chat messages, got {prompt!r:.60}")
            text = json_line(prompt)
            wanted.append(Wanted(f"{text}#{seen[text]}", prompt, range(self.n)))
            seen[text] += 1
        if names is not None:
            wanted = [replace(one, name=name) for one, name in zip(wanted, names, strict=True)]
        return wanted

    def _result(self, one: Wanted, ended: Ended) -> BestOfN | None:
        """Rank one question's candidates; None if none of them has a token to read."""
        answers = [answer for _, answer in sorted(one.answers.items())]
        if not any(answer.logprobs.chosen for answer in answers):
            one.reason = one.reason or "the responses are empty"
            return None
        candidates = candidates_of(self.rm, answers, self.answer)
        return ranked(one.prompt, candidates, self.rule, sum(answer.tokens for answer in answers), 0, ended)


def _check_rule(rule: str) -> None:
    """Raise ValueError for an unknown rule before anything is asked for."""
    select(rule, [0.0], [None])
