"""vLLM engines for tests and benchmarks: opened with the tiny reasoner, shut down again, compared with transformers."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from swift_rm import SwiftRewardModel, score
from swift_rm.selection.candidates import BestOfN
from swift_rm.tokens.encoding import encode_prompt

SETTINGS = {"dtype": "float32", "kv_cache_memory_bytes": 256 << 20, "max_model_len": 512, "max_num_seqs": 64}
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")


def close(llm: Any) -> None:
    """End vLLM's processes."""
    llm.llm_engine.engine_core.shutdown()


@contextmanager
def opened(model: str, reward_model: Any, **settings: Any) -> Iterator[Any]:
    """Give a VLLMBestOfN, eager unless told otherwise, and end its processes."""
    from swift_rm.integrations.vllm import VLLMBestOfN

    best = VLLMBestOfN(str(model), str(reward_model), **{**SETTINGS, "enforce_eager": True, **settings})
    try:
        yield best
    finally:
        close(best.llm)


def differences(model: Any, tokenizer: Any, rm: SwiftRewardModel, results: Sequence[BestOfN]) -> list[float]:
    """Return how far the rewards of whole candidates are from those of transformers on the same token ids."""
    found: list[float] = []
    for result in results:
        whole = [candidate for candidate in result.candidates if candidate.complete]
        prompt = encode_prompt(tokenizer, result.prompt)
        rewards = score(model, tokenizer, rm, [prompt] * len(whole), [candidate.token_ids for candidate in whole])
        found += [abs(candidate.reward - reward) for candidate, reward in zip(whole, rewards, strict=True)]
    return found
