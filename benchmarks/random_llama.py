"""A random Llama of about 100 M parameters, for benchmarks in which only its size matters."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from swift_rm import SwiftConfig, SwiftRewardModel

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def random_llama(quick: bool) -> tuple[Any, Any, SwiftRewardModel]:
    """Build a random Llama that never ends a response, a tokenizer with a word for each of its ids, and a random head."""
    from tokenizers import Tokenizer, models

    size = (128, 4) if quick else (768, 12)
    config = LlamaConfig(
        vocab_size=32000, hidden_size=size[0], intermediate_size=8 * size[0] // 3, num_hidden_layers=size[1],
        num_attention_heads=size[0] // 64, num_key_value_heads=size[0] // 64, tie_word_embeddings=True,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval().to(DEVICE)
    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w0"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", padding_side="left")
    rm = SwiftRewardModel(SwiftConfig(size[0], tuple(range(size[1] + 1)))).to(DEVICE)
    torch.nn.init.normal_(rm.head.weight, std=0.02)
    return model, tokenizer, rm
