"""A model provider for Inspect, decoded by the Best-of-N engine: each choice that it generates carries its reward."""

from __future__ import annotations

import math
from typing import Any

import anyio.to_thread

from swift_rm.integrations.candidate_sampler import CandidateSampler
from swift_rm.models.load import TINY_REWARD, load_language_model, resolve
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.selection.candidates import Candidate
from swift_rm.tokens.encoding import encode_prompt

try:
    from inspect_ai.model import (
        ChatCompletionChoice,
        ChatMessageAssistant,
        GenerateConfig,
        ModelAPI,
        ModelOutput,
        ModelUsage,
    )
except ImportError as error:
    raise ImportError('Inspect needs inspect-ai: pip install "swift-rm[adapters]"') from error

UNABLE = ("best_of", "frequency_penalty", "presence_penalty", "logit_bias", "logprobs", "prompt_logprobs", "response_schema")


class SwiftModelAPI(ModelAPI):  # type: ignore[misc]
    """``--model swift-rm/NAME``: ``num_choices`` responses of a language model here, drawn as one batch from one prompt.

    NAME is a folder, a Hub id or the embedded model's; ``-M reward_model=...`` likewise. A choice's message has
    ``swift_reward`` (a logit, None if it has none) and ``swift_probability`` in its metadata. Other arguments:
    ``device``, ``dtype``, ``revision``, ``chat_template_kwargs``. Raises ValueError for a reward model of another language
    model, tools, content that is no text, and settings that the engine does not follow.
    """

    def __init__(
        self, model_name: str, base_url: str | None = None, api_key: str | None = None,
        config: GenerateConfig | None = None, *, reward_model: str = TINY_REWARD, chat_template_kwargs: Any = None,
        **loading: Any,
    ) -> None:  # fmt: skip
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        model, tokenizer = load_language_model(model_name, progress=False, **loading)
        rm = SwiftRewardModel.from_pretrained(resolve(reward_model)).to(model.device).eval()
        self.sampler, self._template = CandidateSampler(model, tokenizer, rm), chat_template_kwargs

    async def generate(self, input: list[Any], tools: list[Any], tool_choice: Any, config: GenerateConfig) -> ModelOutput:
        """Return ``num_choices`` responses, in the order in which they were drawn."""
        if refused := [name for name in UNABLE if getattr(config, name) not in (None, False)]:
            raise ValueError(f"swift-rm cannot follow {refused[0]}={getattr(config, refused[0])!r}")
        if tools or any(part.type != "text" for message in input for part in message.content_list):
            raise ValueError(f"swift-rm reads and answers text only, got {len(tools)} tools and {len(input)} messages")
        messages = [{"role": message.role, "content": message.text} for message in input]
        prompt = encode_prompt(self.sampler.tokenizer, messages, self._template)
        settings = {"max_new_tokens": config.max_tokens, "stop_strings": config.stop_seqs or None,
                    **{name: getattr(config, name) for name in ("temperature", "top_p", "top_k", "seed")}}  # fmt: skip

        def draw() -> list[Candidate]:
            return self.sampler.draw([prompt], [config.num_choices or 1], **settings)[0]

        candidates = await anyio.to_thread.run_sync(draw)
        tokens = sum(len(one.token_ids) for one in candidates)
        usage = ModelUsage(input_tokens=len(prompt), output_tokens=tokens, total_tokens=len(prompt) + tokens)
        return ModelOutput(model=self.model_name, choices=[self._choice(one) for one in candidates], usage=usage)

    async def count_text_tokens(self, text: str) -> int:
        """Return how many tokens a text is."""
        return len(self.sampler.tokenizer(text)["input_ids"])

    def _choice(self, one: Candidate) -> ChatCompletionChoice:
        values = {"swift_reward": one.reward, "swift_probability": one.probability}
        told = {name: None if math.isnan(value) else value for name, value in values.items()}
        message = ChatMessageAssistant(content=one.text, model=self.model_name, source="generate", metadata=told)
        return ChatCompletionChoice(message=message, stop_reason="max_tokens" if one.finish_reason == "length" else "stop")
