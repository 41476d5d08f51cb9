"""Read output logits inside vLLM, by a logits processor of its V1 engine, for models whose states it cannot show."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from vllm.v1.sample.logits_processor import LogitsProcessor

from swift_rm.integrations.vllm.worker.settings import LOGITS_PROCESSOR
from swift_rm.integrations.vllm.worker.step_rows import rows_of

Keep = Callable[[list[str], np.ndarray, np.ndarray, Sequence[Tensor]], None]
# What changes the logits before a processor sees them, and the value that leaves them alone.
CHANGING: dict[str, Any] = {
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": [],
    "min_tokens": 0,
    "structured_outputs": None,
}


class LogitsReward(LogitsProcessor):  # type: ignore[misc]
    """Read the logits of each step's samples, and leave them as they are.

    `RewardWorker` puts it into vLLM by itself for a reward model of logits, and binds it to the runner whose requests the
    rows are. Requests that change logits before any processor sees them are refused by ``validate_params``.
    """

    def __init__(self, vllm_config: Any, device: Any, is_pin_memory: bool) -> None:
        self._runner: Any = None
        self._keep: Keep | None = None

    @classmethod
    def validate_params(cls, sampling_params: Any) -> None:
        """Raise ValueError for settings after which the logits are no longer the model's own."""
        for name, neutral in CHANGING.items():
            value = getattr(sampling_params, name, neutral)
            if value and value != neutral:
                raise ValueError(f"{name}={value!r} changes the logits that the reward model reads: leave it out")

    def bind(self, runner: Any, keep: Keep) -> None:
        """Say which runner's requests the rows of logits are, and what takes them."""
        self._runner, self._keep = runner, keep

    def apply(self, logits: Tensor) -> Tensor:
        """Hand on the rows ``[rows, V]`` that make a response's token, and return all as they are."""
        if self._keep is not None:
            rows = rows_of(self._runner)
            if len(rows.requests) == len(logits):  # not so while vLLM warms up
                owner, place = rows.sampled()
                if len(owner):
                    chosen = logits if len(owner) == len(logits) else logits[owner]
                    self._keep(rows.requests, owner, place, [chosen])
        return logits

    def is_argmax_invariant(self) -> bool:
        """Say no, so that vLLM shows the logits before temperature and penalties, and for greedy requests too."""
        return False

    def update_state(self, batch_update: Any) -> None:
        """Take no notice of changes to the batch, which is read when it runs."""


def use_logits(vllm_config: Any) -> None:
    """Put the processor into vLLM, before its runner is made; raise ValueError for the V2 runner, which has none of this kind."""
    if vllm_config.use_v2_model_runner:
        raise ValueError(
            "a reward model of logits needs vLLM's V1 model runner: set VLLM_USE_V2_MODEL_RUNNER=0 in vLLM's environment"
        )
    model_config = vllm_config.model_config
    others = [one for one in model_config.logits_processors or [] if one != LOGITS_PROCESSOR]
    model_config.logits_processors = [LOGITS_PROCESSOR, *others]


def bind_logits(runner: Any, keep: Keep) -> None:
    """Bind the processor that a runner made to it."""
    for processor in runner.input_batch.logitsprocs.all:
        if isinstance(processor, LogitsReward):
            processor.bind(runner, keep)
