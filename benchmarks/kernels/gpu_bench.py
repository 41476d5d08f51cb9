"""What the sections of the GPU benchmark share: sizes, a clock for the device, a budget of time, the rows of the table."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

AHEAD = 10_000_000  # cycles (5 ms) that the device waits while the host queues launches, so that none is waited for
FLUSH = 1 << 28  # bytes read before each timed run: more than any L2, so that states come from memory
Provider = Callable[[], object]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    layers: int
    width: int
    responses: int
    tokens: int  # of each response
    rows: int  # of one decoding step
    steps: int  # captured in one graph, each with states of its own
    calls: int  # of gated_step from Python
    model: tuple[int, int, int, int]  # layers, width, inner width, vocabulary
    prompt_tokens: int
    new_tokens: int
    generations: int  # pairs
    rounds: int  # of everything else
    copied: int  # bytes
    parity_scale: int  # of the shapes that are compared with float64
    dtypes: int  # how many of bfloat16, float16 and float32 are
    others: int  # how many shapes beside the headline's, at most
    seconds: float  # for everything
    compile_seconds: float


FULL = Sizes(
    layers=33, width=4096, responses=64, tokens=512, rows=64, steps=20, calls=600,
    model=(32, 4096, 14336, 128256), prompt_tokens=128, new_tokens=64, generations=10, rounds=15,
    copied=1 << 30, parity_scale=16, dtypes=3, others=10, seconds=450, compile_seconds=150,
)  # fmt: skip
QUICK = Sizes(
    layers=5, width=1024, responses=16, tokens=256, rows=64, steps=20, calls=200,
    model=(4, 512, 1408, 32000), prompt_tokens=32, new_tokens=16, generations=3, rounds=5,
    copied=1 << 28, parity_scale=16, dtypes=1, others=10, seconds=55, compile_seconds=20,
)  # fmt: skip
TINY = Sizes(  # for Triton's interpreter
    layers=3, width=24, responses=3, tokens=7, rows=3, steps=2, calls=2,
    model=(2, 32, 64, 64), prompt_tokens=5, new_tokens=3, generations=1, rounds=1,
    copied=1 << 10, parity_scale=1, dtypes=3, others=1, seconds=60, compile_seconds=0,
)  # fmt: skip


class Bench:
    """One run: where it measures, what it has found, and how much time is left."""

    def __init__(self, sizes: Sizes, interpreted: bool, began: float) -> None:
        self.sizes, self.interpreted = sizes, interpreted
        self.device = torch.device("cpu" if interpreted else "cuda")
        if interpreted:
            torch.set_num_threads(1)  # tensors are tiny, and tests run beside this
        self.rows: list[dict[str, Any]] = []
        self.skipped: dict[str, str] = {}
        self.copy_bandwidth: float | None = None  # bytes/s, read and written
        self._ends = began + sizes.seconds
        self._flush = None if interpreted else torch.zeros(FLUSH, dtype=torch.uint8, device=self.device)

    def left(self) -> float:
        """Return how many seconds of the budget are left."""
        return self._ends - time.monotonic()

    def allows(self, what: str, seconds: float = 0, memory: int = 0) -> bool:
        """Say whether time and the device's memory allow this; what they do not is listed as skipped."""
        if self.left() < seconds:
            self.skip(what, f"needs {seconds:.0f} s, {max(0.0, self.left()):.0f} s are left")
        elif not self.interpreted and self.free_memory() < memory:
            self.skip(what, f"needs {memory / 1e9:.1f} GB, {self.free_memory() / 1e9:.1f} GB are free")
        else:
            return True
        return False

    def skip(self, what: str, reason: str) -> None:
        """Note that something is not measured, and why."""
        self.skipped[what] = reason
        say(f"skipped: {what}: {reason}")

    def free_memory(self) -> int:
        """Return the bytes the device still has for tensors."""
        torch.cuda.empty_cache()
        return torch.cuda.mem_get_info()[0]

    def times(self, providers: Mapping[str, Provider], rounds: int | None = None) -> dict[str, float]:
        """Time all providers in turn, after a round that does not count; return each one's median seconds on the device."""
        taken: dict[str, list[float]] = {name: [] for name in providers}
        for i in range((rounds or self.sizes.rounds) + 1):
            for name in providers if i % 2 else reversed(list(providers)):  # the order alternates
                seconds = self._once(providers[name])
                if i:
                    taken[name].append(seconds)
        return {name: statistics.median(seconds) for name, seconds in taken.items()}

    def _once(self, run: Provider) -> float:
        if self._flush is None:
            began = time.perf_counter()
            run()
            return time.perf_counter() - began
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        self._flush.sum()
        torch.cuda._sleep(AHEAD)
        start.record()
        run()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3

    def wall(self, run: Provider, calls: int) -> float:
        """Return the seconds a call takes from Python, one after the other: the median of several rounds of ``calls``."""
        taken = []
        for _ in range(2 if self.interpreted else 6):
            self.synchronise()
            began = time.perf_counter()
            for _ in range(calls):
                run()
            self.synchronise()
            taken.append((time.perf_counter() - began) / calls)
        return statistics.median(taken[1:])  # the first does not count

    def row(self, group: str, what: str, seconds: float, read: float = 0) -> float:
        """Add a line to the table; return its bytes per second by the bytes that ``what`` must read."""
        speed = read / seconds
        share = speed / self.copy_bandwidth if self.copy_bandwidth and read else None
        self.rows.append(
            {
                "group": group, "what": what, "us": round(seconds * 1e6, 2), "gb_per_s": round(speed / 1e9, 1) or None,
                "share_of_copy": share and round(share, 4),
            }
        )  # fmt: skip
        shown = f"{speed / 1e9:9.1f} GB/s" if read else ""
        say(f"{group:36} {what:26} {seconds * 1e6:12.1f} us {shown}" + (f" {share:7.1%} of copy" if share else ""))
        return speed

    def synchronise(self) -> None:
        """Wait for the device."""
        if not self.interpreted:
            torch.cuda.synchronize()


def say(line: str) -> None:
    """Print a line of the table as soon as it is known, beside the result on stdout."""
    print(line, file=sys.stderr, flush=True)


def capture(run: Provider) -> Callable[[], None]:
    """Capture what ``run`` launches in a CUDA graph, after two warm-up runs on a stream of their own; return its replay."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            run()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return graph.replay


def copy_bandwidth(bench: Bench) -> dict[str, Any]:
    """Measure what a copy on the device moves, bytes read and written, which every figure is set beside."""
    source = torch.randint(256, (bench.sizes.copied,), dtype=torch.uint8, device=bench.device)
    target = torch.empty_like(source)
    seconds = bench.times({"copy": lambda: target.copy_(source)})["copy"]
    bench.copy_bandwidth = bench.row("copy", f"{bench.sizes.copied / 1e9:.1f} GB", seconds, 2 * bench.sizes.copied)
    return {"copy_gb_per_s": round(bench.copy_bandwidth / 1e9, 1)}
