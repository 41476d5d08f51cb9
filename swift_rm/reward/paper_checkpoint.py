"""Read the checkpoints of the paper's own code."""

from __future__ import annotations

import pickle  # for the name of the error that torch's safe loader raises; nothing is unpickled
import zipfile
from pathlib import Path

import torch
from torch import Tensor


def read_published(path: str | Path) -> tuple[Tensor, Tensor]:
    """Return weight ``[2, D]`` (``[1, D]`` without gate) and bias from a published ``.pt``; else raise ValueError."""
    if not zipfile.is_zipfile(path):  # what torch.save has written since 1.6; a missing file is reported as such below
        Path(path).stat()
        raise ValueError(f"{path} is not a checkpoint of plain tensors: it is not a file that torch.save wrote")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is not a checkpoint of plain tensors: {str(error).splitlines()[0]}") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} is not a bare state_dict of tensors")
    state = {name.removeprefix("module."): value for name, value in state.items()}
    for stem, rows in (("fused_layer", 2), ("reward_layer", 1)):
        if set(state) == {f"{stem}.weight", f"{stem}.bias"}:
            weight, bias = state[f"{stem}.weight"].float(), state[f"{stem}.bias"].float()
            if weight.ndim != 2 or weight.shape[0] != rows or bias.shape != (rows,):
                raise ValueError(
                    f"{path}: {stem} must be weight [{rows}, D] and bias [{rows}], "
                    f"got {tuple(weight.shape)} and {tuple(bias.shape)}"
                )
            return weight, bias
    raise ValueError(f"{path} holds {sorted(state)}; expected fused_layer.weight and .bias, or reward_layer.weight and .bias")
