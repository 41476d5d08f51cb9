"""The settings by which vLLM knows the reward model, and those of its own with which samples cannot be scored."""

from __future__ import annotations

from typing import Any

from swift_rm.decoding.pruning import check_guide
from swift_rm.models.load import resolve
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.identity import check_base
from swift_rm.reward.reward_model import SwiftRewardModel

CONFIG_KEY = "swift_rm"  # in vLLM's additional_config
WORKER_CLASS = "swift_rm.integrations.vllm.RewardWorker"
LOGITS_PROCESSOR = "swift_rm.integrations.vllm:LogitsReward"  # as --logits-processors wants it


def additional_config(reward_model: str, guide: str | None = None) -> dict[str, Any]:
    """Return what goes into vLLM's ``additional_config`` for a reward model's folder or Hub id, and for a guide's."""
    return {CONFIG_KEY: {"reward_model": reward_model, **({} if guide is None else {"guide": guide})}}


def load_reward_models(told: Any) -> list[SwiftRewardModel]:
    """Load the reward model, and the guide if there is one, of which vLLM is ``told`` in its ``additional_config``.

    Raises ValueError that says how to name one, and for one whose source vLLM does not show.
    """
    own = told.get(CONFIG_KEY) if isinstance(told, dict) else None
    names = [own.get("reward_model"), own.get("guide")] if isinstance(own, dict) else [None]
    if not isinstance(names[0], str):
        raise ValueError(
            "vLLM's worker needs a reward model, --additional-config "
            f'\'{{"{CONFIG_KEY}": {{"reward_model": "FOLDER"}}}}\', got {told!r}'
        )
    models = [SwiftRewardModel.from_pretrained(resolve(name)) for name in names if name is not None]
    if len(models) > 1:
        check_guide(*models)
    if models[0].config.source == "top_logprobs":
        raise ValueError(
            "inside vLLM hidden states and logits can be read, and this reward model reads log-probabilities: "
            "use it in front of vLLM's server (swift-rm serve --upstream URL)"
        )
    return models


def refuse_unsupported(vllm_config: Any) -> None:
    """Raise ValueError, in one sentence, where vLLM is set up in a way in which its samples cannot be scored."""
    parallel = vllm_config.parallel_config
    if parallel.pipeline_parallel_size > 1:
        raise ValueError(
            f"pipeline_parallel_size={parallel.pipeline_parallel_size}: no worker sees all layers; use tensor parallelism"
        )
    if parallel.data_parallel_size > 1:
        raise ValueError(
            f"data_parallel_size={parallel.data_parallel_size}: rewards are asked of one engine; start one server a replica"
        )
    if parallel.prefill_context_parallel_size > 1:
        raise ValueError(
            f"prefill_context_parallel_size={parallel.prefill_context_parallel_size}: no worker sees a whole prompt; "
            "use tensor parallelism"
        )
    if parallel.distributed_executor_backend == "external_launcher":
        raise ValueError("distributed_executor_backend='external_launcher': only rank 0 has rewards; let vLLM start its workers")
    if vllm_config.cache_config.kv_sharing_fast_prefill:
        raise ValueError(
            "kv_sharing_fast_prefill leaves layers out for tokens that a preempted request computes again: turn it off"
        )
    if vllm_config.speculative_config is not None:
        raise ValueError("speculative decoding is on, which drafts tokens that are not always kept: rewards are read without it")
    if vllm_config.model_config.is_diffusion:
        raise ValueError("a diffusion model writes its tokens several times over: rewards are of tokens that are written once")
    if vllm_config.model_config.runner_type != "generate":
        raise ValueError(f"vLLM runs as {vllm_config.model_config.runner_type!r}, and only what is generated has rewards")


def check_served_model(config: SwiftConfig, model_config: Any, fingerprint: str | None = None) -> int:
    """Return L, the served model's number of layers; raise ValueError if the reward model was trained on another model."""
    text = model_config.hf_text_config
    check_base(
        config, str(model_config.model), int(text.hidden_size), int(text.num_hidden_layers), model_config.get_vocab_size(),
        fingerprint,
    )  # fmt: skip
    return int(text.num_hidden_layers)
