"""The Triton kernels compile for real GPUs on any machine, read 16 bytes at a time and spill nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

from tests.kernels.implementations import needs_triton

ROOT = Path(__file__).parents[2]


pytestmark = needs_triton


def run(script, tmp_path, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")]), "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, *script], capture_output=True, text=True, timeout=300, env=environment | variables, cwd=ROOT / "tests"
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


def test_every_kernel_compiles_for_two_generations_of_gpus(tmp_path):
    built = [json.loads(line) for line in run(["kernels/compile_kernels.py"], tmp_path)]
    assert len(built) == 2 * (3 * 4 + 4)
    for one in built:
        assert one["local"] == 0 and one["stack"] == 0, f"registers are spilled: {one}"
        assert one["wide_loads"] > 0 or one["kernel"] in ("pool_kernel", "score_gradient_kernel"), one
        assert one["shared"] <= 160 * 1024, f"more shared memory than an A100 has: {one}"


def test_every_launch_is_one_that_triton_accepts(tmp_path):
    launches = [line.split(maxsplit=1) for line in run(["kernels/launch_kernels.py"], tmp_path)]
    steps = [how for kernel, how in launches if kernel == "_gated_step_kernel"]
    assert steps == ["(5, 3) True", "(1, 3) True"], "one launch for all layers and rows, 16 bytes at a time"
    assert len(launches) == 2 + 2 * 3 * 2 + 2


def test_tiles_are_searched_only_where_that_was_asked_for(tmp_path):
    program = "from swift_rm_kernels import gated_pool_triton as g; print(type(g.token_scores_kernel).__name__, "
    program += "type(g.weight_gradient_kernel).__name__, len(getattr(g.token_scores_kernel, 'configs', ())) > 5)"
    assert run(["-c", program], tmp_path) == ["JITFunction JITFunction False"]
    assert run(["-c", program], tmp_path, SWIFT_RM_AUTOTUNE="1") == ["Autotuner Autotuner True"]
