"""Which versions of other libraries swift_rm was tested with, and how it meets one that is outside of them.

What swift_rm uses of these libraries is in part not promised by them, and a change there can make rewards wrong without
an error. So a version that was never tested is checked when it is first used; one that fails is refused. That a version
passed is remembered for later processes; a failure only for this one, since its cause may pass.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import os
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.version import InvalidVersion, Version

from swift_rm._version import __version__
from swift_rm.files.atomic_write import write_whole

OVERRIDE = "SWIFT_RM_UNTESTED"


class UntestedVersion(ImportError):
    """A library's version was never tested with swift_rm, and failed the check at its first use."""


@dataclass(frozen=True)
class TestedRange:
    """The oldest and the newest version of ``library`` with which the tests pass."""

    __test__ = False  # no test of pytest's, whatever the name says

    library: str
    oldest: str
    newest: str

    def holds(self, version: str) -> bool:
        """Tell whether a version is between the two; a local label (``+cpu``) does not count."""
        return _within(self.oldest, version, self.newest)


@functools.cache
def _within(oldest: str, version: str, newest: str) -> bool:
    try:
        return Version(oldest) <= Version(Version(version).public) <= Version(newest)
    except InvalidVersion:  # as of a checkout
        return False


TRANSFORMERS = TestedRange("transformers", "5.5.0", "5.24.0")


def check_untested(tested: TestedRange, check: Callable[[], None], version: str | None = None) -> str:
    """Return the installed version of a library (``version`` if told) after, unless it is tested, a ``check`` of it.

    ``check`` raises an exception, of any kind, where the library does not behave as it has to. It is run once for a version of
    the library, of torch and of swift_rm. Raises UntestedVersion if it fails; with ``SWIFT_RM_UNTESTED=1`` in the environment
    that is a warning.
    """
    found = version or installed(tested.library)
    reason = None if tested.holds(found) else _verdict(tested.library, found, check)
    if reason is None:
        return found
    message = (
        f"{tested.library} {found} was never tested with swift-rm {__version__}, and its check at first use failed: {reason}"
        f"; tested are {tested.oldest} to {tested.newest}"
    )
    if os.environ.get(OVERRIDE) != "1":
        raise UntestedVersion(f'{message}: pip install "{tested.library}=={tested.newest}" ({OVERRIDE}=1 goes on all the same)')
    _warn_once(f"{message}; {OVERRIDE}=1 goes on all the same, and rewards may be wrong")
    return found


@functools.cache
def installed(library: str) -> str:
    """Return the version of a distribution that is installed; raise importlib.metadata.PackageNotFoundError if it is not."""
    return metadata.version(library)


def memory_file() -> Path:
    """Return the file that remembers which untested versions passed: in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "swift-rm" / "checked_versions.json"


def check_transformers() -> None:
    """Check an untested version of transformers, once: whoever reads states while something else generates calls this first.

    Raises UntestedVersion. The check needs what calls this, all of capture and decoding, so it is found by its name.
    """
    if TRANSFORMERS.holds(installed(TRANSFORMERS.library)):
        return
    with _lock:  # another thread waits for the verdict; this one is let through while it is made
        if not _checking:
            check_untested(
                TRANSFORMERS, lambda: importlib.import_module("swift_rm.parity.transformers_self_test").check_generation()
            )


_failed: dict[str, str] = {}
_lock = threading.RLock()
_checking: list[str] = []  # keys of checks under way, which use what they check


def _verdict(library: str, version: str, check: Callable[[], None]) -> str | None:
    """Return why a version fails its check, or None if it passes, now or at an earlier time."""
    key = f"{library} {version}, torch {installed('torch')}, swift-rm {__version__}"
    if key in _failed:
        return _failed[key]
    passed = _passed()
    if key in passed:
        return None
    _checking.append(key)
    try:
        check()
    except Exception as error:  # whatever an unknown version does wrong is a reason to refuse it
        _failed[key] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        return _failed[key]
    finally:
        _checking.remove(key)
    file = memory_file()
    with contextlib.suppress(OSError):  # what cannot be remembered is checked again
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, json.dumps([*passed, key], indent=1))
    return None


def _passed() -> list[str]:
    try:
        told = json.loads(memory_file().read_text(encoding="utf-8"))
    except (OSError, ValueError, RuntimeError):  # none yet, a broken one, or nobody's home
        return []
    return [key for key in told if isinstance(key, str)] if isinstance(told, list) else []


@functools.cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=4)
