"""A language model for its_hub's algorithms, decoded by the Best-of-N engine, that keeps the rewards of its responses."""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from typing import TYPE_CHECKING, Any

from swift_rm.integrations.candidate_sampler import CandidateSampler
from swift_rm.tokens.encoding import encode_prompt

try:
    from its_hub.api import AbstractLanguageModel, ChatMessage, ChatMessages
except ImportError as error:
    raise ImportError('its_hub\'s algorithms need its_hub: pip install "swift-rm[adapters]"') from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel

Turns = tuple[tuple[str, str], ...]  # role and text of each message


class SwiftLanguageModel(AbstractLanguageModel):  # type: ignore[misc]
    """Answer conversations; the rewards of the last ``keep`` answers are kept by conversation and text (NaN as minus infinity).

    ``settings`` are keywords of :func:`swift_rm.decoding.best_of_n` that say how tokens are drawn, ``batch_size`` and
    ``chat_template_kwargs``. Raises ValueError for a reward model of another language model, and when it is asked for
    tools or formats, or to go on with a response.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rm: SwiftRewardModel, *, seed: int = 0,
        keep: int = 10_000, **settings: Any,
    ) -> None:  # fmt: skip
        if keep < 1:
            raise ValueError(f"at least 1 reward must be kept, got keep={keep}")
        self.sampler, self.keep = CandidateSampler(model, tokenizer, rm, seed=seed), keep
        self.rewards: dict[tuple[Turns, str], float] = {}
        self._template, self._settings = settings.pop("chat_template_kwargs", None), settings

    async def agenerate(self, messages: Any, stop: str | None = None, **kwargs: Any) -> Any:
        """Return a response to each of a list of conversations, copies of one from one prompt; or to a conversation alone."""
        if is_one_conversation(messages):
            return await self.agenerate_single(messages, stop, **kwargs)
        return await asyncio.to_thread(self._generate, messages, stop, **kwargs)

    async def agenerate_single(self, messages: Any, stop: str | None = None, *, loop: Any = None, **kwargs: Any) -> Any:
        """Return the response to one conversation."""
        return (await asyncio.to_thread(self._generate, [messages], stop, **kwargs))[0]

    def prompt_ids(self, turns: Turns) -> list[int]:
        """Return the token ids that a conversation is for the model."""
        return encode_prompt(self.sampler.tokenizer, [{"role": role, "content": text} for role, text in turns], self._template)

    def _generate(
        self, conversations: list[Any], stop: str | None, *, temperature: float | None = None,
        max_completion_tokens: int | None = None, usage_accumulator: Any = None, **others: Any,
    ) -> list[dict[str, Any]]:  # fmt: skip
        if refused := [f"{name}={value!r}" for name, value in others.items() if value not in (None, False)]:
            raise ValueError(f"a model here answers in plain text, and cannot be asked with {refused[0]}")
        told = {"stop_strings": stop, "temperature": temperature, "max_new_tokens": max_completion_tokens}
        settings = {**self._settings, **{name: value for name, value in told.items() if value is not None}}
        asked = [turns_to_answer(messages) for messages in conversations]
        counts = Counter(asked)
        prompts = {turns: self.prompt_ids(turns) for turns in counts}
        drawn = self.sampler.draw(list(prompts.values()), list(counts.values()), **settings)
        piles = dict(zip(counts, map(iter, drawn), strict=True))
        said = [(turns, next(piles[turns])) for turns in asked]
        for turns, one in said:
            reward = -math.inf if math.isnan(one.reward) else one.reward
            known = self.rewards.pop((turns, one.text), -math.inf)  # what is said again is the last that was said
            self.rewards[turns, one.text] = max(reward, known)
            if usage_accumulator is not None:
                usage_accumulator.add(len(prompts[turns]), len(one.token_ids))
        for oldest in list(self.rewards)[: -self.keep]:
            self.rewards.pop(oldest, None)
        return [{"role": "assistant", "content": one.text} for _, one in said]


def turns_to_answer(messages: Any) -> Turns:
    """Return a conversation that a response follows; raise ValueError if it ends with one, is empty, or calls tools."""
    turns = _turns(messages)
    if not turns or turns[-1][0] == "assistant":
        raise ValueError(f"a conversation must end with something to answer, got {turns}")
    return turns


def answered_turns(messages: Any) -> tuple[Turns, str]:
    """Return a conversation and the response with which it ends; raise ValueError if there is none, or it calls tools."""
    turns = _turns(messages)
    if len(turns) < 2 or turns[-1][0] != "assistant":
        raise ValueError(f"a conversation to score must end with the response to a message, got {turns}")
    return turns[:-1], turns[-1][1]


def is_one_conversation(messages: Any) -> bool:
    """Tell whether these are the messages of one conversation, instead of a list of conversations."""
    return isinstance(messages, str | ChatMessages) or not messages or not isinstance(messages[0], list)


def _turns(messages: Any) -> Turns:
    if isinstance(messages, str | ChatMessages):
        messages = ChatMessages.from_prompt_or_messages(messages).to_chat_messages()
    turns = [one if isinstance(one, ChatMessage) else ChatMessage.from_dict(one) for one in messages]
    if called := [one for one in turns if one.tool_calls or one.tool_call_id]:
        raise ValueError(f"a model here neither reads nor makes calls of tools, got {called[0]}")
    return tuple((one.role, one.extract_text_content()) for one in turns)
