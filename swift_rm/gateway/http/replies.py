"""Write ranked candidates as OpenAI's JSON: whole completions, and the chunks of a stream, finished or still generated."""

from __future__ import annotations

import math
import re
import secrets
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from swift_rm.gateway.request.backend import Delta, PromptResult
from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.selection.candidates import Candidate

ABSTAINED = "abstained"  # the finish reason where no candidate is good enough
_PIECE = re.compile(r"\s*\S+\s*|\s+")


class Replies:
    """The replies to one request, under one id; they tell which of its fields were ``ignored``."""

    def __init__(self, request: CompletionRequest, ignored: Sequence[str] = ()) -> None:
        self.request, self.ignored, self.created = request, ignored, int(time.time())
        self.id = f"{'chatcmpl' if request.chat else 'cmpl'}-{secrets.token_hex(12)}"

    def whole(self, results: Sequence[PromptResult]) -> dict[str, Any]:
        """Return the reply that is not streamed."""
        kind = "chat.completion" if self.request.chat else "text_completion"
        return {
            **self._head(kind),
            "choices": self._choices(results),
            "usage": usage(results),
            "swift": self.gateway_fields(results),
        }

    def chunks(self, results: Sequence[PromptResult]) -> Iterator[dict[str, Any]]:
        """Yield the chunks that stream results which are there already: the first choice word by word, then the next."""
        choices = self._choices(results)
        for choice in choices:
            message = choice.pop("message", None)
            content = (message["content"] if message else choice.pop("text")) or ""
            for first, piece in enumerate(_PIECE.findall(content) or [""]):
                yield self.chunk(choice["index"], piece, begin=not first)
            last = self._chunk([self._delta(choice["index"], "", end=choice, refusal=(message or {}).get("refusal"))])
            told = choice is choices[-1] and not self.request.include_usage
            yield {**last, "swift": self.gateway_fields(results)} if told else last
        yield from self.end(results)

    def chunk(self, index: int, text: str, begin: bool = False) -> dict[str, Any]:
        """Return a chunk with more of a choice's text."""
        return self._chunk([self._delta(index, text, begin)])

    def last(self, delta: Delta) -> dict[str, Any]:
        """Return the chunk that ends a choice."""
        assert delta.candidate is not None
        return self._chunk([self._delta(delta.index, delta.text, end=self._choice(delta.index, delta.candidate))])

    def end(self, results: Sequence[PromptResult]) -> Iterator[dict[str, Any]]:
        """Yield what comes after the last choice: a last chunk without choices, if the client asked for usage."""
        if self.request.include_usage:
            yield {**self._chunk([]), "usage": usage(results), "swift": self.gateway_fields(results)}

    def gateway_fields(self, results: Sequence[PromptResult]) -> dict[str, Any]:
        """Return what the reply says beyond OpenAI's: the rule, and the chosen candidate's reward and probability."""
        request, first = self.request, results[0].candidates[0]
        fields: dict[str, Any] = {
            "rule": request.rule, "n": request.drawn, "drawn": sum(result.drawn for result in results),
            "ended": results[0].ended, **_reward_fields(first),
        }  # fmt: skip
        if request.return_candidates:
            fields["candidates"] = [[_candidate(one, request) for one in result.candidates] for result in results]
        if self.ignored:
            fields["ignored"] = list(self.ignored)
        return fields

    def abstains(self, result: PromptResult) -> bool:
        """Tell whether the chosen candidate is not good enough, or its probability unknown."""
        below = self.request.abstain_below
        return below is not None and not result.candidates[0].probability >= below

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head("chat.completion.chunk" if self.request.chat else "text_completion"), "choices": choices}

    def _choices(self, results: Sequence[PromptResult]) -> list[dict[str, Any]]:
        choices: list[dict[str, Any]] = []
        for place, result in enumerate(results):
            start, below = place * self.request.returned, self.request.abstain_below
            if self.abstains(result):
                choices.append(self._abstained(start, result.candidates[0]))
                continue
            shown = [one for one in result.candidates[: self.request.returned] if below is None or one.probability >= below]
            choices.extend(self._choice(start + i, one) for i, one in enumerate(shown))
        return choices

    def _choice(self, index: int, candidate: Candidate) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": candidate.text, "refusal": None}} if self.request.chat else {
            "text": candidate.text
        }  # fmt: skip
        ids = {"token_ids": candidate.token_ids} if self.request.return_token_ids and candidate.token_ids else {}
        return {
            "index": index, **said, "logprobs": None, "finish_reason": candidate.finish_reason, **_reward_fields(candidate), **ids
        }  # fmt: skip

    def _abstained(self, index: int, candidate: Candidate) -> dict[str, Any]:
        """Return the choice that stands where no candidate is good enough."""
        chance = "unknown" if math.isnan(candidate.probability) else f"{candidate.probability:.3g}"
        why = f"no answer: the chosen candidate's probability to be right is {chance}, below {self.request.abstain_below:g}"
        said = {"message": {"role": "assistant", "content": "", "refusal": why}} if self.request.chat else {"text": ""}
        return {"index": index, **said, "logprobs": None, "finish_reason": ABSTAINED, **_reward_fields(candidate)}

    def _delta(
        self, index: int, text: str, begin: bool = False, end: dict[str, Any] | None = None, refusal: str | None = None
    ) -> dict[str, Any]:
        if self.request.chat:
            delta: dict[str, Any] = {"role": "assistant", "content": text} if begin else {"content": text} if text else {}
            said: dict[str, Any] = {"delta": {**delta, "refusal": refusal} if refusal else delta}
        else:
            said = {"text": text}
        rest = {key: value for key, value in (end or {}).items() if key not in ("message", "text")}
        return {"finish_reason": None, "logprobs": None, **rest, "index": index, **said}


def usage(results: Sequence[PromptResult]) -> dict[str, int]:
    """Return the tokens of the prompts, and of all candidates that were drawn for them."""
    prompt, completion = (sum(getattr(one, f"{kind}_tokens") for one in results) for kind in ("prompt", "completion"))
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _reward_fields(candidate: Candidate) -> dict[str, float | None]:
    """Return reward and calibrated probability, None where there is none."""
    return {
        name: value if math.isfinite(value) else None
        for name, value in (("reward", candidate.reward), ("probability", candidate.probability))
    }


def _candidate(one: Candidate, request: CompletionRequest) -> dict[str, Any]:
    ids = {"token_ids": one.token_ids} if request.return_token_ids and one.token_ids else {}
    return {"text": one.text, "answer": one.answer, "finish_reason": one.finish_reason, **_reward_fields(one), **ids}


class LiveReply:
    """Turns the deltas of one request into chunks, and keeps the candidates with which they end."""

    def __init__(self, request: CompletionRequest, replies: Replies) -> None:
        self.request, self.replies = request, replies
        self._begun: set[int] = set()
        self._prompt_tokens: dict[int, int] = defaultdict(int)
        self._candidates: dict[int, Candidate] = {}

    def chunks(self, delta: Delta) -> Iterator[dict[str, Any]]:
        """Yield the chunks that tell a delta: the first of a choice says the role, the last how it ended."""
        prompt = delta.index // self.request.returned
        self._prompt_tokens[prompt] = max(self._prompt_tokens[prompt], delta.prompt_tokens)
        begin = delta.index not in self._begun
        self._begun.add(delta.index)
        if begin or (delta.text and delta.candidate is None):
            yield self.replies.chunk(delta.index, "" if delta.candidate else delta.text, begin)
        if delta.candidate is not None:
            self._candidates[delta.index] = delta.candidate
            yield self.replies.last(delta)

    def results(self) -> list[PromptResult]:
        """Return what has been answered, a prompt each."""
        n = self.request.returned
        found = []
        for prompt in range(len(self.request.prompts)):
            candidates = [self._candidates[prompt * n + i] for i in range(n)]
            tokens = sum(len(one.token_ids) for one in candidates)
            found.append(PromptResult(self._prompt_tokens[prompt], tokens, n, candidates))
        return found
