"""Record the states and rewards that vLLM computes, to compare them with transformers': `swift-rm check-engine vllm`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np

from swift_rm.integrations.vllm.offline.engine_loop import EngineLoop
from swift_rm.integrations.vllm.offline.open_llm import check_llm, open_llm
from swift_rm.integrations.vllm.offline.sample_requests import SampleSettings, read_last, token_limit
from swift_rm.integrations.vllm.versions.version import check_version
from swift_rm.integrations.vllm.worker.sample import sample_rewards, score_width
from swift_rm.integrations.vllm.worker.settings import load_reward_models
from swift_rm.parity.recorded_run import EngineRun, RecordedResponse
from swift_rm.records.rollouts import Prompt
from swift_rm.tokens.encoding import encode_prompts


def record_vllm(
    model: str, reward_model: str, prompts: Sequence[Prompt], *, n: int = 4, max_new_tokens: int = 64, **engine: Any
) -> EngineRun:
    """Sample n responses to each prompt with vLLM, one of them greedy, and return them with the states that its worker read.

    ``engine`` are settings of vLLM's ``LLM``. The greedy ones come first, so that the others find their prompts cached. vLLM
    is shut down at the end, and its memory is free. Not run: a GPU. Raises ValueError for bad settings, ImportError without
    vLLM, and RuntimeError, from vLLM, if it does not start.
    """
    version = check_version()
    if n < 1:
        raise ValueError(f"n must be at least 1, got {n}")
    from vllm import EngineArgs

    if unknown := sorted(set(engine) - {field.name for field in fields(EngineArgs)}):
        raise ValueError(f"vLLM {version} has no setting {unknown[0]!r}")
    llm = open_llm(model, reward_model, None, engine, record=True)
    try:
        config = check_llm(llm)
        dtype = str(config.model_config.dtype).removeprefix("torch.")
        responses = _record(llm, config, prompts, n, max_new_tokens)
        return EngineRun("vllm", version, dtype, str(config.device_config.device_type), responses)
    finally:
        llm.llm_engine.engine_core.shutdown()


def _record(llm: Any, config: Any, prompts: Sequence[Prompt], n: int, wanted: int) -> list[RecordedResponse]:
    tokenizer = llm.get_tokenizer()
    (rm,) = load_reward_models(config.additional_config)
    loop = EngineLoop(llm, score_width(rm))
    encoded = encode_prompts(tokenizer, prompts, None, config.model_config.get_vocab_size())
    last = rm.config.position == "token"
    limit = token_limit(encoded, wanted, config.model_config.max_model_len - last)
    samples = []
    for count, sampling in ((1, {"temperature": 0.0}), (n - 1, {})):
        if count:
            ask = SampleSettings(limit, None, False, sampling).together(count, 0)
            samples += [one for group in loop.sample(encoded, count, [ask] * len(encoded)) for one in group]
    if last:
        read_last(loop, encoded, samples)
    responses = []
    for sample, (reward, _) in zip(samples, sample_rewards(rm, tokenizer, samples), strict=True):
        (kept,) = loop.ask("take_states", [sample.name])  # one by one: those of a large model are large
        states = np.full((len(sample.token_ids), rm.config.width), np.nan, np.float32)
        found = np.frombuffer(kept, np.float32).reshape(-1, rm.config.width)[: len(states)]
        states[: len(found)] = found
        responses.append(RecordedResponse(encoded[sample.prompt], sample.token_ids, states, reward))
    return responses
