"""Rewards inside vLLM: the worker scores its own samples, and only gate and reward of each token, by head, leave it.

`VLLMBestOfN` is for programs; `RewardWorker` and `RewardMiddleware` are for vLLM's server:
``--worker-cls swift_rm.integrations.vllm.RewardWorker --middleware swift_rm.integrations.vllm.RewardMiddleware
--additional-config '{"swift_rm": {"reward_model": "my-reward-model"}}'``. Importing any of its names checks vLLM's version.
"""

from __future__ import annotations

import importlib
from typing import Any

from swift_rm.integrations.vllm.versions.version import check_version

_ROOMS = {
    "VLLMBestOfN": "offline.best_of_n",
    "RewardWorker": "worker.reward_worker",  # imported where it runs: it picks the worker of the platform it finds
    "RewardMiddleware": "server.middleware",
    "LogitsReward": "worker.logits_processor",
}
__all__ = ["LogitsReward", "RewardMiddleware", "RewardWorker", "VLLMBestOfN"]


def __getattr__(name: str) -> Any:
    """Import what is asked for from its room."""
    if name not in _ROOMS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    check_version()
    return getattr(importlib.import_module(f"{__name__}.{_ROOMS[name]}"), name)
