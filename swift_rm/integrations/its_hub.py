"""Hidden-state rewards for its_hub's BestOfN: a language model that knows them, who tells them, and batches of requests.

Three lines::

    lm = SwiftLanguageModel(model, tokenizer, rm)
    algorithm = BestOfN(SwiftOutcomeRewardModel(lm), orchestrator=SwiftOrchestrator())
    algorithm.infer(lm, "27+15-08", budget=16)
"""

from __future__ import annotations

import asyncio
from typing import Any

from swift_rm.integrations.its_hub_model import SwiftLanguageModel, answered_turns, is_one_conversation

try:
    from its_hub.api import AbstractOrchestrator, AbstractOutcomeRewardModel
except ImportError as error:
    raise ImportError('its_hub\'s algorithms need its_hub: pip install "swift-rm[adapters]"') from error

__all__ = ["SwiftLanguageModel", "SwiftOrchestrator", "SwiftOutcomeRewardModel"]


class SwiftOutcomeRewardModel(AbstractOutcomeRewardModel):  # type: ignore[misc]
    """Tell the rewards of responses: those that ``lm`` said at no cost, others by one pass of its model over their text.

    A text that is scored by a pass gets the end token with which a whole response ends.
    """

    def __init__(self, lm: SwiftLanguageModel) -> None:
        self.lm = lm

    def score(self, messages: Any, **kwargs: Any) -> list[float] | float:
        """Return the reward, a logit, of the response with which a conversation ends, or of each of a list of these.

        Raises ValueError for a conversation that does not end with a response, and as :func:`swift_rm.score`.
        """
        asked = [answered_turns(one) for one in ([messages] if is_one_conversation(messages) else messages)]
        rewards = {one: self.lm.rewards.get(one) for one in asked}
        if others := [one for one, reward in rewards.items() if reward is None]:
            prompts = [self.lm.prompt_ids(turns) for turns, _ in others]
            rewards.update(zip(others, self.lm.sampler.score(prompts, [text for _, text in others]), strict=True))
        found = [reward for one in asked if (reward := rewards[one]) is not None]
        return found[0] if is_one_conversation(messages) else found

    async def ascore(self, messages: Any, orchestrator: Any = None, **kwargs: Any) -> list[float] | float:
        """Return what :meth:`score` does, without holding up others; the orchestrator is not needed."""
        return await asyncio.to_thread(self.score, messages)


class SwiftOrchestrator(AbstractOrchestrator):  # type: ignore[misc]
    """Ask a :class:`SwiftLanguageModel` for all responses at once: the copies of a conversation are one batch, read once."""

    async def agenerate(
        self, lm: SwiftLanguageModel, messages_lst: list[Any], stop: str | None = None, *, temperature: Any = None, **kwargs: Any
    ) -> list[dict[str, Any]]:
        """Return a response to each conversation; where each has a temperature of its own, they are asked one by one."""
        if isinstance(temperature, list):
            pairs = zip(messages_lst, temperature, strict=True)
            return [await lm.agenerate_single(one, stop, temperature=own, **kwargs) for one, own in pairs]
        said: list[dict[str, Any]] = messages_lst and await lm.agenerate(messages_lst, stop, temperature=temperature, **kwargs)
        return said
