"""What every kernel asks of its arguments, before anything is launched."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)
LIMIT = 2**31 - 1  # tokens and columns are counted in 32 bits; their products, the addresses, in 64


def as_layers(states: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """Return the layers of stacked states ``[T, D]``, which are one layer, or of a list of them."""
    return [states] if isinstance(states, Tensor) else list(states)


def check_states(layers: Sequence[Tensor], weight: Tensor, bias: Tensor) -> bool:
    """Raise ValueError unless layers and head fit together, naming the argument and both values; tell if all layers are alike.

    Alike are layers of one shape and one stride, as a decoder's are: one condition, since a decoded token has little time.
    """
    if not layers:
        raise ValueError("states is empty: give at least one layer")
    shape, stride, dtype, device = layers[0].shape, layers[0].stride(), layers[0].dtype, layers[0].device
    alike = all([one.shape == shape and one.stride() == stride and one.dtype == dtype and one.device == device for one in layers])
    if not (
        alike
        and len(shape) > 1
        and stride[-1] == 1
        and dtype in DTYPES
        and (weight.shape == (2, shape[-1] * len(layers)) or weight.shape == (1, shape[-1] * len(layers)))
        and bias.shape == weight.shape[:1]
        and weight.dtype == bias.dtype
        and weight.dtype in DTYPES
        and weight.device == bias.device == device
    ):
        _check_each(layers, weight, bias)
    return alike


def _check_each(layers: Sequence[Tensor], weight: Tensor, bias: Tensor) -> None:
    first, width = layers[0], 0
    for i, layer in enumerate(layers):
        shape = layer.shape
        if layer.dim() < 2 or layer.dtype not in DTYPES:
            raise ValueError(f"states must be floating-point tensors [T, d], got shape {tuple(shape)} of {layer.dtype}")
        for what in ("dtype", "device"):
            one, other = getattr(first, what), getattr(layer, what)
            if one != other:
                raise ValueError(f"states must share one {what}: states[0] has {one}, states[{i}] {other}")
        if shape[:-1] != first.shape[:-1]:
            raise ValueError(f"states must have the same tokens: states[0] is {tuple(first.shape)}, states[{i}] {tuple(shape)}")
        if shape[-1] > 1 and layer.stride(-1) != 1:
            raise ValueError(f"states must have unit inner stride, states[{i}] has strides {layer.stride()}")
        width += shape[-1]
    if weight.dim() != 2 or weight.shape[0] not in (1, 2) or bias.shape != weight.shape[:1]:
        found = f"got {list(weight.shape)} and {list(bias.shape)}"
        raise ValueError(f"weight and bias must be [2, D] and [2], or [1, D] and [1] without a gate, {found}")
    if width != weight.shape[1]:
        raise ValueError(f"states are {width} wide in all, but weight is {weight.shape[1]} wide")
    for name, tensor in (("weight", weight), ("bias", bias)):
        if tensor.device != first.device:
            raise ValueError(f"{name} must be on the device of the states: states on {first.device}, {name} on {tensor.device}")
        if tensor.dtype != weight.dtype or tensor.dtype not in DTYPES:
            raise ValueError(f"weight and bias must share one floating dtype: weight {weight.dtype}, bias {bias.dtype}")


def check_sizes(layers: Sequence[Tensor], weight: Tensor) -> None:
    """Raise ValueError if there are more tokens or columns than can be counted."""
    for name, size in (("tokens", layers[0].shape[0]), ("columns", weight.shape[1])):
        if size > LIMIT:
            raise ValueError(f"states have {size} {name}, but at most {LIMIT} can be counted")


def check_offsets(offsets: Tensor, tokens: int) -> None:
    """Raise ValueError unless offsets ascend from 0 to the number of tokens (on a GPU this waits for them)."""
    if offsets.ndim != 1 or offsets.numel() == 0 or offsets.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"offsets must be a 1-D integer tensor [B + 1], got shape {tuple(offsets.shape)} of {offsets.dtype}")
    values = offsets.cpu()
    if int(values[0]) != 0 or int(values[-1]) != tokens or bool((values.diff() < 0).any()):
        raise ValueError(f"offsets must ascend from 0 to {tokens} (the tokens given), got {values.tolist()[:8]}")


def check_mask(mask: Tensor | None, tokens: int, device: torch.device) -> None:
    """Raise ValueError unless the mask is boolean, one for each token, and beside the states."""
    if mask is not None and mask.device != device:
        raise ValueError(f"mask must be on the device of the states, {device}, got {mask.device}")
    if mask is not None and (mask.shape != (tokens,) or mask.dtype != torch.bool):
        raise ValueError(f"mask must be {tokens} booleans, one a token, got shape {tuple(mask.shape)} of {mask.dtype}")


def check_step(layers: Sequence[Tensor], weight: Tensor, running: Tensor, active: Tensor | None, scores: Tensor | None) -> None:
    """Raise ValueError unless what a step changes and its active rows fit the rows of the layers."""
    rows, dtype = layers[0].shape[0], weight.dtype
    if layers[0].dim() > 2 and layers[0].shape[1:-1].numel() != 1:
        raise ValueError(f"states must hold one token a row, [rows, d] or [rows, 1, d], got {tuple(layers[0].shape)}")
    if dtype != torch.float32 and dtype != torch.float64:
        raise ValueError(f"weight must be float32 (or float64), got {dtype}")
    _check_rows("running", running, (rows, 3), dtype, layers[0].device)
    if active is not None:
        _check_rows("active", active, (rows,), torch.bool, layers[0].device)
    if scores is not None:
        _check_rows("scores", scores, (rows, weight.shape[0]), dtype, layers[0].device)


def _check_rows(name: str, tensor: Tensor, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> None:
    if tensor.shape != shape or tensor.dtype != dtype or not tensor.is_contiguous():
        found = f"got {list(tensor.shape)} of {tensor.dtype}, strides {tensor.stride()}"
        raise ValueError(f"{name} must be a contiguous {dtype} tensor {list(shape)}, {found}")
    if tensor.device != device:
        raise ValueError(f"{name} must be on the device of the states, {device}, got {tensor.device}")
