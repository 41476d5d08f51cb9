"""What score() costs over a plain forward pass of the same batches, and that its memory does not grow with the responses."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.recorder import arguments, finish, paired_ratio, peak_bytes
from swift_rm import SwiftConfig, SwiftRewardModel, score

BATCH = 16


def main() -> None:
    """Build a random Llama, check that score() equals the formula there, time it against plain passes, measure memory."""
    args = arguments(__doc__)
    torch.manual_seed(0)
    size = {"hidden_size": 256, "num_hidden_layers": 8} if args.quick else {"hidden_size": 384, "num_hidden_layers": 12}
    config = LlamaConfig(
        vocab_size=8000, intermediate_size=3 * size["hidden_size"], num_attention_heads=8, num_key_value_heads=8, **size
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = LlamaForCausalLM(config).eval().to(device)
    layers = config.num_hidden_layers
    rm = SwiftRewardModel(SwiftConfig(config.hidden_size, tuple(range(layers + 1)))).to(device)
    torch.nn.init.normal_(rm.head.weight, std=0.02)
    count, prompt, response = (48, 32, 64) if args.quick else (32, 32, 96)
    prompts = torch.randint(3, 8000, (512, prompt)).tolist()
    responses = [torch.randint(3, 8000, (response - i % 16,)).tolist() for i in range(512)]
    check(model, rm, prompts[0], responses[0])

    def scoring(count: int = count) -> None:
        score(model, None, rm, prompts[:count], responses[:count], batch_size=BATCH)

    rounds = 5
    full = paired_ratio(scoring, lambda: plain(model, prompts[:count], responses[:count], {}), rounds)
    bare = paired_ratio(scoring, lambda: plain(model, prompts[:count], responses[:count], {"logits_to_keep": 1}), rounds)
    result = {
        "score_vs_forward": round(full["ratio"], 4),
        "score_vs_forward_range": [round(full["ratio_low"], 4), round(full["ratio_high"], 4)],
        "score_vs_forward_without_logits": round(bare["ratio"], 4),
        "score_vs_forward_without_logits_range": [round(bare["ratio_low"], 4), round(bare["ratio_high"], 4)],
        "score_seconds": round(full["seconds"], 4),
        "forward_seconds": round(full["seconds_other"], 4),
        "peak_bytes_at_64": peak_bytes(lambda: scoring(64), device),
        "peak_bytes_at_512": peak_bytes(lambda: scoring(512), device),
        "parameters": sum(p.numel() for p in model.parameters()),
        "responses": count,
        "tokens_per_sequence": prompt + response,
        "layers_read": layers + 1,
    }
    finish("scoring", args, result)


@torch.inference_mode()
def plain(model: LlamaForCausalLM, prompts: list[list[int]], responses: list[list[int]], extra: dict[str, int]) -> None:
    """Run the same batches through the model and nothing else: no hooks, no hidden states, no cache."""
    order = sorted(range(len(prompts)), key=lambda i: -len(prompts[i]) - len(responses[i]))
    for start in range(0, len(order), BATCH):
        rows = [prompts[i] + responses[i] for i in order[start : start + BATCH]]
        width = max(map(len, rows))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
        logits = model(input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False, **extra).logits
        float(logits[0, -1, 0])  # waits for the device, as reading the rewards does


@torch.inference_mode()
def check(model: LlamaForCausalLM, rm: SwiftRewardModel, prompt: list[int], response: list[int]) -> None:
    """Refuse to time a score that differs from the formula on ``output_hidden_states``."""
    ids = torch.tensor([prompt + response], device=model.device)
    hidden = torch.cat(model(ids, output_hidden_states=True).hidden_states, -1)[0, len(prompt) - 1 : -1]
    z, r = (hidden @ rm.head.weight.T + rm.head.bias).unbind(-1)
    expected, got = float((z.sigmoid() * r).sum() / z.sigmoid().sum()), score(model, None, rm, [prompt], [response])[0]
    if abs(expected - got) > 1e-3 * max(1.0, abs(expected)):
        raise SystemExit(f"score() gives {got}, the formula {expected}: not timed")


if __name__ == "__main__":
    main()
