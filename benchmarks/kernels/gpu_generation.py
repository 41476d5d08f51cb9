"""What scoring adds to generation: whole `generate` calls of a random model of 8 B parameters, with and without rewards."""

from __future__ import annotations

from typing import Any

import torch
from swift_rm_kernels import gated_pool_reference
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.kernels.gpu_bench import Bench
from benchmarks.recorder import paired_ratio
from swift_rm import StreamingReward, SwiftConfig, SwiftRewardModel

ROWS = 16


def generation(bench: Bench) -> dict[str, Any]:
    """Time pairs of `generate` calls of equal length in turn, and return the median of their ratios less one."""
    sizes, missing = bench.sizes, {"generation_overhead": None}
    layers, width, inner, vocabulary = sizes.model
    parameters = 2 * vocabulary * width + layers * width * (3 * inner + 3 * width)
    if not bench.allows("generation", 0 if bench.interpreted else 10, 2 * parameters + (4 << 30)):
        return missing
    model, rm = random_model(bench)
    ids = torch.randint(3, vocabulary, (ROWS, sizes.prompt_tokens), device=bench.device)
    settings = {
        "attention_mask": torch.ones_like(ids), "do_sample": False, "pad_token_id": 0,
        "min_new_tokens": sizes.new_tokens, "max_new_tokens": sizes.new_tokens,
    }  # fmt: skip
    check(model, rm, ids, settings)

    def plain() -> None:
        model.generate(ids, **settings)
        bench.synchronise()

    def scored() -> None:
        with StreamingReward(model, rm) as stream:
            model.generate(ids, **settings)
        stream.rewards.tolist()  # waits for the device

    timed = paired_ratio(scored, plain, sizes.generations)
    group = f"generate, {ROWS} rows, {sizes.new_tokens} tokens"
    bench.row(group, "with rewards", timed["seconds"])
    bench.row(group, "without", timed["seconds_other"])
    return {
        "generation_overhead": round(timed["ratio"] - 1, 4),
        "generation_overhead_range": [round(timed["ratio_low"] - 1, 4), round(timed["ratio_high"] - 1, 4)],
        "generation_seconds": round(timed["seconds_other"], 3),
        "generation_step_us": round(timed["seconds_other"] / sizes.new_tokens * 1e6, 1),
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def random_model(bench: Bench) -> tuple[Any, SwiftRewardModel]:
    """Make a random Llama in bfloat16 on the device itself, and a random head that reads every layer."""
    layers, width, inner, vocabulary = bench.sizes.model
    heads = max(4, width // 128)
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=width, intermediate_size=inner, num_hidden_layers=layers, num_attention_heads=heads,
        num_key_value_heads=heads // 4, bos_token_id=None, eos_token_id=None, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(3)
    with bench.device:
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    rm = SwiftRewardModel(SwiftConfig(width, tuple(range(layers + 1)))).to(bench.device)
    torch.nn.init.normal_(rm.head.weight, std=rm.head.weight.shape[1] ** -0.5)
    return model, rm


@torch.inference_mode()
def check(model: Any, rm: SwiftRewardModel, ids: torch.Tensor, settings: dict[str, Any]) -> None:
    """Refuse to time rewards that differ from the formula on the same call's hidden states."""
    with StreamingReward(model, rm) as stream:
        out = model.generate(ids, output_hidden_states=True, return_dict_in_generate=True, **settings)
    steps = [torch.cat([state[:, -1:] for state in step], dim=-1) for step in out.hidden_states]
    states = torch.cat(steps, dim=1).double()  # [rows, tokens, D]
    offsets = torch.arange(len(states) + 1) * states.shape[1]
    expected = gated_pool_reference(states.flatten(0, 1), rm.head.weight.double(), rm.head.bias.double(), offsets)
    error = float((stream.rewards.double() - expected).abs().max() / expected.abs().max())
    if not error <= 1e-3:
        raise SystemExit(f"StreamingReward errs by {error:.1e} of the largest reward: not timed")
