"""How near gated_pool comes to the speed of memory on this CPU, and what the published way of computing it costs.

The measure is ``tensor.sum()`` over the same states: it reads them once, as the forward and the backward pass each do. The
shares in the first lines are those of what ``impl="auto"`` takes, in the worse of float32 and bfloat16.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import torch
from swift_rm_kernels import gated_pool
from swift_rm_kernels.dispatch import Impl, kernels
from swift_rm_kernels.reference import columns, pool_reference
from torch import Tensor
from torch.nn import functional as F

from benchmarks.recorder import arguments, finish, paired_ratio, peak_bytes

IMPLEMENTATIONS: tuple[Impl, ...] = ("torch", "numba")
HEADLINES = ("forward_share_of_sum", "forward_vs_published", "backward_share_of_sum")
RESPONSE = 512  # tokens


def main() -> None:
    """Compare every implementation with float64, time the right ones beside a sum and the published way, measure memory."""
    args = arguments(__doc__)
    torch.manual_seed(0)
    count, tokens, width = (2, 2048, 2048) if args.quick else (8, 8192, 4096)
    while 4 * count * tokens * width * 4 > free_bytes():
        tokens //= 2
    layers = [torch.randn(tokens, width) for _ in range(count)]
    weight, bias = torch.randn(2, count * width) / (count * width) ** 0.5, torch.randn(2)
    details, chosen = {}, {}
    for dtype in (torch.float32, torch.bfloat16):
        layers = [layer.to(dtype) for layer in layers]
        name = str(dtype).removeprefix("torch.")
        details[name] = measure(layers, weight.requires_grad_(), bias, rounds=3 if args.quick else 15)
        chosen[name] = kernels("gated_pool", "auto", layers, weight).__name__.rpartition("_")[2]
    headlines = {key: min(details[name][chosen[name]][key] for name in details) for key in HEADLINES}
    finish("cpu_kernels", args, {**headlines, "auto": chosen, **details, "layers": count, "tokens": tokens, "width": width})


def measure(layers: list[Tensor], weight: Tensor, bias: Tensor, rounds: int) -> dict[str, Any]:
    """Return the figures of one dtype; exits if an implementation is wrong."""
    tokens, size = len(layers[0]), sum(layer.nbytes for layer in layers)
    offsets = torch.arange(0, tokens + 1, RESPONSE)
    rewards, gradient = truth(layers, weight, bias, offsets)
    mask = torch.ones(tokens // RESPONSE, RESPONSE)

    def plain_sum() -> None:
        for layer in layers:
            layer.sum()

    def by_publication() -> Tensor:
        return published(layers, weight, bias, mask)

    near("published", by_publication(), rewards)
    figures = {}
    for name in IMPLEMENTATIONS:

        def forward(name: Impl = name) -> Tensor:
            with torch.no_grad():
                return gated_pool(layers, weight, bias, offsets, impl=name)

        total = gated_pool(layers, weight, bias, offsets, impl=name).sum()

        def backward(total: Tensor = total) -> Tensor:
            return torch.autograd.grad(total, weight, retain_graph=True)[0]

        near(f"{name} forward", forward(), rewards)
        near(f"{name} backward", backward(), gradient)
        pairs = {
            "forward_share_of_sum": paired_ratio(plain_sum, forward, rounds),
            "forward_vs_published": paired_ratio(by_publication, forward, rounds),
            "backward_share_of_sum": paired_ratio(plain_sum, backward, rounds),
        }
        peak = peak_bytes(lambda passes=(forward, backward): [run() for run in passes], "cpu")
        figures[name] = {**rounded(pairs, size), "peak_bytes_per_token": round(peak / tokens, 1)}
    return figures


def rounded(pairs: dict[str, dict[str, float]], size: int) -> dict[str, Any]:
    """Return the ratios of the pairs with their ranges, and the speeds of passes that each read ``size`` bytes."""
    figures: dict[str, Any] = {}
    for key, pair in pairs.items():
        figures[key] = round(pair["ratio"], 3)
        figures[f"{key}_range"] = [round(pair["ratio_low"], 3), round(pair["ratio_high"], 3)]
    for key in ("forward", "backward"):
        figures[f"{key}_gb_per_s"] = round(size / pairs[f"{key}_share_of_sum"]["seconds_other"] / 1e9, 1)
    return {**figures, "sum_gb_per_s": round(size / pairs["forward_share_of_sum"]["seconds"] / 1e9, 1)}


@torch.no_grad()
def published(layers: list[Tensor], weight: Tensor, bias: Tensor, mask: Tensor) -> Tensor:
    """Compute the rewards as the code of the paper does: concatenate, widen, project, mask, sum; responses of one length."""
    states = torch.cat(layers, -1).float()
    z, r = F.linear(states, weight, bias).view(*mask.shape, 2).unbind(-1)
    gate = z.sigmoid() * mask
    return (gate * r).sum(1) / gate.sum(1)


def truth(layers: list[Tensor], weight: Tensor, bias: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Return rewards ``[B]`` and the gradient of their sum to the weight ``[2, D]`` in float64."""
    parts = weight.detach().double().split([layer.shape[1] for layer in layers], dim=1)
    blocks = list(itertools.pairwise(offsets.tolist()))
    with torch.no_grad():
        rows = [sum(layer[a:b].double() @ part.T for layer, part in zip(layers, parts, strict=True)) for a, b in blocks]
    scores = (torch.cat(rows) + bias.double()).requires_grad_()
    rewards = pool_reference(*columns(scores), offsets, None)
    (d_scores,) = torch.autograd.grad(rewards.sum(), scores)
    gradients = [sum(d_scores[a:b].T @ layer[a:b].double() for a, b in blocks) for layer in layers]
    return rewards.detach(), torch.cat(gradients, 1)


def near(name: str, got: Tensor, expected: Tensor) -> None:
    """Exit unless a result equals float64, to the digits that float32 sums have."""
    error = float((got - expected).abs().max() / expected.abs().max())
    if not error < 1e-5:
        raise SystemExit(f"{name} differs from float64 by {error:.1e} of the largest value: not timed")


def free_bytes() -> int:
    """Return the memory that can be had without swapping (Linux)."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


if __name__ == "__main__":
    main()
