"""A reward model knows its base model: how that is recorded, and checked whenever the two meet."""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.models.model_shape import model_shape, output_width
from swift_rm.records.rollouts import Rollout
from swift_rm.reward.config import SwiftConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from swift_rm.reward.reward_model import SwiftRewardModel


def fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a hash of the vocabulary and the chat template, 16 hex digits."""
    content = json.dumps([sorted(tokenizer.get_vocab().items(), key=lambda item: (item[1], item[0])), tokenizer.chat_template])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def model_identity(model: PreTrainedModel) -> dict[str, Any]:
    """Return ``{"id", "revision"}`` of a loaded model, as the rollout records keep it; a folder is known by its last name."""
    name = short_name(model.name_or_path or type(model).__name__)
    return {"id": name, "revision": getattr(model.config, "_commit_hash", None)}


def short_name(model: str) -> str:
    """Return a folder's last name, or the name of any other model as it is."""
    return Path(model).resolve().name if os.path.isdir(model) else model


def describe_base(config: SwiftConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None) -> SwiftConfig:
    """Return the configuration with everything that identifies its base model filled in; raise ValueError if it names another."""
    shape, identity = model_shape(model), model_identity(model)
    check_base_model(config, model, tokenizer)
    return replace(
        config.for_base(shape.layers),
        base_model=config.base_model or identity["id"],
        base_revision=config.base_revision or identity["revision"],
        fingerprint=fingerprint(tokenizer) if tokenizer is not None else config.fingerprint,
    )


def check_base_model(config: SwiftConfig, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None) -> None:
    """Raise ValueError that names both models unless this is the language model that the reward model was trained on.

    Hidden size (or the number of output logits, by the source), number of layers, vocabulary and chat template are compared,
    and names where both are Hub ids (a folder's name says nothing). What the configuration does not record cannot be checked.
    """
    shape = model_shape(model)
    logits = output_width(model) if config.source != "hidden" else None
    known = fingerprint(tokenizer) if config.fingerprint and tokenizer is not None else None
    check_base(config, model_identity(model)["id"], shape.hidden_size, shape.layers, logits, known)


def check_base(
    config: SwiftConfig, name: str, hidden_size: int, layers: int, logits: int | None = None, known: str | None = None
) -> None:
    """Raise ValueError as ``check_base_model``, for a model of which only these figures are at hand.

    ``known`` is the fingerprint of its vocabulary and chat template.
    """
    trained_on = f"the reward model was trained on {config.base_model or 'an unnamed model'}"
    if config.source == "hidden" and hidden_size != config.hidden_size:
        raise ValueError(
            f"expected hidden states of width {config.hidden_size} ({trained_on}, layers {config.layers}), "
            f"but {name} has hidden size {hidden_size}"
        )
    if config.source == "logits" and logits != config.hidden_size:
        raise ValueError(f"expected {config.hidden_size} output logits ({trained_on}), but {name} has {logits}")
    if config.base_layers is not None and layers != config.base_layers:
        raise ValueError(f"{trained_on} with {config.base_layers} layers, but {name} has {layers}")
    config.for_base(layers)
    if config.fingerprint and known is not None and known != config.fingerprint:
        raise ValueError(
            f"{trained_on}, whose vocabulary and chat template have fingerprint {config.fingerprint}, "
            f"but those of {name} have {known}"
        )
    if _hub_id(config.base_model) and _hub_id(name) and config.base_model != name:
        raise ValueError(f"{trained_on}, but this is {name}")


def check_sampled_by(rollouts: Sequence[Rollout], model: PreTrainedModel) -> None:
    """Warn, with counts, if rollouts were sampled by another model than the one whose states are about to be read."""
    warn_of_others(rollouts, (name := model_identity(model)["id"]), f"but the states of {name} are read", stacklevel=4)


def warn_of_others(rollouts: Sequence[Rollout], name: str, consequence: str, *, stacklevel: int = 3) -> None:
    """Warn, with counts, of rollouts that another model than ``name`` sampled; ``consequence`` ends the sentence."""
    others = Counter(rollout.model["id"] for rollout in rollouts if rollout.model.get("id", name) != name)
    if others:
        warnings.warn(
            f"{others.total()} of {len(rollouts)} rollouts were sampled by {', '.join(others)}, {consequence}",
            stacklevel=stacklevel,
        )


def _hub_id(name: str | None) -> bool:
    return name is not None and name.count("/") == 1 and not name.startswith((".", "/", "~"))


def weights_fingerprint(rm: SwiftRewardModel) -> str:
    """Return a hash of what a reward model computes: a folder of the same name may hold another one."""
    several = ("heads", "pessimism") if rm.config.heads > 1 else ()
    config = {key: getattr(rm.config, key) for key in ("layers", "position", "region", "gate", "calibration", *several)}
    content = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, value in sorted(rm.state_dict().items()):
        content.update(name.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    return content.hexdigest()[:16]
