"""Which versions of TRL the trainer is written for: it overrides methods that are not part of TRL's stable interface."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec

LOWEST, BELOW = (1, 16), (1, 17)
INSTALL = 'pip install "swift-rm[rl]"'


def check_trl() -> None:
    """Raise ImportError, with the line that installs it, if TRL or what it needs is missing, or if it is not a 1.16."""
    wanted = f"trl>={'.'.join(map(str, LOWEST))},<{'.'.join(map(str, BELOW))}"
    try:
        found = version("trl")
    except PackageNotFoundError:
        raise ImportError(f"HiPO trains with TRL, which is not installed: {INSTALL}") from None
    if missing := [name for name in ("trl", "accelerate", "datasets") if find_spec(name) is None]:
        raise ImportError(f"HiPO trains with TRL, whose {missing[0]} is not there: {INSTALL}")
    first, _, rest = found.partition(".")
    second = rest.partition(".")[0]
    numbers = (int(first), int(second)) if first.isdecimal() and second.isdecimal() else (0, 0)
    if not LOWEST <= numbers < BELOW:
        raise ImportError(f"HiPO is written for {wanted}, but trl {found} is installed: {INSTALL}")
