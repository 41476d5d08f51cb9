"""A reward model as TRL's GRPO, RLOO, online DPO and SDPO trainers take one: a module whose output has ``logits [B, 1]``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_outputs import SequenceClassifierOutput

from swift_rm.integrations.whole_text import WholeText
from swift_rm.models.generation_config import model_end_tokens
from swift_rm.reward.identity import check_base_model
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.scoring.score import score_encoded
from swift_rm.tokens.encoding import encode


class SwiftRewardModule(PreTrainedModel):  # type: ignore[no-untyped-call]
    """Reward whole texts: ``GRPOTrainer(..., reward_funcs=SwiftRewardModule(model, tokenizer, rm))``.

    TRL hands a module texts that it wrote and tokenised anew, without special tokens that were sampled, and does not say where
    a response begins; :class:`swift_rm.integrations.whole_text.WholeText` finds that out, from the chat template or from
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
        self.texts = WholeText(tokenizer, model_end_tokens(model), start, chat_template_kwargs)

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
