"""Reading output logits while a transformers model runs, by the hooks, and with the refusals, of ``HiddenStateTap``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from swift_rm.capture.tap import HiddenStateTap, LayerStates
from swift_rm.models.model_shape import model_with_logits
from swift_rm.reward.config import StateSource


class LogitsTap(HiddenStateTap):
    """Record the output logits ``[batch, tokens, V]`` of every forward call, under the one layer that a configuration names.

    They are read where the model returns them: before any logits processor, so that no penalty, temperature or
    constraint of `generate` changes them, and in the model's own dtype. There are as many tokens as the call asks for: of
    a prompt `generate` wants those of the last one only. Raises ValueError for a model that has no output logits.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[int] = (-1,),
        *,
        keep: bool = True,
        on_forward: Callable[[LayerStates], None] | None = None,
    ) -> None:
        self._model = model_with_logits(model)
        super().__init__(model, layers, keep=keep, on_forward=on_forward)
        if len(self.layers) > 1 or self._wanted[-1] != len(self._decoder.blocks):
            raise ValueError(f"output logits are made after the last layer, -1, not after the layers {self.layers}")

    def clear(self) -> None:
        """Forget everything recorded, so that the next call may start anywhere."""
        super().clear()
        self._awaited = False  # whether the blocks have run in a call whose logits are still to come

    def _attach(self) -> None:
        super()._attach()
        self._handles.append(self._model.register_forward_hook(self._output))

    def _begin(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._awaited:
            self._fail("the model's blocks ran and no output logits came of it: call the whole model")
        super()._begin(module, args, kwargs)

    def _take(self, step: LayerStates) -> None:
        self._awaited = True

    def _output(self, module: nn.Module, args: Any, output: Any) -> None:
        if not self._awaited:
            return
        self._awaited = False
        logits = output[0] if isinstance(output, tuple) else getattr(output, "logits", None)
        if not isinstance(logits, Tensor) or logits.dim() != 3:
            self._fail(f"{type(module).__name__} returned no output logits [batch, seq, V]")
        super()._take({self.layers[0]: logits})


def open_tap(
    model: nn.Module,
    source: StateSource,
    layers: Sequence[int],
    *,
    keep: bool = True,
    on_forward: Callable[[LayerStates], None] | None = None,
) -> HiddenStateTap:
    """Return the tap that shows what features of a ``source`` are made of: hidden states of ``layers``, or output logits."""
    kind = HiddenStateTap if source == "hidden" else LogitsTap
    return kind(model, layers, keep=keep, on_forward=on_forward)
