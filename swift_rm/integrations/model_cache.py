"""Models by name, loaded once: the last language model and the last reward model stay for the next call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from swift_rm.models.load import load_language_model, resolve
from swift_rm.reward.reward_model import SwiftRewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Key = tuple[str | None, ...]
Thing = TypeVar("Thing")

_language: dict[Key, tuple[PreTrainedModel, PreTrainedTokenizerBase]] = {}
_tokenizer: dict[Key, PreTrainedTokenizerBase] = {}
_reward: dict[Key, SwiftRewardModel] = {}


def cached_models(
    model: str | PreTrainedModel,
    reward_model: str | SwiftRewardModel,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    device: str | None = None,
    dtype: str | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, SwiftRewardModel]:
    """Return language model, tokenizer and reward model: those given, and those named by folder, Hub id or embedded name.

    A named one is loaded if it is not the last one that was, on this ``device`` and in this ``dtype``, or if its folder has
    changed since. Without a ``tokenizer`` a given model's is loaded by its ``name_or_path``. Raises ValueError for a
    ``device`` or ``dtype`` of a model that is loaded already, and what loading raises.
    """
    if isinstance(model, str):
        name = model
        key = (_state_of(name), device, dtype)
        model, own = _kept(_language, key, lambda: load_language_model(name, device=device, dtype=dtype))
        tokenizer = own if tokenizer is None else tokenizer
    elif device is not None or dtype is not None:
        raise ValueError(f"device={device!r} and dtype={dtype!r} are for a model given by name: this one is loaded already")
    if tokenizer is None:
        from transformers import AutoTokenizer

        path = model.name_or_path or ""
        if not path:
            raise ValueError("a model that was not loaded from a folder or the Hub needs its tokenizer: give tokenizer=")
        tokenizer = _kept(_tokenizer, (_state_of(path),), lambda: AutoTokenizer.from_pretrained(path))
    if not isinstance(reward_model, str):
        return model, tokenizer, reward_model
    return model, tokenizer, cached_reward_model(reward_model).to(model.device)


def cached_reward_model(name: str) -> SwiftRewardModel:
    """Return the reward model of a folder, Hub id or embedded name, loaded if it is another than the last, or has changed."""
    folder = resolve(name)
    return _kept(_reward, (_state_of(folder),), lambda: SwiftRewardModel.from_pretrained(folder))


def forget() -> None:
    """Let go of the models that were loaded by name, and of their memory."""
    for kept in (_language, _tokenizer, _reward):
        kept.clear()


def _kept(kept: dict[Key, Thing], key: Key, load: Callable[[], Thing]) -> Thing:
    if key not in kept:
        kept.clear()  # first: there may be no room for two
        kept[key] = load()
    return kept[key]


def _state_of(name: str) -> str:
    """Return what a name stands for now: a folder with the time at which it last changed, or a Hub id as it is."""
    folder = Path(resolve(name))
    if not folder.is_dir():
        return name
    return f"{folder.resolve()} {max((file.stat().st_mtime_ns for file in folder.iterdir()), default=0)}"
