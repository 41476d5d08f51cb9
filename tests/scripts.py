"""The scripts of examples and benchmarks, run as people run them."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def call(*command):
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "kernels")])}
    return subprocess.run(
        [sys.executable, *map(str, command)], capture_output=True, text=True, timeout=600, env=environment, cwd="/"
    )


def run(*command):
    done = call(*command)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
