"""What a client asked vLLM's server for, as far as rewards go."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swift_rm.integrations.vllm.worker.step_rows import sample_names


@dataclass(frozen=True)
class RewardRequest:
    """``body`` is what vLLM gets, under the id ``name``, which nothing else has; ``told`` is the id that the client gave, if any.

    The choices are ``n`` for each of ``prompts`` prompts, in the order of the rule ``select`` if there is one. ``rewarded`` are
    all but those whose reply would be another one with the token ids. ``text_only`` is a prompt whose token ids are all of it.
    """

    body: Mapping[str, Any]
    chat: bool
    name: str
    told: str | None
    n: int
    prompts: int
    select: str | None
    rewarded: bool
    wants_ids: bool
    text_only: bool

    @property
    def public_id(self) -> str:
        """Return the id that the client finds in the reply: what vLLM makes of the one it gave."""
        return self.name if self.told is None else f"{self.name.partition('-')[0]}-{self.told}"

    def names(self, choices: int | None = None) -> list[str]:
        """Return what the samples are called in the engine, in the order of their choices; of all, or the first ``choices``."""
        prompts = self.prompts if choices is None else math.ceil(choices / self.n)
        requests = [self.name] if self.chat else [f"{self.name}-{prompt}" for prompt in range(prompts)]
        return [name for request in requests for name in sample_names(request, self.n)]
