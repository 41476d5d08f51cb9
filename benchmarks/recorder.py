"""What every benchmark shares: its arguments, paired ratios, peak memory, and a result file with versions."""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

RESULTS = Path(__file__).parent / "results"


def arguments(description: str | None) -> argparse.Namespace:
    """Read ``--quick``, ``--json`` and ``--out``."""
    return parser_of(description).parse_args()


def parser_of(description: str | None) -> argparse.ArgumentParser:
    """Return the parser of what every benchmark reads; some have more."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute on two cores")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/NAME.json, none with --quick)")
    return parser


def paired_ratio(one: Callable[[], object], other: Callable[[], object], rounds: int) -> dict[str, float]:
    """Time both in turn, after one round that does not count; return the median of the ratios and of both times in seconds."""
    times: list[tuple[float, float]] = []
    for i in range(rounds + 1):
        pair = []
        for run in (one, other) if i % 2 else (other, one):  # the order alternates: a drifting machine favours neither
            start = time.perf_counter()
            run()
            pair.append(time.perf_counter() - start)
        times.append((pair[0], pair[1]) if i % 2 else (pair[1], pair[0]))
    ratios = sorted(a / b for a, b in times[1:])
    return {
        "ratio": statistics.median(ratios),
        "ratio_low": ratios[0],
        "ratio_high": ratios[-1],
        "seconds": statistics.median(a for a, _ in times[1:]),
        "seconds_other": statistics.median(b for _, b in times[1:]),
    }


def peak_bytes(run: Callable[[], object], device: str) -> int:
    """Return how far memory rises above where it stood while ``run`` runs: of the GPU, or of the process (Linux)."""
    if device == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        return torch.cuda.max_memory_allocated() - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back, or the peak would hide in it
    before = _status("VmRSS")
    Path(f"/proc/{os.getpid()}/clear_refs").write_text("5")  # the high-water mark starts again from here
    run()
    return max(0, _status("VmHWM") - before)


def _status(key: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


def _script() -> str:
    """Return the script that runs, as `python -m` knows it from the root of a checkout."""
    return ".".join(Path(sys.argv[0]).resolve().relative_to(RESULTS.parents[1]).with_suffix("").parts)


def finish(name: str, args: argparse.Namespace, result: dict[str, Any]) -> None:
    """Print the result, and write it with device, versions and the command that made it."""
    paths = {str(getattr(args, key)) for key in ("out", "cache") if getattr(args, key, None)} | {"--out", "--cache"}
    command = shlex.join(["python", "-m", _script(), *(arg for arg in sys.argv[1:] if arg not in paths)])
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"{platform.machine()} CPU, {os.cpu_count()} cores"
    versions = {"python": platform.python_version(), "torch": torch.__version__, "transformers": transformers.__version__}
    record = {**result, "command": command, "device": device, "threads": torch.get_num_threads(), "versions": versions}
    out = args.out or (None if args.quick else RESULTS / f"{name}.json")
    if out:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record) if args.json else "\n".join(f"{key:28} {value}" for key, value in record.items()))
