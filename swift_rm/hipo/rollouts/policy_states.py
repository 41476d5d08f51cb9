"""The model that TRL trains, as it is read: its states of some rollouts, or those of the model that it started from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.capture.state_recorder import RecordingSpec
from swift_rm.reward.reward_model import SwiftRewardModel
from swift_rm.scoring.score import score_encoded
from swift_rm.scoring.teacher_forced_states import read_again
from swift_rm.tokens.encoding import Encoded
from swift_rm.tokens.region import find_region

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel


@contextmanager
def policy_of(trainer: Any) -> Iterator[PreTrainedModel]:
    """Give the model that a GRPO trainer trains, ready to generate, as the trainer's own generation unwraps it.

    Of an adapter's wrapper it is the model inside, adapter included. Raises ValueError for an adapter that is a prompt,
    which is not inside.
    """
    from trl.models.utils import unwrap_model_for_generation

    args = trainer.args
    if trainer.use_vllm:
        raise ValueError("hidden states are read while transformers generates: leave use_vllm out, or use TRL's own generation")
    with (
        unwrap_model_for_generation(
            trainer.model_wrapped,
            trainer.accelerator,
            gather_deepspeed3_params=args.ds3_gather_for_generation,
            generation_kwargs=trainer.generation_kwargs,
            gradient_checkpointing_kwargs=args.gradient_checkpointing_kwargs,
        ) as model,
        torch.no_grad(),
        trainer._dist.summon_full_params(trainer.model_wrapped, recurse=False),
    ):
        if hasattr(model, "get_base_model"):
            if model.active_peft_config.is_prompt_learning:
                raise ValueError(
                    "an adapter that is a learnt prompt has no place in the Best-of-N engine: use LoRA, or TRL's generation"
                )
            model = model.get_base_model()
        yield model


def encode_prompts(trainer: Any, prompts: list[Any]) -> list[list[int]]:
    """Return the ids of prompts, text or messages, as the trainer makes them; raise ValueError for images and empty ones."""
    ids, images, extra = trainer._tokenize_prompts(prompts)
    if images is not None or set(extra) - {"token_type_ids"}:
        raise ValueError("in-pass rewards are for text: prompts with images need TRL's own generation")
    empty = [str(prompt) for prompt, one in zip(prompts, ids, strict=True) if not one]
    if empty:
        raise ValueError(f"the prompt {empty[0]!r:.80} has no tokens")
    return [list(one) for one in ids]


def read_rollouts(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    rm: SwiftRewardModel,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
) -> tuple[Tensor, Tensor]:
    """Return the states ``[T, D]`` that ``rm`` reads of these responses, with ``offsets [B + 1]``, by one pass over them."""
    if not len(responses):
        return torch.empty(0, rm.config.width, dtype=model.dtype, device=model.device), torch.zeros(1, dtype=torch.long)
    states, offsets = read_again(model, RecordingSpec.of(rm.config), prompts, responses)
    regions = [find_region(response, rm.config.region, tokenizer).tokens for response in responses]
    rows = torch.cat(
        [torch.tensor(list(tokens), dtype=torch.long) + start for tokens, start in zip(regions, offsets.tolist(), strict=False)]
    )
    sizes = torch.tensor([0, *map(len, regions)])
    return states.to(model.dtype).index_select(0, rows.to(states.device)), sizes.cumsum(0)


def gathered(accelerator: Any, rows: Tensor) -> Tensor:
    """Return the rows ``[n, ...]`` of all processes, process after process; each may have another number of them."""
    if accelerator.num_processes == 1:
        return rows
    sizes = accelerator.gather(torch.tensor([len(rows)], device=rows.device)).tolist()
    if not max(sizes):
        return rows
    padded = accelerator.gather(accelerator.pad_across_processes(rows, dim=0))
    parts = padded.view(len(sizes), max(sizes), *padded.shape[1:])
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class FrozenScorer:
    """Score sampled token ids by one teacher-forced pass of a model that is not trained, ``batch_size`` rollouts at a time.

    The policy cannot change the states that judge it, but neither do these know the policy: the pass costs what in-pass
    rewards save, and a policy far from the start writes text that the frozen model reads as odd.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rm: SwiftRewardModel, batch_size: int = 32
    ) -> None:
        self.model, self._tokenizer, self._rm, self._batch_size = model.requires_grad_(False), tokenizer, rm, batch_size

    def __call__(self, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]) -> list[float]:
        """Return the rewards of the responses to the prompts; NaN where the states are not finite."""
        region = self._rm.config.region
        encoded = [
            Encoded(prompt, response, find_region(response, region, self._tokenizer))
            for prompt, response in zip(prompts, responses, strict=True)
        ]
        return score_encoded(self.model, self._rm, encoded, batch_size=self._batch_size) if encoded else []
