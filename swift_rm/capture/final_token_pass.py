"""One forward call after `generate`, on the last token: `generate` never feeds it back, and a reward may need its state."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.models.kv_cache_rows import keep_rows, rows_like
from swift_rm.models.model_shape import find_decoder
from swift_rm.models.transformers_internals import UPDATE, cache_is_full, given_cache, next_inputs, runs_generate, without_cache

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FinalTokenPass:
    """Remember, inside the ``with`` block, what `generate` would call the model with next; ``run`` makes that call.

    ``input_ids [rows, seq]`` is to be set to everything generated so far. It listens to the one place where `generate`
    brings its mask, positions and cache up to date, because what the model itself gets of them is cut to the step.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model: Any = runs_generate(find_decoder(model).path) or model
        self._own: Any = None
        self._arguments: dict[str, Any] = {}
        self.input_ids: Tensor | None = None

    def __enter__(self) -> FinalTokenPass:
        """Begin to listen."""
        self._arguments, self.input_ids = {}, None
        self._own = vars(self._model).get(UPDATE)
        update = getattr(self._model, UPDATE)

        def listen(*args: Any, **kwargs: Any) -> dict[str, Any]:
            self._arguments = update(*args, **kwargs)
            return self._arguments

        setattr(self._model, UPDATE, listen)
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        """Stop listening; what was heard is kept for ``run``, unless there was an exception."""
        vars(self._model).pop(UPDATE)
        if self._own is not None:
            setattr(self._model, UPDATE, self._own)
        if kind is not None:
            self._arguments, self.input_ids = {}, None

    def cuts_rows(self) -> bool:
        """Tell whether ``run`` can be made for some of the rows: not where a cache of an unknown kind cannot be cut."""
        cache = given_cache(self._arguments)
        return cache is None or hasattr(cache, "layers")

    @torch.no_grad()
    def run(self, wanted: bool = True, *, copy_cache: bool = False, rows: Tensor | None = None) -> None:
        """Make the forward call of the last tokens, if ``wanted``, on a copy of the cache if told; forget what was heard.

        ``rows [kept]`` are those it is needed for, none twice: it is made for these alone, or for all where a cache of an
        unknown kind cannot be cut.
        """
        ids = self.input_ids
        if ids is None or not wanted:
            self._arguments, self.input_ids = {}, None
            return
        cut, cache, arguments = self.cuts_rows(), given_cache(self._arguments), without_cache(self._arguments)
        self._arguments, self.input_ids = {}, None
        if cache_is_full(self._model, cache):
            cache = None
        elif copy_cache:
            cache = copy.deepcopy(cache)
        if rows is not None and cut:
            if cache is not None:
                keep_rows(cache, rows)
            arguments = {name: rows_like(name, value, rows, len(ids)) for name, value in arguments.items()}
            ids = ids.index_select(0, rows.to(ids.device))
        self._model(**next_inputs(self._model, ids, cache, arguments), return_dict=True)
