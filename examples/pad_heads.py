"""Give a Llama wider attention heads without changing what it computes, for engines that serve certain head sizes only.

Rotary embeddings turn dimension i of a head of size d together with dimension i + d / 2, at the frequency theta^(-2 i / d).
In a head of size s that pair stands at i and i + s / 2, and turns as before if the base is theta^(s / d). All other
dimensions are zero: those of queries and keys add nothing to a score, and what would read those of values is zero too.
Attention divides a score by sqrt(s) instead of sqrt(d), so queries grow by sqrt(s / d), rounded to the weights' dtype.
"""

from __future__ import annotations

import argparse
import copy
import math
import shutil
import tempfile
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from swift_rm.files.atomic_write import write_whole

WEIGHTS = ("*.safetensors", "*.index.json", "*.bin", "*.pt", "*.pth", "*.gguf", "*.h5", "*.msgpack")


def main() -> None:
    """Pad the model of a folder, in place or to another folder, which gets its tokenizer and other files as well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="folder of a Llama in safetensors")
    parser.add_argument("--head-size", type=int, required=True, help="the new size of every head")
    parser.add_argument("--out", type=Path, help="a new folder to write to (default: the folder itself, each file at once)")
    args = parser.parse_args()
    try:
        print(pad_folder(args.folder, args.head_size, args.out))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))


def pad_folder(folder: Path, size: int, out: Path | None = None) -> str:
    """Pad the heads of a folder's model and say what was done; nothing is written where they have this size already.

    Raises ValueError for what :func:`pad_heads` refuses, weights in several files (in place only), or an ``out`` that exists.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder")
    if out is not None and out.exists():
        raise ValueError(f"{out} exists already; choose another --out")
    config = AutoConfig.from_pretrained(folder)
    check(config, size)  # before a large model is read
    old = config.head_dim
    if old == size:
        return f"{folder}: heads have size {size} already, nothing was written"
    if out is None and not (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} has no model.safetensors, which could be replaced in place; choose an --out")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", use_safetensors=True)
    with tempfile.TemporaryDirectory() as made:
        pad_heads(model, size).save_pretrained(made, max_shard_size="10TB")
        if out is not None:
            shutil.copytree(folder, out, ignore=shutil.ignore_patterns(*WEIGHTS))
        for name in ("model.safetensors", "config.json"):
            write_whole((out or folder) / name, (Path(made) / name).read_bytes())
    return f"{out or folder}: heads of size {old} are now of size {size}"


@torch.no_grad()
def pad_heads(model: LlamaForCausalLM, size: int) -> LlamaForCausalLM:
    """Return a model of the same function whose heads have ``size`` dimensions; the same object if they have them already.

    Raises ValueError for a model that is not a Llama, is quantised or scales its rotary embeddings, or a size that is odd or
    smaller than the heads.
    """
    if not isinstance(model, LlamaForCausalLM):
        raise ValueError(f"only the heads of a LlamaForCausalLM can be padded, but this is a {type(model).__name__}")
    check(model.config, size)
    old = model.config.head_dim
    if old == size:
        return model
    config = copy.deepcopy(model.config)
    theta = config.rope_parameters["rope_theta"] ** (size / old)
    config.head_dim, config.rope_parameters["rope_theta"] = size, float(f"{theta:.12g}")  # 10000, not 9999.999999999995
    state = model.state_dict()
    for name, tensor in state.items():
        projection, kind = name.split(".")[-2:]
        if projection in ("q_proj", "k_proj", "v_proj"):
            state[name] = spread(tensor, old, size, math.sqrt(size / old) if projection == "q_proj" else 1.0)
        elif projection == "o_proj" and kind == "weight":
            state[name] = spread(tensor.T, old, size).T.contiguous()
    padded = AutoModelForCausalLM.from_config(config, dtype=model.dtype).to(model.device)
    padded.load_state_dict(state)
    padded.generation_config = copy.deepcopy(model.generation_config)
    return padded.train(model.training)


def check(config: LlamaConfig, size: int) -> None:
    """Raise ValueError unless the heads of a model of this configuration can be padded to ``size``."""
    kind = (config.architectures or [config.model_type])[0]
    if kind not in ("llama", "LlamaForCausalLM"):
        raise ValueError(f"only the heads of a LlamaForCausalLM can be padded, but this is a {kind}")
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("the model's weights are quantised; pad its heads before that")
    rope = config.rope_parameters["rope_type"]
    if rope != "default":
        raise ValueError(f"the rotary embeddings are of type {rope}; only those of type default stay the same in wider heads")
    if size != config.head_dim and (size < config.head_dim or size % 2):
        raise ValueError(f"heads can be padded to a larger even size, not those of {config.head_dim} to {size}")


def spread(rows: Tensor, old: int, new: int, scale: float = 1.0) -> Tensor:
    """Return ``rows [heads * old, ...]`` times ``scale`` as ``[heads * new, ...]``, each half of a head first in the new half."""
    halves = (rows.double() * scale).to(rows.dtype).unflatten(0, (-1, 2, old // 2))
    wide = halves.new_zeros(len(halves), 2, new // 2, *rows.shape[1:])
    wide[:, :, : old // 2] = halves
    return wide.flatten(0, 2)


if __name__ == "__main__":
    main()
