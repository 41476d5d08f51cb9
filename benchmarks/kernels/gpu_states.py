"""Packed random states on the device, and the ways to read them: this package's, plain torch's, and a mere sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from swift_rm_kernels import gated_pool
from swift_rm_kernels.dispatch import kernels as impl_of
from swift_rm_kernels.reference import columns, pool_reference, token_scores_reference
from torch import Tensor
from torch.nn import functional as F

from benchmarks.kernels.gpu_bench import Bench, Provider


@dataclass(frozen=True)
class Shape:
    """Responses of these lengths, read from layers of these widths."""

    name: str
    widths: tuple[int, ...]
    lengths: tuple[int, ...]
    dtype: torch.dtype = torch.bfloat16
    stacked: bool = False  # one tensor instead of a list

    @property
    def read(self) -> int:
        """The bytes of the states, which must be read once for the rewards and once more for the gradients."""
        return sum(self.lengths) * sum(self.widths) * self.dtype.itemsize


class Data:
    """The tensors of one shape, and what reads them."""

    def __init__(self, shape: Shape, bench: Bench) -> None:
        torch.manual_seed(1)
        tokens, device = sum(shape.lengths), bench.device
        widths = (sum(shape.widths),) if shape.stacked else shape.widths
        self.shape = shape
        self.states = [torch.randn(tokens, width, dtype=shape.dtype, device=device) for width in widths]
        self.weight = torch.randn(2, sum(widths), device=device) / sum(widths) ** 0.5
        self.bias = torch.randn(2, device=device)
        self.trained = [self.weight.clone().requires_grad_(), self.bias.clone().requires_grad_()]
        self.offsets = torch.tensor([0, *shape.lengths]).cumsum(0)
        self.row = torch.arange(len(shape.lengths)).repeat_interleave(self.offsets.diff()).to(device)  # a token's response

    @torch.no_grad()
    def forward(self) -> Tensor:
        """Compute the rewards as a user does."""
        return gated_pool(self._given(), self.weight, self.bias, self.offsets, impl="triton")

    def passes(self) -> dict[str, Provider]:
        """Return the two passes over the states by themselves: what is left of the time is launches and small kernels."""
        kernels = impl_of("gated_pool", "triton", self.states, self.weight)
        d_scores = torch.randn(len(self.row), 2, device=self.row.device)
        return {
            "scores pass": lambda: kernels.token_scores(self.states, self.weight, self.bias),
            "gradient pass": lambda: kernels.weight_gradient(self.states, d_scores),
        }

    def forward_backward(self) -> Sequence[Tensor]:
        """Compute the gradients to weight and bias, rewards first."""
        return torch.autograd.grad(gated_pool(self._given(), *self.trained, self.offsets, impl="triton").sum(), self.trained)

    @torch.no_grad()
    def plain(self, compute: Callable[..., Tensor]) -> Tensor:
        """Compute the rewards by :func:`straightforward` or :func:`published`, compiled or not."""
        return compute(self.states, self.weight, self.bias, self.row, len(self.shape.lengths))

    def plain_forward_backward(self) -> Sequence[Tensor]:
        """Compute the gradients to weight and bias in plain torch."""
        rewards = straightforward(self.states, *self.trained, self.row, len(self.shape.lengths))
        return torch.autograd.grad(rewards.sum(), self.trained)

    def sums(self) -> dict[str, Provider]:
        """Return two ways of torch to read all states once; the faster gives the bandwidth of reading."""
        return {"sum": lambda: [one.sum() for one in self.states], "sum of rows": lambda: [one.sum(1) for one in self.states]}

    @torch.no_grad()
    def truth(self) -> Tensor:
        """Compute the rewards in float64, some tokens at a time."""
        head, tokens = (self.weight.double(), self.bias.double()), len(self.row)
        blocks = [[state[start : start + 2048] for state in self.states] for start in range(0, tokens, 2048)]
        scores = torch.cat([token_scores_reference(block, *head) for block in blocks])
        return pool_reference(*columns(scores), self.offsets)

    def _given(self) -> Tensor | list[Tensor]:
        return self.states[0] if self.shape.stacked else self.states


def straightforward(states: Sequence[Tensor], weight: Tensor, bias: Tensor, row: Tensor, responses: int) -> Tensor:
    """Compute the rewards as one would write it in plain torch: a float32 copy and a product per layer."""
    scores = bias
    for layer, part in zip(states, weight.split([layer.shape[1] for layer in states], dim=1), strict=True):
        scores = scores + layer.float() @ part.T
    return _gated_mean(scores, row, responses)


def published(states: Sequence[Tensor], weight: Tensor, bias: Tensor, row: Tensor, responses: int) -> Tensor:
    """Compute the rewards the published way: all layers side by side in one float32 tensor, and one product."""
    return _gated_mean(F.linear(torch.cat(list(states), dim=1).float(), weight, bias), row, responses)


def _gated_mean(scores: Tensor, row: Tensor, responses: int) -> Tensor:
    z, r = scores.unbind(1)
    gate = torch.sigmoid(z)
    total, mass = (torch.zeros(responses, device=row.device).index_add(0, row, one) for one in (gate * r, gate))
    return total / mass


def agree(what: str, got: Tensor, expected: Tensor) -> None:
    """Refuse to time what gives something else."""
    error = float((got.double() - expected.double()).abs().max() / expected.double().abs().max())
    if not error <= 1e-3:
        raise SystemExit(f"{what} errs by {error:.1e} of the largest value: not timed")
