"""Measure, on a machine with an NVIDIA GPU and within eight minutes, what the kernels promise: speed, memory and overhead.

It builds nothing, needs no installation (PYTHONPATH=.:kernels python -m benchmarks.kernels.gpu), compares with float64 before it
times anything, prints the table on stderr line by line, and ends with one record. ``--interpret`` runs the same code at
tiny sizes on a CPU, in Triton's interpreter; its times mean nothing and are never written to benchmarks/results.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

AT_LEAST = {"forward_share_of_read": 0.9, "forward_backward_share_of_read": 0.8, "forward_vs_eager": 4, "forward_vs_compile": 1.5}
AT_MOST = {"step_us_graph": 8, "step_us_eager": 25, "generation_overhead": 0.02}
GOALS = {**AT_LEAST, **AT_MOST}


def main() -> None:
    """Check, measure, and print or write the figures."""
    began, args = time.monotonic(), arguments()
    os.environ["TRITON_INTERPRET"] = "1" if args.interpret else "0"  # read when triton is imported
    args.quick = args.quick or args.interpret  # writes no result of its own accord
    import torch

    if not args.interpret and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs an NVIDIA GPU that torch can use (or --interpret, to see only that it runs)")
    measure(args, began)


def arguments() -> argparse.Namespace:
    """Read the options, before anything is imported that looks at the environment."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes, under a minute")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--out", type=Path, help="result file (default: benchmarks/results/gpu.json, none with --quick)")
    parser.add_argument("--interpret", action="store_true", help="tiny sizes on the CPU, in Triton's interpreter")
    return parser.parse_args()


def measure(args: argparse.Namespace, began: float) -> None:
    """Run parity, and then every section, the headline's first."""
    from benchmarks.kernels.gpu_bench import FULL, QUICK, TINY, Bench, copy_bandwidth
    from benchmarks.kernels.gpu_generation import generation
    from benchmarks.kernels.gpu_parity import parity
    from benchmarks.kernels.gpu_pool import compiled, memory, pool, pool_shapes
    from benchmarks.kernels.gpu_step import step, step_shapes
    from benchmarks.recorder import finish

    bench = Bench(TINY if args.interpret else QUICK if args.quick else FULL, args.interpret, began)
    result: dict[str, Any] = {**dict.fromkeys(GOALS), "goals": GOALS, **surroundings(), **parity(bench)}

    def conclude() -> None:
        met = {key: _met(key, None if args.interpret else result[key]) for key in GOALS}
        found = {"met": met, "interpreted": args.interpret, "skipped": bench.skipped, "rows": bench.rows}
        finish("gpu", args, {**result, **found, "seconds": round(time.monotonic() - began, 1)})

    with ExitStack() as sections:  # run from the last entered to the first; one that fails takes no other with it
        sections.callback(conclude)
        for section in (blocks, pool_shapes, step_shapes, compiled, memory, generation, step, pool, copy_bandwidth):
            sections.callback(lambda section=section: result.update(section(bench)))


def surroundings() -> dict[str, Any]:
    """Return the versions of what runs, and of the driver."""
    import torch
    import transformers
    import triton

    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(query, capture_output=True, text=True).stdout.strip() if shutil.which(query[0]) else ""
    versions = {"torch": torch.__version__, "triton": triton.__version__, "transformers": transformers.__version__}
    return {"gpu_versions": {**versions, "cuda": torch.version.cuda, "driver": driver or None}}


def blocks(bench: Any) -> dict[str, Any]:
    """Return the block sizes the kernels take at the headline's shape: those picked by hand, or those found by autotuning."""
    from swift_rm_kernels import gated_pool_triton, tuning

    tokens, width = bench.sizes.responses * bench.sizes.tokens, bench.sizes.width
    found = {"scores": tuning.score_tile(tokens, width), "gradient": tuning.gradient_tile(width)}
    if tuning.AUTOTUNE:
        kernels = {"scores": gated_pool_triton.token_scores_kernel, "gradient": gated_pool_triton.weight_gradient_kernel}
        found = {name: {str(key): str(best) for key, best in kernel.cache.items()} for name, kernel in kernels.items()}
    return {"blocks": {**found, "step": tuning.step_tile(width, 2)}}


def _met(key: str, value: float | None) -> bool | None:
    if value is None:
        return None
    return value >= GOALS[key] if key in AT_LEAST else value <= GOALS[key]


if __name__ == "__main__":
    main()
