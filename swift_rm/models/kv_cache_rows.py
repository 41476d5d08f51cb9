"""Rows of a cache: repeated for the candidates of a prompt, dropped when a candidate is done, written a token at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

# Tokens of room that a growing layer makes, when it is full: at least so many, or a share of what it holds. Not more, since
# attention on a CPU reads the rows of a short cache half as fast again where wide gaps part them.
SPARE, SHARE = 8, 1 / 16


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
    """Keys and values with room for tokens to come: a token is written, where DynamicLayer copies all that there is."""

    keys: Tensor
    values: Tensor

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True
        self.keys, self.values = keys, values  # [rows, heads, seq, head_dim], views of the room once there is one
        self._room: list[Tensor] = []

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens behind the others; return the keys and values of all."""
        rows, length = self.keys.shape[0], self.keys.shape[2]
        end = length + key_states.shape[2]
        if not self._room or end > self._room[0].shape[2]:
            self._room = [_with_room(part, end + max(SPARE, int(end * SHARE))) for part in (self.keys, self.values)]
        for room, new in zip(self._room, (key_states, value_states), strict=True):
            room[:rows, :, length:end] = new
        self._look(rows, end)
        return self.keys, self.values

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep these rows, none of them twice; only rows whose place changes are copied."""
        moved = (indices != torch.arange(len(indices), device=indices.device)).nonzero().flatten()
        if len(moved):
            for part in (self.keys, self.values):
                part[moved] = part[indices[moved]]
        if self._room:
            self._look(len(indices), self.keys.shape[2])
        else:
            self.keys, self.values = self.keys[: len(indices)], self.values[: len(indices)]

    def _look(self, rows: int, length: int) -> None:
        self.keys, self.values = (room[:rows, :, :length] for room in self._room)


def refuse_cache(cache: Any) -> None:
    """Raise ValueError that names the cache if its rows cannot be repeated and dropped."""
    name = type(cache).__name__
    if not hasattr(cache, "layers"):
        raise ValueError(
            f"Best-of-N decoding repeats the cache of the prompt, a row for each candidate, but this model made {name}: "
            "it needs use_cache=True, and a model whose cache has layers"
        )
    for kind in sorted({type(layer).__name__ for layer in cache.layers}):
        if "Quantized" in kind:
            raise ValueError(f"the rows of a quantised cache ({kind}) cannot be repeated: use the default cache")


def take_rows(cache: Any, rows: Tensor) -> Any:
    """Return a new cache with these rows ``[kept]`` of ``cache``, in this order, each as often as named; it is left as it is."""
    taken = copy.copy(cache)
    taken.layers = []
    for layer in cache.layers:
        kind = type(layer)
        if kind is DynamicLayer and layer.is_initialized and not getattr(cache, "offloading", False):
            here = rows.to(layer.keys.device)
            taken.layers.append(GrowingLayer(layer.keys.index_select(0, here), layer.values.index_select(0, here)))
        else:
            taken.layers.append(copy.deepcopy(layer))
            _keep(taken.layers[-1], rows)
    return taken


def keep_rows(cache: Any, rows: Tensor) -> None:
    """Keep these rows ``[kept]`` of a cache, in this order, none of them twice, in place."""
    for layer in cache.layers:
        _keep(layer, rows)


def _keep(layer: Any, rows: Tensor) -> None:
    here = rows.to(getattr(layer, "device", rows.device) or rows.device)
    if isinstance(layer, GrowingLayer):
        layer.batch_select_indices(here)
    else:  # every layer's way to any rows in any order, whether it keeps keys or the state of a recurrence
        layer.reorder_cache(here)


def closed_up(stays: Sequence[bool]) -> list[int]:
    """Return the rows that stay, in the order that moves the fewest: the last ones fill the gaps of those that leave."""
    order = [row for row, staying in enumerate(stays) if staying]
    count = len(order)
    fillers = [row for row in order if row >= count]
    return [row if stays[row] else fillers.pop() for row in range(count)]


def rows_like(name: str, value: Any, rows: Tensor, count: int) -> Any:
    """Return these rows of an argument of the model that has a row for each of ``count``; any other argument as it is."""
    if not isinstance(value, Tensor) or value.dim() < 2:
        return value
    batch = 1 if name == "position_ids" and value.dim() == 3 else 0  # [kinds, rows, seq] where there are several kinds
    return value.index_select(batch, rows.to(value.device)) if value.shape[batch] == count else value


def _with_room(part: Tensor, length: int) -> Tensor:
    """Return a tensor for ``length`` tokens that begins with those of ``part [rows, heads, seq, head_dim]``."""
    room = part.new_empty(part.shape[0], part.shape[1], length, part.shape[3])
    room[:, :, : part.shape[2]] = part
    return room
