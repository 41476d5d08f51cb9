"""Requests to vLLM's offline engine: for samples with their settings, and for the state at the last token of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from swift_rm.integrations.vllm.offline.engine_loop import EngineLoop
from swift_rm.integrations.vllm.worker.sample import Sample
from swift_rm.sampling.generation import DEFAULT_NEW_TOKENS, seed_for

RESERVED_SETTINGS = ("n", "max_tokens", "output_kind", "prompt_logprobs", "logprobs", "seed")
MOST_SEEDS = 2**31


@dataclass(frozen=True)
class SampleSettings:
    """How samples are drawn: ``sampling`` are settings of vLLM's ``SamplingParams``. Raises ValueError for those set here."""

    max_tokens: int
    seed: int | None
    logprobs: bool
    sampling: Mapping[str, Any]

    def __post_init__(self) -> None:
        if taken := sorted(set(RESERVED_SETTINGS) & set(self.sampling)):
            raise ValueError(f"{taken[0]} is set by arguments of this call (n, max_new_tokens, logprobs, seed), not passed on")

    def together(self, n: int, prompt: int) -> Any:
        """Return the parameters of one request for n samples."""
        return self._params(self._seed(prompt), n=n, output_kind=_kinds().FINAL_ONLY)

    def apart(self, n: int, prompt: int) -> list[Any]:
        """Return those of n requests for the same samples, each of which tells of its tokens as they come."""
        seed = self._seed(prompt)
        seeds = [None if seed is None else seed + number for number in range(n)]  # as vLLM gives them to the n of a request
        return [self._params(own, output_kind=_kinds().DELTA) for own in seeds]

    def _seed(self, prompt: int) -> int | None:
        return None if self.seed is None else seed_for(self.seed, prompt) % MOST_SEEDS

    def _params(self, seed: int | None, **more: Any) -> Any:
        from vllm import SamplingParams

        logprobs = 0 if self.logprobs else None  # 0: of the chosen token alone
        return SamplingParams(max_tokens=self.max_tokens, logprobs=logprobs, seed=seed, **more, **self.sampling)


def token_limit(prompts: Sequence[Sequence[int]], wanted: int | None, room: int) -> int:
    """Return how many tokens a response may have: those wanted, else as many as the context holds, up to 1,024.

    Raises ValueError where the longest prompt leaves no room for them in a context of ``room`` tokens.
    """
    longest = max(map(len, prompts))
    if room - longest < (wanted or 1):
        what = f"{wanted} new tokens" if wanted else "a response"
        raise ValueError(f"a prompt of {longest} tokens leaves no room for {what}: vLLM's context is {room} (max_model_len)")
    return wanted or min(room - longest, DEFAULT_NEW_TOKENS)


def check_seed(vllm_config: Any, prompts: Sequence[Sequence[int]], n: int) -> None:
    """Raise ValueError where seeds would end vLLM: on a CPU, if it has to split a prompt over steps."""
    from vllm.platforms import current_platform

    most = int(vllm_config.scheduler_config.max_num_batched_tokens)
    tokens = n * (sum(map(len, prompts)) + len(prompts))  # every sample's prompt, and a token of each, in one step
    if current_platform.is_cpu() and tokens > most:
        raise ValueError(
            f"a seed on a CPU ends vLLM where it splits a prompt over steps, and {tokens} tokens are more than a step's {most} "
            "(max_num_batched_tokens): ask for fewer prompts at once, or leave the seed out"
        )


def read_last(loop: EngineLoop, prompts: Sequence[Sequence[int]], samples: Sequence[Sample]) -> None:
    """Add to each sample's scores those of the state at its last token, which vLLM has not computed.

    It takes a request for one token after each response. With prefix caching vLLM computes the end of the response only.
    """
    lacking = [s for s in samples if s.token_ids and s.scores is not None and len(s.scores) == len(s.token_ids)]
    if not lacking:
        return
    asked = [[*prompts[sample.prompt], *sample.token_ids] for sample in lacking]
    for sample, (after,) in zip(lacking, loop.sample(asked, 1, [one_token()] * len(asked)), strict=True):
        if sample.scores is not None and after.scores is not None:
            sample.scores = np.concatenate([sample.scores, after.scores[:1]])


def one_token() -> Any:
    """Return the parameters of a request whose prompt's last state is all that is wanted of it."""
    from vllm import SamplingParams

    return SamplingParams(max_tokens=1, temperature=0.0, detokenize=False, output_kind=_kinds().FINAL_ONLY)


def _kinds() -> Any:
    from vllm.sampling_params import RequestOutputKind

    return RequestOutputKind
