"""What an engine computed for its responses, recorded, and what transformers computes for the same token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from swift_rm.models.model_shape import model_shape
from swift_rm.reward.config import SwiftConfig
from swift_rm.scoring.score import score_encoded
from swift_rm.scoring.teacher_forced_states import packed_states
from swift_rm.tokens.encoding import Encoded, encode
from swift_rm.tokens.region import Region

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel


@dataclass(frozen=True)
class RecordedResponse:
    """A response of an engine with its reward, and ``states [R, D]`` in float32: row k produced response token k.

    D is the reward model's width. A row that the engine did not compute is NaN.
    """

    prompt_ids: Sequence[int]
    response_ids: Sequence[int]
    states: np.ndarray
    reward: float


@dataclass(frozen=True)
class EngineRun:
    """What an engine of this name and version computed in a dtype, such as ``bfloat16``, on a kind of device."""

    engine: str
    version: str
    dtype: str
    device: str
    responses: Sequence[RecordedResponse]

    @property
    def tokens(self) -> int:
        """The number of the responses' tokens."""
        return sum(len(one.response_ids) for one in self.responses)


@dataclass(frozen=True)
class TeacherForced:
    """What transformers says of the same responses: their states ``[R, D]`` each, and their rewards.

    ``every`` has all hidden states ``[L + 1, R, d]`` of response number ``varied``, the one of the most different tokens; None
    if output logits are read.
    """

    states: list[Tensor]
    rewards: list[float]
    every: Tensor | None
    varied: int


def teacher_force(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, rm: SwiftRewardModel, responses: Sequence[RecordedResponse]
) -> TeacherForced:
    """Read responses with transformers, each by itself, so that nothing is padded; raise ValueError for ids it does not have."""
    config = rm.config
    prompts, tokens = [one.prompt_ids for one in responses], [one.response_ids for one in responses]
    encoded = encode(model, tokenizer, prompts, tokens, config.region)
    varied = max(range(len(encoded)), key=lambda i: len(set(encoded[i].response_ids)))
    with torch.inference_mode():
        states = [torch.cat(_states(model, config, one, config.layers), dim=1) for one in encoded]
        every = None
        if config.source == "hidden":
            every = torch.stack(_states(model, config, encoded[varied], range(model_shape(model).layers + 1)))
    return TeacherForced(states, score_encoded(model, rm, encoded, batch_size=1), every, varied)


def _states(model: PreTrainedModel, config: SwiftConfig, one: Encoded, layers: Sequence[int]) -> list[Tensor]:
    whole = Encoded(one.prompt_ids, one.response_ids, Region(range(len(one.response_ids))))
    (packed,) = packed_states(model, layers, "generating", [whole], source=config.source)
    return [layer.float().cpu() for layer in packed.layers]
