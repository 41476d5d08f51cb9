"""Open a vLLM ``LLM`` with a reward model in its worker, or check one that was opened elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from swift_rm.integrations.vllm.worker.settings import (
    CONFIG_KEY,
    LOGITS_PROCESSOR,
    WORKER_CLASS,
    additional_config,
    check_served_model,
    load_reward_models,
    refuse_unsupported,
)
from swift_rm.integrations.vllm.worker.shown_layers import ShownLayers
from swift_rm.models.load import resolve


def open_llm(llm: Any, reward_model: str | None, guide: str | None, engine: Mapping[str, Any], record: bool = False) -> Any:
    """Return ``llm``, or the LLM opened by that name with the further keywords of vLLM's ``engine``.

    Raises ValueError, before a process is started, for what the worker would refuse, and for keywords that do not go with an
    LLM that is open. With ``record`` the worker keeps states too.
    """
    if not isinstance(llm, str):
        if reward_model is not None or guide is not None or engine:
            given = [name for name, value in [("reward_model", reward_model), ("guide", guide)] if value is not None]
            raise ValueError(
                f"{', '.join([*given, *engine])}: the LLM is open, and its worker has the reward model of its additional_config"
            )
        return llm
    if reward_model is None:
        raise ValueError(f"a reward model is needed: VLLMBestOfN({llm!r}, 'my-reward-model')")
    if engine.get("worker_cls", WORKER_CLASS) != WORKER_CLASS or CONFIG_KEY in (
        more := dict(engine.get("additional_config") or {})
    ):
        raise ValueError(f"worker_cls and additional_config[{CONFIG_KEY!r}] are set here: leave them out")
    told = {**more, **additional_config(reward_model, guide)}
    told[CONFIG_KEY].update({"record": True} if record else {})
    settings: dict[str, Any] = {**engine, "worker_cls": WORKER_CLASS, "additional_config": told}
    config = load_reward_models(told)[0].config
    if config.source == "logits":
        settings["logits_processors"] = [LOGITS_PROCESSOR, *engine.get("logits_processors", ())]
    from vllm import LLM, EngineArgs
    from vllm.platforms import current_platform

    planned = EngineArgs(model=resolve(llm), **settings).create_engine_config()
    refuse_unsupported(planned)
    layers = check_served_model(config, planned.model_config)
    if config.source == "hidden":
        served, _ = planned.model_config.registry.resolve_model_cls(planned.model_config.architectures, planned.model_config)
        shown = ShownLayers(config, layers)
        shown.check(served)
        shown.check_eager(planned, current_platform.is_cpu())
    return LLM(resolve(llm), **settings)


def check_llm(llm: Any) -> Any:
    """Return an LLM's configuration; raise ValueError unless its worker is the one that scores."""
    config = llm.llm_engine.vllm_config
    refuse_unsupported(config)
    if config.parallel_config.worker_cls != WORKER_CLASS:
        raise ValueError(
            f"the LLM's worker is {config.parallel_config.worker_cls!r}, which scores nothing: "
            f"open it with worker_cls={WORKER_CLASS!r}"
        )
    return config
