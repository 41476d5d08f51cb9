"""A reward model as TRL's GRPO, RLOO, online DPO and SDPO trainers take one: a module whose output has ``logits [B, 1]``."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from swift_rm.models.generation_config import model_end_tokens
from swift_rm.reward.identity import check_base_model
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.scoring.score import score_encoded
from swift_rm.tokens.encoding import encode

ASKED, SAID = [{"role": "user", "content": "0"}], [{"role": "assistant", "content": "0"}]


class SwiftRewardModule(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Reward whole texts: ``GRPOTrainer(..., reward_funcs=SwiftRewardModule(model, tokenizer, rm))``.

    TRL hands a module texts that it wrote and tokenised anew, without special tokens that were sampled, and does not say where
    a response begins; :class:`PromptResponseSplitter` finds that out, from the chat template or from
    ``start``, the text with which all prompts end. Where a function will do, ``SwiftReward`` reads the tokens themselves.
    ``chat_template_kwargs`` are the trainer's; ``model`` is a copy of the base model of the module's own.

    Raises ValueError for another base model, and for a chat template that does not show where a response begins.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rm: SwiftRewardModel,
        *,
        start: str | None = None,
        batch_size: int = 16,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        check_base_model(rm.config, model, tokenizer)
        config = PreTrainedConfig()
        config.name_or_path = model.name_or_path  # TRL loads the tokenizer by it, if it is given none
        super().__init__(config)
        self.language_model, self.reward_model, self.tokenizer, self.batch_size = model, rm, tokenizer, batch_size
        self.texts = PromptResponseSplitter(tokenizer, model_end_tokens(model), start, chat_template_kwargs)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, prompt_lengths: Tensor | None = None, **_: Any
    ) -> SequenceClassifierOutput:
        """Return ``logits [B, 1]`` of rows ``[B, T]``, NaN where states are not finite.

        With ``prompt_lengths [B]``, in tokens without padding, the ids are read as they are, and no text is looked at. Raises
        ValueError for a text in which a response's beginning is not found, an empty response, and one that is too long.
        """
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows: list[list[int]] = [row[kept.bool()].tolist() for row, kept in zip(input_ids, mask, strict=True)]
        if prompt_lengths is None:
            pairs = [self.texts.split(str(self.tokenizer.decode(row, clean_up_tokenization_spaces=False))) for row in rows]
        else:
            pairs = [(row[:length], row[length:]) for row, length in zip(rows, prompt_lengths.tolist(), strict=True)]
        prompts, responses = [prompt for prompt, _ in pairs], [response for _, response in pairs]
        encoded = encode(self.language_model, self.tokenizer, prompts, responses, self.reward_model.config.region)
        with torch.autocast(input_ids.device.type, enabled=False):  # accelerate puts it around a module's forward
            rewards = score_encoded(self.language_model, self.reward_model, encoded, batch_size=self.batch_size)
        logits = torch.tensor(rewards, device=input_ids.device)[:, None]
        return SequenceClassifierOutput(logits=logits.masked_fill(~logits.isfinite(), torch.nan))


class PromptResponseSplitter:
    """Split whole texts: ``ids, response_ids = PromptResponseSplitter(tokenizer, ends).split(text)``.

    They are the ids of prompt and response as they were before generation.

    A response begins after the last ``start``. By default that is what the chat template opens an assistant's turn with, as
    far as turns that are over and turns that are generated open alike; the prompt then gets the opening of the latter
    (``<think>`` and all, by ``chat_template_kwargs``). Prompts of plain text need ``start``: the text with which all of them
    end. A response ends with the first of the token ids ``ends``, or is given the tokenizer's end token, as in
    :func:`swift_rm.score`. Raises ValueError for a template that opens no turn, or opens it so that it is not found again.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        ends: Collection[int],
        start: str | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        self.tokenizer, self.ends, self._plain = tokenizer, {*ends, tokenizer.eos_token_id}, start is not None
        self.start = self.opening = start or ""
        if start is None and tokenizer.chat_template:
            more: dict[str, Any] = {"tokenize": False, **(chat_template_kwargs or {})}
            asked, opened, said = (
                str(tokenizer.apply_chat_template(chat, add_generation_prompt=add, **more))
                for chat, add in ((ASKED, False), (ASKED, True), (ASKED + SAID, False))
            )
            self.opening = opened.removeprefix(asked)
            both = zip(self.opening, said.removeprefix(asked), strict=False)
            self.start = "".join(one for one, _ in takewhile(lambda pair: pair[0] == pair[1], both))
            if self.start and self.split(said)[0] != self._ids(opened):
                self.start = ""
        if not self.start:
            raise ValueError("the chat template does not show where a response begins: give start, the text before it")

    def split(self, text: str) -> tuple[list[int], list[int]]:
        """Return the token ids of prompt and response; raise ValueError if ``start`` is not in the text."""
        before, start, said = text.rpartition(self.start)
        if not start:
            raise ValueError(f"{self.start!r}, after which a response begins, is not in the text {text!r:.200}")
        response = self._ids(said.removeprefix(self.opening.removeprefix(start)))
        last = next((place for place, token in enumerate(response) if token in self.ends), None)
        end = [] if self.tokenizer.eos_token_id is None else [self.tokenizer.eos_token_id]
        bare = self._plain and not (self.tokenizer.bos_token and text.startswith(self.tokenizer.bos_token))
        return self._ids(before + self.opening, bare), [*response, *end] if last is None else response[: last + 1]

    def _ids(self, text: str, special: bool = False) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special)["input_ids"])
