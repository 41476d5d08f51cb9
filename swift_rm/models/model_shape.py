"""Where a model keeps its decoder blocks, how many and how wide: read off its structure, never off its name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from swift_rm.models.transformers_internals import other_past


@dataclass(frozen=True)
class ModelShape:
    """The number of decoder blocks L (``hidden_states`` has L + 1 entries) and the width d of a hidden state."""

    layers: int
    hidden_size: int


@dataclass(frozen=True)
class Decoder:
    """A model's decoder: ``path`` leads from the model to the one inside it that runs ``blocks``, both included."""

    path: tuple[nn.Module, ...]
    blocks: nn.ModuleList

    @property
    def owner(self) -> nn.Module:
        """The module whose forward call takes the cache, runs the blocks and returns the last hidden state."""
        return self.path[-1]

    def index(self, layer: int) -> int:
        """Return the index 0..L of ``layer``, which may count from the end; raise ValueError if there is none such."""
        count = len(self.blocks)
        if not -count - 1 <= layer <= count:
            raise ValueError(
                f"{type(self.path[0]).__name__} has no layer {layer}: it has layers 0 (embedding output) to {count} "
                f"(after the final norm), which are also -{count + 1} to -1"
            )
        return layer % (count + 1)


def model_shape(model: nn.Module) -> ModelShape:
    """Return the text decoder's number of blocks and hidden size; raise ValueError where the config does not say.

    The hidden size is that of the blocks: a model that projects its output (OPT-350M) has another width at layer L.
    """
    config = _text_config(model)

    def size(name: str) -> int:
        value = getattr(config, name, None)
        if not isinstance(value, int):
            raise ValueError(f"the config of {type(model).__name__} has no usable {name}: it is {value!r}")
        return value

    return ModelShape(layers=size("num_hidden_layers"), hidden_size=size("hidden_size"))


def find_decoder(model: nn.Module) -> Decoder:
    """Find the one ``nn.ModuleList`` with as many blocks as the config says; raise ValueError if there is not just one.

    Lists inside a block (experts) do not count. Where several lists remain (a vision tower of the same depth), the one
    below ``model.get_decoder()`` is taken. Models whose hidden states are numbered otherwise are refused by ValueError.
    """
    name = type(model).__name__
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"{name} is an encoder-decoder model: hidden states are read from decoder-only models")
    depth = model_shape(model).layers
    lists = [path for path, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == depth]
    found = [path for path in lists if not any(path.startswith(f"{outer}.") for outer in lists)]
    get_decoder = getattr(model, "get_decoder", None)
    if len(found) > 1 and callable(get_decoder):
        below = set(get_decoder().modules())
        found = [path for path in found if model.get_submodule(path) in below] or found
    if len(found) != 1:
        which = f"several ({', '.join(found)}), and get_decoder() settles nothing" if found else "none"
        raise ValueError(f"{name} should have one nn.ModuleList of {depth} blocks (num_hidden_layers) but has {which}")
    parts = found[0].split(".")
    path = tuple(model.get_submodule(".".join(parts[:end])) for end in range(len(parts)))
    # Where the blocks sit in a plain module (BERT's encoder), the model around it may yet apply the final norm.
    models = [end for end, module in enumerate(path, start=1) if hasattr(module, "base_model_prefix")]
    path = path[: models[-1]] if models else path
    if other := other_past(path[-1]):
        raise ValueError(
            f"{name} keeps its past in {other!r}, not in a cache of keys and values: such models number their hidden states "
            "differently and are not supported"
        )
    blocks = model.get_submodule(found[0])
    assert isinstance(blocks, nn.ModuleList)
    return Decoder(path, blocks)


def _text_config(model: nn.Module) -> Any:
    # Wrappers (DataParallel, adapters) may have no config of their own: the outermost transformers config counts.
    for module in model.modules():
        config: Any = getattr(module, "config", None)
        if hasattr(config, "get_text_config"):
            return config.get_text_config(decoder=True)
    raise ValueError(f"{type(model).__name__} holds no transformers model: no module in it has a config")


def output_width(model: nn.Module) -> int:
    """Return V, the number of a model's output logits per token; raise ValueError if it has none."""
    head: Any = model_with_logits(model).get_output_embeddings()  # type: ignore[operator]
    return int(getattr(head, "out_features", None) or head.weight.shape[0])


def model_with_logits(model: nn.Module) -> nn.Module:
    """Return the module that makes the logits: within an adapter's or a wrapper's it is not the outermost one."""
    for module in reversed(find_decoder(model).path):
        head = getattr(module, "get_output_embeddings", None)
        if callable(head) and head() is not None:
            return module
    raise ValueError(
        f"{type(model).__name__} has no output logits: load the model with AutoModelForCausalLM, which has its "
        "language-modelling head"
    )
