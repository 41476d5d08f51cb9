"""Run code around each call of a model's `generate`: it sees the arguments before, and the result after."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import update_wrapper, wraps
from inspect import signature
from typing import Any

Generate = Callable[..., Any]
Around = Callable[[Generate, Sequence[Any], dict[str, Any]], Any]


class GenerateListener:
    """Let ``around(generate, args, settings)`` make each call of ``model.generate`` until :meth:`stop`.

    Several may listen at once, and stop in any order; the one that came last is the outermost, or, if ``innermost``, the
    next to the model's own. ``settings`` are the call's arguments by name, ``args`` those that have none. A model that cannot
    generate is left alone; a copy that is made of the model meanwhile is listened to by nobody.
    """

    def __init__(self, model: Any, around: Around, *, innermost: bool = False) -> None:
        self._model, self._around = model, around
        self._listened: _GenerateWithListeners | None = None
        if not callable(getattr(model, "generate", None)):
            return
        present = vars(model).get("generate")
        if not isinstance(present, _GenerateWithListeners):
            present = _GenerateWithListeners(model, present)
            model.generate = present
        present.listeners.insert(0 if innermost else len(present.listeners), around)
        self._listened = present

    def stop(self) -> None:
        """Listen no more; the last one to stop leaves the model as it was found."""
        listened, self._listened = self._listened, None
        if listened is None:
            return
        listened.listeners.remove(self._around)
        if not listened.listeners and vars(self._model).get("generate") is listened:
            if listened.own is None:
                del self._model.generate
            else:
                self._model.generate = listened.own


class _GenerateWithListeners:
    """What stands in the place of a model's `generate`; ``own`` is the one that the model itself, not its class, had there."""

    def __init__(self, model: Any, own: Generate | None) -> None:
        self.model, self.own, self.listeners = model, own, list[Around]()
        update_wrapper(self, model.generate)
        self._original: Generate = model.generate

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Generate, one listener within another."""
        run = self._original
        for around in self.listeners:
            run = _around(around, run)
        return run(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Generate:
        """Give a copy of the model the `generate` that it would have if nobody listened."""
        if self.own is not None:
            return copy.deepcopy(self.own, memo)
        bound: Generate = type(self.model).generate.__get__(memo[id(self.model)])
        return bound


def named(generate: Generate, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Sequence[Any], dict[str, Any]]:
    """Return the positional arguments of a call that have no name, and all others by theirs."""
    names = [one.name for one in signature(generate).parameters.values() if one.kind is one.POSITIONAL_OR_KEYWORD]
    return args[len(names) :], {**dict(zip(names, args, strict=False)), **kwargs}


def _around(around: Around, inner: Generate) -> Generate:
    @wraps(inner)
    def generate(*args: Any, **kwargs: Any) -> Any:
        return around(inner, *named(inner, args, kwargs))

    return generate
