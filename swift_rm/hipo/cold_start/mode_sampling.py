"""Sample N responses to every question in each mode, with the rewards of their hidden states if a reward model is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import torch

from swift_rm.capture.state_recorder import RecordingSpec
from swift_rm.features.row_selection import reading_masks, reading_of
from swift_rm.hipo.response.template import Mode
from swift_rm.records.rollouts import Prompt, Rollout
from swift_rm.reward.identity import check_base_model
from swift_rm.sampling.sample import SampledBatch, sample_batches
from swift_rm.tasks.task import Question
from swift_rm.tokens.encoding import encode_prompt

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel

MODES: tuple[Mode, ...] = ("on", "off")
MODE_KWARGS: Mapping[Mode, Mapping[str, Any]] = MappingProxyType(
    {"on": {"enable_thinking": True}, "off": {"enable_thinking": False}}
)


def sample_modes(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    questions: Iterable[Question | Prompt],
    n: int = 8,
    folder: str | Path | None = None,
    *,
    rm: SwiftRewardModel | None = None,
    modes: Sequence[Mode] = MODES,
    mode_kwargs: Mapping[Mode, Mapping[str, Any]] = MODE_KWARGS,
    **options: Any,
) -> dict[Mode, list[Rollout]]:
    """Sample ``n`` responses per question in each of the ``modes``, into ``on.jsonl`` and ``off.jsonl`` of a folder.

    The modes differ in what the chat template is told, ``mode_kwargs``; ``**options`` are those of ``swift_rm.sample``
    (``grade``, ``seed``, ``batch_size``, ...), and so is all about stopped runs. With ``rm`` every response comes back with
    its reward, and its probability in ``extra``: read from the hidden states of generation, or, for what was in the file
    already, by one pass over it. The files hold no rewards. Raises ValueError for no modes, for text prompts, and for a chat
    template that does not tell the modes apart.
    """
    asked = list(questions)
    if not modes or set(modes) - set(MODES):
        raise ValueError(f"the modes must be some of 'on' and 'off', got {tuple(modes)!r}")
    plain = next((one for one in asked if isinstance(getattr(one, "prompt", one), str)), None)
    if plain is not None and len(modes) > 1:
        raise ValueError(
            f"the question {getattr(plain, 'prompt', plain)!r:.60} is plain text, which has no modes: give chat messages, or "
            "sample each mode with prompts of its own"
        )
    if asked and len(modes) > 1:
        prompt: Any = getattr(asked[0], "prompt", asked[0])
        first, second = (encode_prompt(tokenizer, prompt, mode_kwargs[mode]) for mode in MODES)
        if first == second:
            told = " and ".join(str(dict(mode_kwargs[mode])) for mode in MODES)
            raise ValueError(
                f"the chat template makes the same prompt with {told}: choose a model whose template knows two modes, or sample "
                "each mode with prompts of its own"
            )
    if rm is not None:
        check_base_model(rm.config, model, tokenizer)
    if folder is not None:
        Path(folder).mkdir(parents=True, exist_ok=True)
    record = None if rm is None else RecordingSpec.of(rm.config)
    sampled: dict[Mode, list[Rollout]] = {}
    for mode in modes:
        out = None if folder is None else Path(folder) / f"{mode}.jsonl"
        template = dict(mode_kwargs[mode])
        batches = sample_batches(model, tokenizer, asked, n, out, record=record, chat_template_kwargs=template, **options)
        with closing(batches):
            sampled[mode] = [
                one for batch in batches for one in (batch.rollouts if rm is None else _rewarded(batch, rm, tokenizer))
            ]
    return sampled


def _rewarded(batch: SampledBatch, rm: SwiftRewardModel, tokenizer: PreTrainedTokenizerBase) -> list[Rollout]:
    """Return a batch's rollouts with rewards and probabilities; one whose states are not finite has neither."""
    if batch.states is None:
        raise ValueError("the batch has no hidden states to read rewards from")
    ids = [rollout.response_ids for rollout in batch.rollouts]
    held = [RecordingSpec.of(rm.config).rows(len(one)) for one in ids]
    mask = reading_masks([reading_of(rm.config)], ids, held, tokenizer)[0][:, 0]
    counts = torch.stack([part.sum() for part in torch.split(mask, [len(rows) for rows in held])])
    offsets = torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])
    device = next(rm.parameters()).device
    with torch.no_grad():
        rewards = rm(batch.states[mask.to(batch.states.device)].to(device), offsets.to(device)).tolist()
    return [
        replace(rollout, reward=reward, extra={**rollout.extra, "probability": float(rm.probability([reward])[0])})
        if abs(reward) < float("inf")
        else rollout
        for rollout, reward in zip(batch.rollouts, rewards, strict=True)
    ]
