"""Random tiny causal LMs of many architectures, from configs: hidden size 32, 3 blocks, 101 tokens, float32, CPU."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

import torch
from packaging.version import Version

LAYERS, HIDDEN, VOCAB = 3, 32, 101

_ATTENTION = {"num_attention_heads": 4, "num_key_value_heads": 2}
_COMMON = {"hidden_size": HIDDEN, "num_hidden_layers": LAYERS, "intermediate_size": 48, **_ATTENTION}
_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
_LOCAL_EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
_GEMMA = {"head_dim": 8, "sliding_window": 4, "query_pre_attn_scalar": 8}
_GPT2 = {"n_embd": HIDDEN, "n_layer": LAYERS, "n_head": 4, "n_positions": 64}
_OPT = {
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "ffn_dim": 48,
    "num_attention_heads": 4,
    "word_embed_proj_dim": 32,
}

# name -> (transformers' model type, config). A name is the model type, with a variant after a dash.
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", _COMMON),
    "mistral": ("mistral", {**_COMMON, "sliding_window": 4}),
    "qwen2": ("qwen2", _COMMON),
    "qwen3": ("qwen3", {**_COMMON, "head_dim": 8}),
    "qwen3_moe": ("qwen3_moe", {**_COMMON, **_EXPERTS, "head_dim": 8, "mlp_only_layers": [1]}),
    "gemma2": ("gemma2", {**_COMMON, **_GEMMA}),
    "gemma3_text": ("gemma3_text", {**_COMMON, **_GEMMA}),
    "phi3": ("phi3", _COMMON),
    "olmo2": ("olmo2", _COMMON),
    "gpt2": ("gpt2", _GPT2),
    "opt": ("opt", _OPT),
    "opt-post_norm": ("opt", {**_OPT, "do_layer_norm_before": False}),
    "opt-projected": ("opt", {**_OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 16}),
    "gpt_neox": ("gpt_neox", _COMMON),
    "falcon": ("falcon", _COMMON),
    "granite": ("granite", {**_COMMON, "embedding_multiplier": 12.0, "residual_multiplier": 0.22}),
    # beyond the usual suspects
    "bloom": ("bloom", {"hidden_size": HIDDEN, "n_layer": LAYERS, "n_head": 4}),
    "codegen": ("codegen", {**_GPT2, "rotary_dim": 4, "n_ctx": 64}),
    "cohere": ("cohere", _COMMON),
    "cohere2": ("cohere2", {**_COMMON, "sliding_window": 4}),
    "deepseek_v3": (
        "deepseek_v3",
        {
            **_COMMON,
            "num_key_value_heads": 4,
            "moe_intermediate_size": 16,
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "kv_lora_rank": 16,
            "q_lora_rank": 16,
            "qk_rope_head_dim": 4,
            "qk_nope_head_dim": 8,
            "v_head_dim": 8,
            "first_k_dense_replace": 1,
        },
    ),
    "glm4": ("glm4", {**_COMMON, "head_dim": 8}),
    "gpt_bigcode": ("gpt_bigcode", _GPT2),
    "gpt_neo": (
        "gpt_neo",
        {"hidden_size": HIDDEN, "num_layers": LAYERS, "num_heads": 4, "attention_types": [[["global"], LAYERS]]},
    ),
    "gpt_oss": ("gpt_oss", {**_COMMON, **_LOCAL_EXPERTS, "head_dim": 8, "sliding_window": 4}),
    "gptj": ("gptj", {**_GPT2, "rotary_dim": 4}),
    "granitemoe": ("granitemoe", {**_COMMON, **_LOCAL_EXPERTS}),
    "jamba": (
        "jamba",
        {**_COMMON, "num_experts": 2, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    "lfm2": ("lfm2", {**_COMMON, "layer_types": ["conv", "full_attention", "conv"]}),
    "mixtral": ("mixtral", {**_COMMON, **_LOCAL_EXPERTS}),
    "mpt": ("mpt", {"d_model": HIDDEN, "n_layers": LAYERS, "n_heads": 4, "max_seq_len": 64}),
    "nemotron": ("nemotron", _COMMON),
    "olmoe": ("olmoe", {**_COMMON, "num_experts": 4, "num_experts_per_tok": 2}),
    "openai-gpt": ("openai-gpt", _GPT2),
    "phi": ("phi", _COMMON),
    "qwen3_next": (
        "qwen3_next",
        {
            **_COMMON,
            **_EXPERTS,
            "head_dim": 8,
            "layer_types": ["linear_attention", "linear_attention", "full_attention"],
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
            "shared_expert_intermediate_size": 16,
        },
    ),
    "smollm3": ("smollm3", _COMMON),
    "stablelm": ("stablelm", _COMMON),
    "starcoder2": ("starcoder2", _COMMON),
}
ARCHITECTURES = tuple(_CONFIGS)
_SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}


def tiny_model(name: str, seed: int = 0, **overrides: Any) -> Any:
    """Build the tiny model of architecture ``name`` in evaluation mode; ``overrides`` change its config."""
    from transformers import AutoConfig, AutoModelForCausalLM

    model_type, config = _CONFIGS[name]
    torch.manual_seed(seed)
    settings = {"vocab_size": VOCAB, **_SPECIAL, **config, **overrides}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **settings)).eval()


def older_than(release: str) -> bool:
    """Tell whether the transformers that is installed is older than a release, for what older ones cannot do themselves."""
    return Version(version("transformers")) < Version(release)


def classifier(tokenizer, labels=1, pad=True, seed=0, **config):
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(seed)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 48, "num_attention_heads": 4}
    settings = {"pad_token_id": tokenizer.pad_token_id if pad else None, "max_position_embeddings": 128, **shape, **config}
    return LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), num_labels=labels, **settings))
