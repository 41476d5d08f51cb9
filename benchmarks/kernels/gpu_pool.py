"""gated_pool beside a plain sum of the same states, plain torch and torch.compile; and the memory that it takes."""

from __future__ import annotations

import random
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from benchmarks.kernels.gpu_bench import Bench, Provider
from benchmarks.kernels.gpu_states import Data, Shape, agree, published, straightforward
from benchmarks.recorder import peak_bytes

FORWARD_BACKWARD = "forward + backward"


def large(bench: Bench) -> Shape:
    """Return the headline's shape: every layer of a model of 8 B parameters."""
    sizes = bench.sizes
    lengths = (sizes.tokens,) * sizes.responses
    return Shape(f"{sizes.layers} x {sizes.width}, {sum(lengths)} tokens", (sizes.width,) * sizes.layers, lengths)


def pool(bench: Bench) -> dict[str, Any]:
    """Time the rewards, and the rewards with their gradients, beside a sum and plain torch, on the large shape."""
    data = Data(large(bench), bench)
    providers: dict[str, Provider] = {"eager": lambda: data.plain(straightforward)}
    room = data.shape.read * 4 // data.shape.dtype.itemsize  # the states in float32
    if bench.allows(f"eager, {FORWARD_BACKWARD}", memory=room + (1 << 30)):
        providers[f"eager, {FORWARD_BACKWARD}"] = data.plain_forward_backward
        agree("the gradient", data.forward_backward()[0], data.plain_forward_backward()[0])
    if bench.allows("published (cat + float)", memory=room + data.shape.read + (1 << 30)):
        providers["published (cat + float)"] = lambda: data.plain(published)
    taken = _timed(data, bench, providers)
    read = min(taken["sum"], taken["sum of rows"])
    ratios = {
        "forward_share_of_read": read / taken["forward"],
        "forward_backward_share_of_read": 2 * read / taken[FORWARD_BACKWARD],
        "forward_vs_eager": taken["eager"] / taken["forward"],
        "scores_pass_share_of_read": read / taken["scores pass"],
        "gradient_pass_share_of_read": read / taken["gradient pass"],
    }
    for key, name, ours in (
        ("forward_backward_vs_eager", f"eager, {FORWARD_BACKWARD}", FORWARD_BACKWARD),
        ("forward_vs_published", "published (cat + float)", "forward"),
    ):
        ratios[key] = taken[name] / taken[ours] if name in taken else None
    seconds = {"read": read, "forward": taken["forward"], "forward_backward": taken[FORWARD_BACKWARD] / 2}
    speeds = {key: data.shape.read / each for key, each in seconds.items()}
    copied = bench.copy_bandwidth
    return {
        **{key: ratio and round(ratio, 4) for key, ratio in ratios.items()},
        **{f"{key}_gb_per_s": round(speed / 1e9, 1) for key, speed in speeds.items()},
        **{f"{key}_share_of_copy": copied and round(speed / copied, 4) for key, speed in speeds.items()},
    }


def pool_shapes(bench: Bench) -> dict[str, Any]:
    """Time other layouts, dtypes, lengths and widths, as far as there is time."""
    headline = large(bench)
    widths, lengths, width, tokens = headline.widths, headline.lengths, bench.sizes.width, sum(headline.lengths)
    few = (width,) * min(8, len(widths))
    shares = {}
    kinds = [
        Shape(f"{len(few)} layers, {kind}", few, lengths, getattr(torch, kind)) for kind in ("bfloat16", "float16", "float32")
    ]
    others = [
        Shape("stacked", widths, lengths, stacked=True),
        Shape("ragged", widths, ragged(tokens, 8 * bench.sizes.tokens)),
        Shape("small model", (96,) * 5, ragged(min(20000, tokens), 128)),
        Shape("4 layers", (width,) * 4, lengths),
    ]
    for shape in [*others, *kinds][: bench.sizes.others]:
        if bench.allows(shape.name, 15, 2 * shape.read):
            taken = _timed(Data(shape, bench), bench, {})
            read = min(taken["sum"], taken["sum of rows"])
            shares[shape.name] = [round(read / taken["forward"], 4), round(2 * read / taken[FORWARD_BACKWARD], 4)]
    return {"shares_of_read": shares}


def compiled(bench: Bench) -> dict[str, Any]:
    """Time the rewards beside torch.compile of the plain expression, if it compiles in time."""
    limit = min(bench.sizes.compile_seconds, bench.left() - 15)
    if bench.interpreted or limit < 10:
        bench.skip("torch.compile", "not under the interpreter" if bench.interpreted else f"{bench.left():.0f} s are left")
        return {"forward_vs_compile": None, "compile_failed": bench.skipped["torch.compile"]}
    data = Data(large(bench), bench)
    function = torch.compile(straightforward, dynamic=False)
    try:
        with time_limit(limit):
            agree("torch.compile", data.plain(function), data.truth())
    except (RuntimeError, TimeoutError) as error:
        reason = f"{type(error).__name__}: {error}"[:300]
        bench.skip("torch.compile", reason)
        return {"forward_vs_compile": None, "compile_failed": reason}
    taken = bench.times({"forward": data.forward, "torch.compile": lambda: data.plain(function)})
    bench.row(data.shape.name, "torch.compile", taken["torch.compile"], data.shape.read)
    return {"forward_vs_compile": round(taken["torch.compile"] / taken["forward"], 4), "compile_failed": None}


def memory(bench: Bench) -> dict[str, Any]:
    """Measure what forward, and forward and backward, take beyond their results, and their largest temporary."""
    if bench.interpreted:
        return {"memory": None}
    data = Data(large(bench), bench)
    tokens = len(data.row)
    found: dict[str, Any] = {}
    for name, run in (("forward", data.forward), ("forward_backward", data.forward_backward)):
        own = sum(one.nbytes for one in _tensors(run()))
        peak, largest = peak_bytes(run, "cuda") - own, largest_temporary(run)
        found[name] = {
            "peak_bytes": peak, "peak_floats_per_token": round(peak / 4 / tokens, 3),
            "largest_temporary_floats_per_token": round(largest / 4 / tokens, 3),
        }  # fmt: skip
    return {"memory": found}


def largest_temporary(run: Provider) -> int:
    """Return the bytes of the largest tensor made meanwhile that is not a result."""
    device = torch.cuda.current_device()
    torch.cuda.memory._record_memory_history(context=None, stacks="python", max_entries=100_000)
    try:
        before = len(torch.cuda.memory._snapshot()["device_traces"][device])
        results = _tensors(run())
        trace = torch.cuda.memory._snapshot()["device_traces"][device][before:]
    finally:
        torch.cuda.memory._record_memory_history(None)
    made = [(event["addr"], event["size"]) for event in trace if event["action"] == "alloc"]
    for result in results:
        last = max((i for i, (address, _) in enumerate(made) if address == result.data_ptr()), default=None)
        if last is not None:
            made.pop(last)
    return max((size for _, size in made), default=0)


def _tensors(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else list(results)


def ragged(tokens: int, longest: int) -> tuple[int, ...]:
    """Draw lengths from 1 to ``longest`` that sum to ``tokens``."""
    draw, lengths = random.Random(0), []
    while sum(lengths) < tokens:
        lengths.append(min(draw.randint(1, longest), tokens - sum(lengths)))
    return tuple(lengths)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise TimeoutError in the block once it has run for so long."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"not done after {seconds:.0f} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _timed(data: Data, bench: Bench, others: dict[str, Provider]) -> dict[str, float]:
    """Time forward, with backward, a sum and others on the same tensors, once the rewards of all agree with float64's."""
    ours: dict[str, Provider] = {"forward": data.forward, FORWARD_BACKWARD: data.forward_backward}
    truth = data.truth()
    for name, run in {**ours, **others}.items():
        if FORWARD_BACKWARD not in name:
            agree(f"{data.shape.name}: {name}", run(), truth)
    taken = bench.times({**data.sums(), **ours, **data.passes(), **others})
    for name, seconds in taken.items():
        bench.row(data.shape.name, name, seconds, data.shape.read * (2 if FORWARD_BACKWARD in name else 1))
    return taken
