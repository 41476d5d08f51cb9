"""What a call of `generate` asks for, read from its keywords and configurations as `generate` itself reads them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def setting(model: PreTrainedModel, settings: Mapping[str, Any], name: str) -> Any:
    """Return one generation setting: the call's keyword, be it None, else its generation_config's, else the model's own."""
    if name in settings:
        return settings[name]
    given = getattr(settings.get("generation_config"), name, None)
    return getattr(model.generation_config, name, None) if given is None else given


def end_tokens_of(model: PreTrainedModel, settings: Mapping[str, Any]) -> Tensor:
    """Return the ids at which a response ends, ``[ends]``; none if neither the call nor the model defines any."""
    ends = setting(model, settings, "eos_token_id")
    if ends is None:
        return torch.empty(0, dtype=torch.long)
    return torch.as_tensor(ends, dtype=torch.long, device="cpu").reshape(-1)


def refuse_other_decoding(model: PreTrainedModel, settings: Mapping[str, Any]) -> None:
    """Raise ValueError that names the setting unless rows are sampled, or decoded greedily, one independent of another."""
    if reason := other_decoding(model, settings):
        raise ValueError(reason)


def other_decoding(model: PreTrainedModel, settings: Mapping[str, Any]) -> str | None:
    """Say, with the setting, why rows are not sampled, or decoded greedily, one independent of another; None if they are."""
    told = {
        "num_beams": "beam search mixes the rows' pasts",
        "assistant_model": "assisted decoding takes back tokens that the model has read",
        "prompt_lookup_num_tokens": "assisted decoding takes back tokens that the model has read",
        "assistant_early_exit": "assisted decoding takes back tokens that the model has read",
        "use_mtp": "assisted decoding takes back tokens that the model has read",
        "penalty_alpha": "contrastive search reads candidates that it does not take",
        "dola_layers": "DoLa is not plain sampling",
        "custom_generate": "its decoding loop is unknown",
    }
    for name, reason in told.items():
        value = setting(model, settings, name)
        if value not in (None, 1, 0, 0.0):
            return f"{name}={str(value)!r:.40} is not supported: {reason}; rewards need rows that are sampled one by one"
    if setting(model, settings, "cache_implementation") == "paged":
        return "cache_implementation='paged' is continuous batching, which mixes the tokens of several requests"
    return None


def model_end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Return the ids of the tokens with which a model says by itself that its response is done."""
    return frozenset(end_tokens_of(model, {}).tolist())


def is_only_end_token(ends: frozenset[int], response_ids: Sequence[int]) -> bool:
    """Tell whether a response is one of the end tokens ``ends`` alone."""
    return len(response_ids) == 1 and response_ids[0] in ends
