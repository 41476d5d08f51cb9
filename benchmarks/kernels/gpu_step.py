"""gated_step: what a decoded token costs, in a captured CUDA graph and from Python."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle
from typing import Any

import torch
from swift_rm_kernels import gated_step, new_running

from benchmarks.kernels.gpu_bench import Bench, capture


def step(bench: Bench) -> dict[str, Any]:
    """Time one decoded token of the headline's rows, read from every layer."""
    sizes = bench.sizes
    graph, alone, eager, plain = _times(bench, sizes.rows, sizes.layers)
    return {"step_us_graph": graph, "step_us_graph_of_one": alone, "step_us_eager": eager, "step_us_eager_torch": plain}


def step_shapes(bench: Bench) -> dict[str, Any]:
    """Time other numbers of rows, and fewer layers."""
    found, most = {}, bench.sizes.layers
    for rows, layers in ((1, most), (16, most), (256, most), (bench.sizes.rows, 4))[: bench.sizes.others]:
        if bench.allows(f"step, {rows} rows, {layers} layers", 10):
            graph, alone, eager, plain = _times(bench, rows, layers)
            found[f"{rows} rows, {layers} layers"] = {"graph": graph, "graph_of_one": alone, "eager": eager, "eager_torch": plain}
    return {"step_us": found}


def _times(bench: Bench, rows: int, layers: int) -> tuple[float | None, float | None, float, float]:
    """Return microseconds a step: in a graph of many, in graphs of one, from Python, and from Python in plain torch."""
    torch.manual_seed(2)
    width, steps, device = bench.sizes.width, bench.sizes.steps, bench.device
    read = rows * layers * width * 2
    buffers = [
        [torch.randn(rows, 1, width, dtype=torch.bfloat16, device=device) for _ in range(layers)] for _ in range(steps)
    ]  # a step's states are its own, so they come from memory
    weight, bias = torch.randn(2, layers * width, device=device) / (layers * width) ** 0.5, torch.zeros(2, device=device)
    running, active = new_running(rows, device), torch.ones(rows, dtype=torch.bool, device=device)
    waiting: Iterator[list[torch.Tensor]] = cycle(buffers)

    def one(states: list[torch.Tensor], impl: Any = "triton") -> None:
        gated_step(states, weight, bias, running, active, impl=impl)

    group = f"step, {rows} rows, {layers} x {width}"
    graph = alone = None
    if not bench.interpreted:
        whole = capture(lambda: [one(states) for states in buffers])
        singles = [capture(lambda states=states: one(states)) for states in buffers]
        taken = bench.times({"graph": whole, "graphs of one": lambda: [replay() for replay in singles]}, 3 * bench.sizes.rounds)
        for name, seconds in taken.items():
            bench.row(group, name, seconds / steps, read)
        graph, alone = (round(seconds / steps * 1e6, 2) for seconds in taken.values())
    walls = {impl: bench.wall(lambda impl=impl: one(next(waiting), impl), bench.sizes.calls) for impl in ("triton", "torch")}
    for impl, seconds in walls.items():
        bench.row(group, "from Python" if impl == "triton" else "from Python, plain torch", seconds, read)
    return graph, alone, round(walls["triton"] * 1e6, 2), round(walls["torch"] * 1e6, 2)
