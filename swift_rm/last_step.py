"""One step more than `generate` takes: it never feeds back the last token, whose state a reward may need."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.cache_rows import keep_rows, rows_like
from swift_rm.model_shape import find_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_UPDATE = "_update_model_kwargs_for_generation"


class LastStep:
    """Remember, inside the ``with`` block, what `generate` would call the model with next; ``run`` makes that call.

    ``input_ids [rows, seq]`` is to be set to everything generated so far. It listens to the one place where `generate`
    brings its mask, positions and cache up to date, because what the model itself gets of them is cut to the step.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        # The module that `generate` runs on: inside an adapter's wrapper it is not the wrapper.
        path = find_decoder(model).path
        self._model: Any = next((module for module in reversed(path) if hasattr(type(module), _UPDATE)), model)
        self._own: Any = None
        self._arguments: dict[str, Any] = {}
        self.input_ids: Tensor | None = None

    def __enter__(self) -> LastStep:
        """Begin to listen."""
        self._arguments, self.input_ids = {}, None
        self._own = vars(self._model).get(_UPDATE)
        update = getattr(self._model, _UPDATE)

        def listen(*args: Any, **kwargs: Any) -> dict[str, Any]:
            self._arguments = update(*args, **kwargs)
            return self._arguments

        setattr(self._model, _UPDATE, listen)
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Stop listening; what was heard is kept for ``run``, unless there was an exception."""
        vars(self._model).pop(_UPDATE)
        if self._own is not None:
            setattr(self._model, _UPDATE, self._own)
        if kind is not None:
            self._arguments, self.input_ids = {}, None

    @torch.no_grad()
    def run(self, wanted: bool = True, *, copy_cache: bool = False, rows: Tensor | None = None) -> None:
        """Make the forward call of the last tokens, if ``wanted``, on a copy of the cache if told; forget what was heard.

        ``rows [kept]`` are those it is needed for, none twice: it is made for these alone, or for all where a cache of an
        unknown kind cannot be cut.
        """
        arguments, ids = self._arguments, self.input_ids
        self._arguments, self.input_ids = {}, None
        if ids is None or not wanted:
            return
        cache = arguments.pop("past_key_values", None)
        if cache_is_full(self._model, cache):
            cache = None
        elif copy_cache:
            cache = copy.deepcopy(cache)
        if rows is not None and (cache is None or hasattr(cache, "layers")):
            if cache is not None:
                keep_rows(cache, rows)
            arguments = {name: rows_like(name, value, rows, len(ids)) for name, value in arguments.items()}
            ids = ids.index_select(0, rows.to(ids.device))
        self._model(**next_inputs(self._model, ids, cache, arguments), return_dict=True)


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
    step: dict[str, Any] = model.prepare_inputs_for_generation(ids, next_sequence_length=1, past_key_values=cache, **arguments)
    return step


def cache_is_full(model: Any, cache: Any) -> bool:
    """Tell whether a static cache has no room for a token more; one that slides goes on, if as wide as the model's window."""
    window = getattr(model.config.get_text_config(), "sliding_window", None)
    for layer in getattr(cache, "layers", []):
        limit = getattr(layer, "max_cache_len", None)
        slides = getattr(layer, "is_sliding", False) and limit == window
        if limit is not None and not slides and 0 < limit <= int(layer.get_seq_length()):
            return True
    return False
