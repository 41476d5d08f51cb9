"""Which versions of TRL the trainer is written for: it overrides methods that are not part of TRL's stable interface."""

from __future__ import annotations

import hashlib
import inspect
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

from packaging.version import InvalidVersion, Version

from swift_rm.files.tested_versions import TestedRange, check_untested

TRL = TestedRange("trl", "1.16.0", "1.16.0")
WANTED = "trl>=1.16,<1.17"
INSTALL = 'pip install "swift-rm[rl]"'

METHODS = {  # of GRPOTrainer in trl 1.16.0: the digest of each method that the trainer builds on, and what to look for in another
    "_calculate_rewards": (
        "8ffa0c7ca9307c40", "does it still return the rewards of all processes, [N, functions], in their order?"
    ),
    "_generate_and_score_completions": (
        "8ad618f3882bc520", 'is output["advantages"] what the loss reads, and _logs["advantages"] what is shown?'
    ),
    "_generate": ("428bb9b5cd77ca6a", "are rollout_func's further lists still columns of the reward functions?"),
    "_tokenize_prompts": ("c5df2fec534b862d", "does it still return ids, images and further fields?"),
    "_compute_loss": ("765e782ef258696a", "are advantages [B, T] still taken as they are?"),
    "_prepare_inputs": ("d8617f874014c408", "is the batch still shuffled and split after the advantages are made?"),
    "_get_train_sampler": (
        "77de8ae531b5b0c4", "are the responses to a question still next to each other over all processes?"
    ),
}  # fmt: skip


def check_trl() -> None:
    """Raise ImportError, with the line that installs it, if TRL or what it needs is missing, is too old, or is not what it was.

    Of a version that is newer than those tested, the methods that the trainer overrides and relies on are compared, once, with
    those that it was written for; see :mod:`swift_rm.files.tested_versions`.
    """
    try:
        found = version("trl")
    except PackageNotFoundError:
        raise ImportError(f"HiPO trains with TRL, which is not installed: {INSTALL}") from None
    if missing := [name for name in ("trl", "accelerate", "datasets") if find_spec(name) is None]:
        raise ImportError(f"HiPO trains with TRL, whose {missing[0]} is not there: {INSTALL}")
    try:
        too_old = Version(found) < Version(TRL.oldest)
    except InvalidVersion:  # of a checkout: the check tells
        too_old = False
    if too_old:
        raise ImportError(f"HiPO is written for {WANTED}, but trl {found} is installed: {INSTALL}")
    check_untested(TRL, check_methods, found)


def check_methods() -> None:
    """Raise RuntimeError that names the first method of TRL's trainer that is not the one that HiPOTrainer was written for."""
    from trl import GRPOTrainer

    for name, (known, look) in METHODS.items():
        method = getattr(GRPOTrainer, name, None)
        if method is None or digest(method) != known:
            change = "is gone" if method is None else "has changed"
            raise RuntimeError(f"HiPO is written for {WANTED}, whose GRPOTrainer.{name} {change} ({look}): {INSTALL}")


def digest(method: Any) -> str:
    """Return a hash of a function's code, its comments and layout aside."""
    lines = (line.strip() for line in inspect.getsource(method).splitlines())
    code = "\n".join(line for line in lines if line and not line.startswith("#"))
    return hashlib.sha256(code.encode()).hexdigest()[:16]
