"""All that swift_rm uses of transformers' generation and that transformers does not promise to keep, each thing named once.

``INTERNALS`` says what it is, in which versions it stands under that name, and what for. The functions below are the only
way to it, so that a release which changes a name is met here. What a public way leads to is reached by that way.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import GenerationConfig


@dataclass(frozen=True)
class Internal:
    """Something of transformers' that may change, and what it is used for.

    ``since`` and ``until`` are the first and the last tested version in which it stands so; None: all of them, from the
    oldest on or to the newest.
    """

    name: str
    where: str
    use: str
    since: str | None = None
    until: str | None = None


INTERNALS = (
    Internal("_prefill", "GenerationMixin", "the loop reads a batch of prompts as generate does, in chunks if told"),
    Internal("_update_model_kwargs_for_generation", "GenerationMixin", "mask and positions of the next step"),
    Internal("prepare_inputs_for_generation(next_sequence_length=)", "GenerationMixin", "the inputs of a step"),
    Internal("cache", "arguments and outputs of models", "the cache goes into a step and comes out of it", since="5.24.0"),
    Internal("past_key_values", "arguments and outputs of models", "the cache by its former name", until="5.23.0"),
    Internal("cache_params", "arguments of state-space models", "these are refused", until="5.23.0"),
    Internal("layer_types", "configuration of state-space models", "these are refused", since="5.17.0"),
    Internal("state", "arguments of RWKV", "it is refused"),
    Internal("_pad_token_tensor", "GenerationConfig inside generate", "what fills up the rows that are returned"),
    Internal("prompt_ignore_length", "RepetitionPenaltyLogitsProcessor", "a row's padding, where rows leave the batch"),
    Internal("keys, values, is_initialized, update", "DynamicLayer", "a cache that grows without copying what it holds"),
    Internal("layers, offloading, get_seq_length", "Cache", "rows of a cache; the tokens that a cache holds"),
    Internal("reorder_cache", "cache layers", "rows of a cache of any kind"),
    Internal("max_cache_len, is_sliding", "static cache layers", "whether there is room for one step more"),
    Internal("is_compileable", "Cache", "compiled steps, which hooks cannot see"),
    Internal("_compiled_call", "PreTrainedModel", "compiled steps, which hooks cannot see"),
    Internal("_attn_implementation, read_index, write_index, block_table", "continuous batching", "it is refused"),
    Internal("DeferredStopCheck", "generate on mps", "one step more than is returned is no fault there", since="5.17.0"),
)

UPDATE = "_update_model_kwargs_for_generation"
CACHE_NAMES = ("cache", "past_key_values")

# State-space and recurrent models carry their past in these. They leave the embedding output out of `hidden_states` and
# put the last block's raw output in, so that every layer index would mean something else.
_OTHER_PASTS = ("cache_params", "state", "mems", "past_buckets_states")

# What continuous batching hands to a model: the rows of several requests, packed, and no word of which is whose.
_PACKED = ("read_index", "write_index", "block_table")

# Processors that remember their rows from one step to the next, or number them.
_ROW_BOUND = ("UnbatchedClassifierFreeGuidance", "PrefixConstrained", "SynthIDText", "EncoderRepetition", "EncoderNoRepeat")
_LENGTH_LIMITS = ("MaxLengthCriteria", "MaxTimeCriteria")


def find_cache(values: Iterable[Any]) -> Any:
    """Return the cache among the arguments of a forward call, whatever its name, or None."""
    return next((value for value in values if hasattr(value, "get_seq_length") and hasattr(value, "update")), None)


def cache_of(outputs: Any) -> Any:
    """Return the cache that a forward call's outputs hold, or None."""
    there = outputs.__contains__ if isinstance(outputs, Mapping) else functools.partial(hasattr, outputs)
    return next((getattr(outputs, name) for name in CACHE_NAMES if there(name)), None)


def given_cache(settings: Mapping[str, Any]) -> Any:
    """Return the cache among keyword arguments, or None."""
    return next((settings[name] for name in CACHE_NAMES if settings.get(name) is not None), None)


def without_cache(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the arguments without the cache, by whatever name."""
    return {name: value for name, value in arguments.items() if name not in CACHE_NAMES}


def prefill(model: Any, input_ids: Tensor, config: GenerationConfig, arguments: dict[str, Any]) -> Any:
    """Let the model read the prompts ``[prompts, seq]`` as `generate` does; return its outputs."""
    return model._prefill(input_ids, config, arguments)


def next_arguments(model: Any, outputs: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return mask, positions and what else the step after ``outputs`` needs, the cache left out."""
    return without_cache(getattr(model, UPDATE)(outputs, dict(arguments)))


def next_inputs(model: Any, ids: Tensor, cache: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the inputs of the forward call on the last of ``ids [rows, seq]``, or, without a cache, on all of them.

    Raises ValueError for a prompt without ids that would have to be read again.
    """
    if cache is None:
        if arguments.get("inputs_embeds") is not None:
            raise ValueError(
                "the static cache is full, and a prompt given as embeddings cannot be read again for the state of the last "
                "token: use the default cache, or a reward model with position='generating'"
            )
        whole: dict[str, Any] = model.prepare_inputs_for_generation(ids, **{**arguments, "use_cache": False})
        return whole
    kind: Any = type(model)
    named = {cache_name(kind): cache}
    step: dict[str, Any] = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **named, **arguments)
    return step


@functools.cache
def cache_name(kind: type) -> str:
    """Return the name under which models of this class take their cache, by their own signatures, else by the library's."""
    from transformers import GenerationMixin

    for owner in (kind, GenerationMixin):
        method = getattr(owner, "prepare_inputs_for_generation", None)
        taken = inspect.signature(method).parameters if method is not None else ()
        for name in CACHE_NAMES:
            if name in taken:
                return name
    return CACHE_NAMES[0]


def runs_generate(path: Iterable[nn.Module]) -> Any:
    """Return which of these modules, outermost first, `generate` runs on: the innermost that can; not an adapter's wrapper."""
    return next((module for module in reversed([*path]) if hasattr(type(module), UPDATE)), None)


def generates_its_own_way(model: Any) -> bool:
    """Tell whether a model's class brings a `generate` of its own, as some that speak do, whose tokens are not the text's."""
    own = getattr(getattr(type(model), "generate", None), "__module__", None) or ""
    return own.startswith("transformers.models.")


def other_past(decoder: nn.Module) -> str | None:
    """Return what a state-space or recurrent model keeps its past in, where that is no cache of keys; else None."""
    from transformers import Cache

    parameters = inspect.signature(decoder.forward).parameters
    if named := sorted(parameters.keys() & set(_OTHER_PASTS)):
        return named[0]
    kinds = getattr(getattr(decoder, "config", None), "layer_types", None) or ()
    if kinds and set(kinds) == {"linear_attention"} and getattr(decoder.config, "num_attention_heads", None) is None:
        return _OTHER_PASTS[0]  # as its argument was called before it became `cache`, as everywhere
    wanted = parameters["cache"].annotation if "cache" in parameters else None
    classes = [kind for kind in (get_args(wanted) or (wanted,)) if isinstance(kind, type)]
    classes = [kind for kind in classes if kind not in (type(None), inspect.Parameter.empty)]
    return classes[0].__name__ if classes and not any(issubclass(kind, Cache) for kind in classes) else None


def pads_with(config: GenerationConfig) -> int:
    """Return the token that `generate` fills ended rows up with; 0 if it has none."""
    pad = getattr(config, "_pad_token_tensor", None)
    return 0 if pad is None else int(pad)


def bound_to_rows(processor: object) -> bool:
    """Tell whether a logits processor remembers which row is which."""
    return type(processor).__name__.startswith(_ROW_BOUND)


def limits_length(criterion: object) -> bool:
    """Tell whether a stopping criterion ends the room for a response rather than the response."""
    return type(criterion).__name__ in _LENGTH_LIMITS


def processors_of(processors: Callable[[Tensor, Tensor], Tensor], rows: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the logits processors for these rows: the repetition penalty knows how long each row's padding is."""
    if not isinstance(processors, list):
        return processors
    chosen = type(processors)()
    for processor in processors:
        padding = getattr(processor, "prompt_ignore_length", None)
        if isinstance(padding, Tensor):
            processor = copy.copy(processor)
            processor.prompt_ignore_length = padding.index_select(0, rows.to(padding.device))
        chosen.append(processor)
    return chosen


def cache_is_full(model: Any, cache: Any) -> bool:
    """Tell whether a static cache has no room for a token more; one that slides goes on, if as wide as the model's window."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    for layer in getattr(cache, "layers", []):
        limit = getattr(layer, "max_cache_len", None)
        slides = getattr(layer, "is_sliding", False) and limit == window
        if limit is not None and not slides and 0 < limit <= int(layer.get_seq_length()):
            return True
    return False


def packs_requests(decoder: nn.Module, arguments: Mapping[str, Any]) -> bool:
    """Tell whether a forward call is one of continuous batching."""
    implementation = getattr(getattr(decoder, "config", None), "_attn_implementation", None) or ""
    return implementation.startswith("paged|") or any(arguments.get(name) is not None for name in _PACKED)


def compiles_steps(path: Iterable[nn.Module], cache: Any) -> bool:
    """Tell whether `generate` is about to run its steps compiled, as it does with a static cache on an accelerator."""
    compiled = any(vars(module).get("_compiled_call") is not None for module in path)
    return compiled and bool(getattr(cache, "is_compileable", False)) and type(cache).__name__ != "DynamicCache"


def undoes_steps(device: torch.device, settings: Mapping[str, Any]) -> bool:
    """Tell whether `generate` may run a step more than it returns: on mps, or where processes wait for each other."""
    return device.type == "mps" or bool(settings.get("synced_gpus")) or _distributed()


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
