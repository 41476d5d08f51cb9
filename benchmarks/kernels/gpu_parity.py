"""Before anything is timed: the kernels against float64, at every dtype, over ragged shapes, and through every result."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from swift_rm_kernels import (
    gated_pool,
    gated_pool_reference,
    gated_step,
    gated_step_reference,
    new_running,
    running_rewards,
)
from torch import Tensor

from benchmarks.kernels.gpu_bench import Bench, capture, say

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
EPSILON = 1e-5  # of the largest value: what float32 sums in another order may differ by
STEPS = 50


@dataclass(frozen=True)
class Case:
    """One shape of packed responses."""

    name: str
    widths: tuple[int, ...]  # of the layers
    lengths: tuple[int, ...]  # of the responses
    gate: bool = True
    masked: bool = False  # some tokens, and all of the last response
    strided: bool = False  # each layer is a view of a wider tensor
    stacked: bool = False  # one tensor instead of a list
    shift: float = 0  # of the gate's bias


def cases(scale: int) -> list[Case]:
    """Return shapes that kernels get wrong: one token, no token, odd widths, strides; ``scale`` makes them larger."""
    ragged = (3, 0, 7 * scale, 1, 17 * scale)
    return [
        Case("one token", (64 * scale,) * 3, (1,)),
        Case("no response", (32,) * 2, ()),
        Case("empty responses", (32,) * 2, (0, 0)),
        Case("ragged, many layers", (16 * scale,) * 5, ragged),
        Case("ragged, widths not of the block", (25 * scale, 7, 51), ragged),
        Case("strided views", (40 * scale,) * 2, ragged, strided=True),
        Case("stacked", (125 * scale,), (*ragged, 90 * scale), stacked=True),
        Case("masked", (16 * scale,) * 3, ragged, masked=True),
        Case("without a gate", (16 * scale,) * 3, ragged, gate=False),
        Case("without a gate, masked", (16 * scale,) * 3, ragged, gate=False, masked=True),
        Case("gates that underflow", (16 * scale,) * 3, ragged, shift=-300),
    ]


def parity(bench: Bench) -> dict[str, Any]:
    """Refuse to go on unless the kernels err no more than plain torch does in the same precision; return the largest errors."""
    torch.manual_seed(0)
    errors = {}
    for dtype in DTYPES[: bench.sizes.dtypes]:
        found = [_pool_errors(case, dtype, bench) for case in cases(bench.sizes.parity_scale)]
        found += [_step_errors(widths, dtype, bench) for widths in ((48, 48, 48), (30, 7))]
        kernels, plain = (max(pair[i] for pair in found) for i in (0, 1))
        errors[str(dtype).removeprefix("torch.")] = {"kernels": kernels, "torch": plain}
        say(f"parity {dtype}: largest error of the kernels {kernels:.1e}, of plain torch {plain:.1e}")
    if not bench.interpreted:
        _step_in_a_graph(bench)
        _step_waits_for_nothing(bench)
    return {"parity": errors}


def _pool_errors(case: Case, dtype: torch.dtype, bench: Bench) -> tuple[float, float]:
    """Compare rewards, token scores and the gradients to all three arguments; return the errors of kernels and of torch."""
    tokens, width, rows = sum(case.lengths), sum(case.widths), 2 if case.gate else 1
    states = [torch.randn(tokens, width * 2 if case.strided else width).to(bench.device, dtype) for width in case.widths]
    if case.strided:
        states = [state[:, : state.shape[1] // 2] for state in states]
    weight = torch.randn(rows, width).to(bench.device) / max(1, width) ** 0.5
    bias = torch.randn(rows).to(bench.device)
    bias[0] += case.shift
    offsets = torch.tensor([0, *case.lengths]).cumsum(0)
    mask = torch.rand(tokens) < 0.7 if case.masked else None
    if mask is not None:
        mask[tokens - case.lengths[-1] :] = False
        mask = mask.to(bench.device)
    upstream = [torch.randn(size).to(bench.device) for size in (len(case.lengths), tokens, tokens)]

    def results(pool: Any, kind: torch.dtype | None, weights: torch.dtype, **more: Any) -> dict[str, Tensor]:
        layers = [state.detach().to(kind or dtype).requires_grad_() for state in states]
        head = [one.detach().to(weights).requires_grad_() for one in (weight, bias)]
        given = layers[0] if case.stacked else layers
        found = pool(given, *head, offsets, mask=mask, return_tokens=True, **more)
        through = [(out, grad) for out, grad in zip(found, upstream, strict=True) if out.requires_grad]
        loss = sum((out * grad.to(out.dtype)).sum() for out, grad in through)
        grads = torch.autograd.grad(loss, [*head, *layers])
        names = ("rewards", "z", "r", "d_weight", "d_bias", "d_states")
        return dict(zip(names, [*found, *grads[:2], torch.cat(grads[2:], dim=1)], strict=True))

    truth = results(gated_pool_reference, torch.float64, torch.float64)
    plain = results(gated_pool_reference, None, dtype)
    with poisoned():
        ours = results(gated_pool, None, torch.float32, impl="triton")
    return _compare(f"gated_pool, {case.name}, {dtype}", ours, plain, truth)


def _step_errors(widths: Sequence[int], dtype: torch.dtype, bench: Bench) -> tuple[float, float]:
    """Add tokens step by step, with rows that end, rows that never begin and NaN in the states of both."""
    rows, steps = (5, 6) if bench.interpreted else (37, STEPS)
    weight = torch.randn(2, sum(widths)).to(bench.device) / sum(widths) ** 0.5
    bias = torch.randn(2).to(bench.device)
    kinds = {"truth": torch.float64, "plain": torch.float32, "ours": torch.float32}
    running = {name: new_running(rows, bench.device, kind) for name, kind in kinds.items()}
    scores = {name: torch.zeros(rows, 2, device=bench.device, dtype=kind) for name, kind in kinds.items()}
    for _ in range(steps):
        active = torch.rand(rows) < 0.8
        active[0] = False  # never begins
        states = [torch.randn(rows, 1, width).to(dtype).masked_fill(~active[:, None, None], torch.nan) for width in widths]
        states, active = [state.to(bench.device) for state in states], active.to(bench.device)
        for name, kind in kinds.items():
            head = (weight.to(kind), bias.to(kind), running[name], active)
            if name == "ours":
                with poisoned():
                    gated_step(states, *head, scores=scores[name], impl="triton")
            else:
                gated_step_reference([state[:, 0].to(kind) for state in states], *head, scores[name])
    found = {
        name: {"rewards": running_rewards(running[name])[1:], "running": running[name][1:], "scores": scores[name][1:]}
        for name in kinds
    }
    if not torch.equal(running["ours"][0], new_running(1, bench.device)[0]):
        raise SystemExit(f"gated_step changes a row that is never active ({dtype}, widths {tuple(widths)}): not timed")
    return _compare(f"gated_step, widths {tuple(widths)}, {dtype}", found["ours"], found["plain"], found["truth"])


def _step_in_a_graph(bench: Bench) -> None:
    """Refuse a captured graph of steps whose replays differ from the steps themselves."""
    steps = [[torch.randn(19, 1, 320, device=bench.device, dtype=torch.bfloat16) for _ in range(7)] for _ in range(3)]
    weight, bias = torch.randn(2, 7 * 320, device=bench.device) / 47, torch.randn(2, device=bench.device)
    active = torch.arange(19, device=bench.device) % 5 != 0
    eager, captured = new_running(19, bench.device), new_running(19, bench.device)
    replay = capture(lambda: [gated_step(states, weight, bias, captured, active, impl="triton") for states in steps])
    captured.copy_(new_running(19, bench.device))  # the warm-up counted tokens
    for _ in range(4):
        for states in steps:
            for state in states:
                state.normal_()  # a replay reads what is there by then
            gated_step(states, weight, bias, eager, active, impl="triton")
        replay()
    if not torch.allclose(eager, captured, rtol=1e-5, atol=1e-5):
        raise SystemExit(f"gated_step in a CUDA graph gives {captured.tolist()}, outside {eager.tolist()}: not timed")


def _step_waits_for_nothing(bench: Bench) -> None:
    """Refuse a step that makes the host wait for the device."""
    states = [torch.randn(8, 1, 256, device=bench.device) for _ in range(3)]
    weight, bias = torch.randn(2, 768, device=bench.device), torch.zeros(2, device=bench.device)
    running, active = new_running(8, bench.device), torch.ones(8, dtype=torch.bool, device=bench.device)
    gated_step(states, weight, bias, running, active, impl="triton")  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        gated_step(states, weight, bias, running, active, impl="triton")
    except RuntimeError as error:
        raise SystemExit(f"gated_step waits for the device: {error}") from error
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def _compare(what: str, ours: dict[str, Tensor], plain: dict[str, Tensor], truth: dict[str, Tensor]) -> tuple[float, float]:
    """Return the largest errors of both, but for the states' gradient, which is rounded to their dtype."""
    worst = (0.0, 0.0)
    for name, exact in truth.items():
        if not exact.numel():
            continue
        scale = max(float(exact.abs().max()), torch.finfo(torch.float32).tiny)
        kernels, torch_ = (float((one[name].double() - exact).abs().max()) / scale for one in (ours, plain))
        rounding = torch.finfo(ours[name].dtype).eps if name == "d_states" else 0.0
        if not kernels <= torch_ + EPSILON + rounding:  # NaN never passes
            raise SystemExit(f"{what}: {name} errs by {kernels:.2e} of its scale, plain torch by {torch_:.2e}: not timed")
        if name != "d_states":
            worst = max(worst[0], kernels), max(worst[1], torch_)
    return worst


@contextmanager
def poisoned() -> Iterator[None]:
    """Fill what ``torch.empty`` gives with NaN, so that a result that no kernel wrote is seen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(False)
