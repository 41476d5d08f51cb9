"""Reasons why hooks would miss hidden states or mix up their tokens: each function returns the reason, or None."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from swift_rm.models.model_shape import Decoder
from swift_rm.models.transformers_internals import compiles_steps, packs_requests


def compiled_model(decoder: Decoder) -> str | None:
    """Say which module on the way to the blocks, or among them, is compiled: hooks attached now may never fire.

    Not even where it has never run: torch guards no hooks (``skip_nnmodule_hook_guards``), and runs code that was compiled
    for another model of the class in its stead. What is compiled inside the ``with`` block has the hooks in it.
    """
    for module in (*decoder.path, *decoder.blocks):
        if _is_compiled(module):
            return (
                f"{type(module).__name__} is compiled, and hooks attached to a compiled module are silently lost: "
                "use the model without torch.compile, or compile it inside the with block"
            )
    return None


def packed_call(decoder: Decoder, arguments: Mapping[str, Any]) -> str | None:
    """Say that a forward call is one of continuous batching."""
    if packs_requests(decoder.owner, arguments):
        return "generate_batch packs the tokens of several requests without saying which are whose: use generate"
    return None


def compiled_steps(decoder: Decoder, cache: Any) -> str | None:
    """Say that ``generate`` is about to run its steps compiled, as it does with a static cache on an accelerator.

    It leaves its compiled call on the model before the prompt's forward call, which is never compiled: time to stop it.
    """
    if compiles_steps(decoder.path, cache):
        return (
            f"generate compiles its steps for a {type(cache).__name__}, and hooks are lost there: use the default "
            "cache, or pass disable_compile=True to a model that has never been compiled"
        )
    return None


def broken_sequence(past: int, expected: int | None) -> str | None:
    """Say that a cache of ``past`` tokens does not continue a sequence of ``expected`` tokens, if one is under way."""
    if expected is None:
        return None
    if past < expected:
        return (
            f"the cache was cut back from {expected} to {past} tokens, as assisted and prompt-lookup decoding do with "
            "rejected drafts, whose states were recorded: generate without drafts; after your own crop, call clear()"
        )
    if past > expected:
        return (
            f"{past - expected} tokens entered the cache unseen by the hooks (a compiled step, or the cache of another "
            "sequence): call clear() before going on with another sequence"
        )
    return None


def _is_compiled(module: nn.Module) -> bool:
    forward = module.forward
    traced = hasattr(forward, "_torchdynamo_orig_callable") and not hasattr(forward, "_torchdynamo_disable")
    return traced or hasattr(module, "_orig_mod") or module._compiled_call_impl is not None
