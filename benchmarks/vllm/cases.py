"""The language models and reward models of ``rewards.py``, and what each is asked."""

from __future__ import annotations

import random
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.models.load import TINY, load_language_model, resolve
from swift_rm.tasks.homework import HomeworkTask
from swift_rm.tokens.encoding import encode_prompt

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
LAYERS = (-2, -1)  # what `train` reads unless told otherwise
ENGINE = {"dtype": "float32", "max_model_len": 512, "max_num_seqs": 64, "max_num_batched_tokens": 8192}


@dataclass(frozen=True)
class Case:
    """A model's folder, what it is asked, how vLLM is opened; ``fixed`` responses are all as long as they may be."""

    name: str
    model: str
    prompts: list[list[int]]
    n: int
    new_tokens: int
    fixed: bool
    width: int
    parameters: int
    engine: dict[str, Any]
    folder: Path


def tiny_llama(folder: Path) -> Case:
    """Return the tiny reasoner with homework questions."""
    model, tokenizer = load_language_model(TINY, progress=False)
    prompts = [encode_prompt(tokenizer, question.prompt) for question in HomeworkTask("test").questions(32, seed=9)]
    engine = {**ENGINE, "kv_cache_memory_bytes": 256 << 20}
    return Case(TINY, resolve(TINY), prompts, 8, 96, False, model.config.hidden_size, model.num_parameters(), engine, folder)


def random_llama(folder: Path, small: bool) -> Case:
    """Return a Llama of 110 M random parameters (or, if ``small``, far fewer), with prompts of random tokens."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 2048}
    if small:
        sizes = {"hidden_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
    torch.manual_seed(0)
    config = LlamaConfig(vocab_size=32_000, max_position_embeddings=512, tie_word_embeddings=True, **sizes)
    model = LlamaForCausalLM(config).eval()
    path = folder / "random-llama"
    model.save_pretrained(path)
    for name in TOKENIZER:  # vLLM wants one
        shutil.copy(Path(resolve(TINY)) / name, path)
    rng = random.Random(0)
    prompts = [[rng.randrange(3, 32_000) for _ in range(32)] for _ in range(4)]
    engine = {**ENGINE, "kv_cache_memory_bytes": 512 << 20, "skip_tokenizer_init": True}
    name = f"random Llama of {model.num_parameters() / 1e6:.0f} M"
    return Case(name, str(path), prompts, 4, 32, True, config.hidden_size, model.num_parameters(), engine, folder)


def reward_model(case: Case, position: str) -> str:
    """Make a random reward model of the last two layers' states at this position; return its folder."""
    torch.manual_seed(0)
    rm = SwiftRewardModel(SwiftConfig(case.width, LAYERS, position=position))
    torch.nn.init.normal_(rm.head.weight, std=0.1)
    folder = case.folder / f"{position}-{case.width}"
    rm.save_pretrained(folder)
    return str(folder)
