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
from swift_rm.api.failures import ApiFailure, FatalError
from swift_rm.api.reply_scoring import check_reward_model, response_candidates
from swift_rm.api.request_scheduler import RequestedQuestion, RequestScheduler, sampling_fields
from swift_rm.api.usage import Usage
from swift_rm.files.json_lines import json_line
from swift_rm.records.rollouts import Prompt
from swift_rm.selection.candidates import BestOfN, Ended, ranked
from swift_rm.selection.rule_table import DEFAULT_RULE, EXTERNAL_RULES
from swift_rm.selection.rules import check_rule
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
        check_rule(select, external=False)
        check_reward_model(rm, model, any_model)
        self.endpoint = Endpoint(
            model, base_url, key_env=key_env, timeout_s=timeout_s, retries=retries, concurrency=concurrency, extra_body=extra_body
        )
        self.rm, self.n, self.rule, self.seed, self.answer, self.progress = rm, n, select, seed, answer, progress
        self.request = sampling_fields(temperature, top_p, max_tokens)

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
        scheduler = RequestScheduler(
            self.endpoint, self._questions(prompts, names), self.request, self.rm.config.top_logprobs or 0, self.seed
        )
        results: dict[int, BestOfN | None] = {}

        def finish(number: int, ended: Ended) -> None:
            results[number] = result = self._result(scheduler.questions[number], ended)
            if result is not None and on_results is not None:
                on_results([result])

        bar = tqdm(total=len(prompts), desc="best of n", unit="question", disable=not self.progress, delay=1)
        try:
            with bar, closing(scheduler.run()) as run:
                for number in run:
                    finish(number, "all" if scheduler.questions[number].complete else "failed")
                    bar.update()
        except (KeyboardInterrupt, FatalError) as error:
            for number, one in enumerate(scheduler.questions):
                if number not in results and one.responses:
                    finish(number, "all" if one.complete else "interrupted")
            answered = [result for _, result in sorted(results.items()) if result is not None]
            if isinstance(error, FatalError) and not answered:
                raise
            if isinstance(error, FatalError):
                raise ApiFailure(
                    f"{len(prompts) - len(answered)} of {len(prompts)} questions were not answered: {error}",
                    [results.get(number) for number in range(len(prompts))],
                ) from None
            warnings.warn(f"stopped by Ctrl-C: {len(answered)} of {len(prompts)} questions have an answer", stacklevel=2)
            return answered
        found = [result for _, result in sorted(results.items()) if result is not None]
        if len(found) < len(prompts):
            raise ApiFailure(
                f"{len(prompts) - len(found)} of {len(prompts)} questions have no candidate: {scheduler.commonest_reason()}",
                [results[number] for number in range(len(prompts))],
            )
        return found

    def _questions(self, prompts: Sequence[Prompt], names: Sequence[str] | None) -> list[RequestedQuestion]:
        """Name each question, by its prompt and how many equal ones are before it where it has no name."""
        seen: Counter[str] = Counter()
        questions = []
        for prompt in prompts:
            if not prompt or not isinstance(prompt, str | list) or not all(isinstance(one, str | dict) for one in prompt):
                raise ValueError(f"a prompt must be text or a list of chat messages, got {prompt!r:.60}")
            text = json_line(prompt)
            questions.append(RequestedQuestion(f"{text}#{seen[text]}", prompt, range(self.n)))
            seen[text] += 1
        if names is not None:
            questions = [replace(one, name=name) for one, name in zip(questions, names, strict=True)]
        return questions

    def _result(self, one: RequestedQuestion, ended: Ended) -> BestOfN | None:
        """Rank one question's candidates; None if none of them has a token to read."""
        responses = [response for _, response in sorted(one.responses.items())]
        if not any(response.logprobs.chosen for response in responses):
            one.reason = one.reason or "the responses are empty"
            return None
        candidates = response_candidates(self.rm, responses, self.answer)
        return ranked(one.prompt, candidates, self.rule, sum(response.tokens for response in responses), 0, ended)
