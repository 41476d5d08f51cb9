"""What one forward call of a decoder was: tokens in its cache, new tokens, rows, and the ids that it was given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


@dataclass(frozen=True)
class ForwardCall:
    """One forward call: tokens in its cache before it, new tokens a row, rows, and ``ids [rows, new]`` (None: not seen)."""

    past: int
    new: int
    rows: int
    ids: Tensor | None


class CallReader(Protocol):
    """What tells of the latest forward call, as a tap does."""

    @property
    def call(self) -> ForwardCall | None:
        """Return the latest forward call, None before there is one."""


class InputIds:
    """Note the token ids of a decoder's forward calls.

    ``path`` are the modules from the model that is called down to the decoder that owns the blocks. Where the decoder is given
    embeddings, the modules around it get hooks, whose handles join ``handles``, and the ids of the innermost one count.
    """

    def __init__(self, path: Sequence[nn.Module], handles: list[RemovableHandle]) -> None:
        self._path, self._handles = path, handles
        self._looks_outside = False  # whether the modules around the decoder have hooks
        self.forget()

    def forget(self) -> None:
        """Forget what was noted."""
        self._ids: dict[int, Tensor | None] = {}  # by the place of the module in the path

    def stop_looking(self) -> None:
        """Take note that the hooks of ``handles`` were removed."""
        self._looks_outside = False

    def look(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Note the ids of the decoder's call; where it has none, look for them further out from now on."""
        owner = len(self._path) - 1
        self._ids[owner] = _ids_among(args, kwargs)
        if self._ids[owner] is None and not self._looks_outside:
            self._looks_outside = True
            for place, module in enumerate(self._path[:-1]):
                self._handles.append(module.register_forward_pre_hook(partial(self._note, place), with_kwargs=True))

    def _note(self, place: int, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._ids[place] = _ids_among(args, kwargs)

    def take(self, rows: int, new: int) -> Tensor | None:
        """Return the ids ``[rows, new]`` of the module nearest to the blocks that was given any, and forget all."""
        noted = (self._ids.get(place) for place in reversed(range(len(self._path))))
        ids = next((ids for ids in noted if ids is not None and ids.shape == (rows, new)), None)
        self.forget()
        return ids


def _ids_among(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor | None:
    """Return the token ids ``[rows, new]`` that a module is called with, or None."""
    told = kwargs.get("input_ids", args[0] if args else None)
    return told if isinstance(told, Tensor) and told.dim() == 2 and not told.is_floating_point() else None
