"""Make a model inside vLLM show the hidden states of the layers that a reward model reads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from swift_rm.integrations.vllm.versions.version import vllm_name
from swift_rm.reward.config import SwiftConfig, resolve_layer

BY_TRANSFORMERS = "vllm.model_executor.models.transformers"  # models that vLLM has not written itself
ADVICE = "train one that reads logits (swift-rm train --source logits) or the last layer alone (--layers -1)"


class ShownLayers:
    """Ask a vLLM model for the layers of ``config``, as transformers numbers them, and tell them apart in what it returns.

    Layers before the last come by the mechanism of EAGLE-3, as further outputs of the same compiled graph. The last one is
    what vLLM makes logits of, so that it needs no support. Raises ValueError for layers that the model does not have, and
    for a model that cannot show others than the last.
    """

    def __init__(self, config: SwiftConfig, base_layers: int) -> None:
        self.layers = tuple(resolve_layer(layer, base_layers) for layer in config.layers)
        self.inner = tuple(sorted({layer for layer in self.layers if layer < base_layers}))

    def check(self, model: Any) -> None:
        """Raise ValueError for a model of vLLM, or a class of models, that cannot show the layers."""
        from vllm.model_executor.models.interfaces import supports_eagle3

        kind = model if isinstance(model, type) else type(model)
        hidden = f"vLLM's {kind.__name__} does not show its layers {self.inner}, which the reward model reads"
        if self.inner and not supports_eagle3(model):
            raise ValueError(f"{hidden} (it lacks EAGLE-3 support): {ADVICE}")
        if 0 in self.inner and kind.__module__.startswith(BY_TRANSFORMERS):
            raise ValueError(
                f"{hidden} (layer 0, the embeddings, is not among those that vLLM takes from transformers): {ADVICE}"
            )

    def check_eager(self, vllm_config: Any, on_cpu: bool) -> None:
        """Raise ValueError where the embeddings are shown by a tensor that the next layers overwrite: on a GPU, not compiled.

        vLLM's fused norm adds in place there, and the states of layer 0 are the very tensor that it adds to.
        """
        if 0 in self.inner and not on_cpu and not vllm_config.compilation_config.mode:
            raise ValueError(
                "the reward model reads layer 0, the embeddings, which vLLM on a GPU overwrites where it does not compile: "
                "leave enforce_eager out"
            )

    def ask(self, runner: Any, model: Any) -> None:
        """Make ``model`` return the layers from now on: before it is compiled or captured."""
        self.check(model)
        if self.inner:
            runner.use_aux_hidden_state_outputs = True
            model.set_aux_hidden_state_layers(self.inner)

    def pick(self, hidden: Tensor, inner: Sequence[Tensor] | None) -> list[Tensor]:
        """Return the states ``[rows, d]`` in the order of the reward model's layers; raise RuntimeError if some are missing."""
        shown = list(inner or [])
        if len(shown) != len(self.inner):
            raise RuntimeError(f"{vllm_name()} returned {len(shown)} layers' states instead of those of {self.inner}")
        by_layer = dict(zip(self.inner, shown, strict=True))
        return [by_layer.get(layer, hidden) for layer in self.layers]
