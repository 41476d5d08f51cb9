"""Model names that choose a rule: swift-best-of-16, swift-vote-8; a plain name passes through."""

from __future__ import annotations

import re
from dataclasses import dataclass

from swift_rm.gateway.request.errors import GatewayError
from swift_rm.selection.rule_table import SERVED_RULES

EXAMPLES = ("swift-best-of-4", "swift-best-of-16", "swift-shrunk-16", "swift-vote-8", "swift-vote-16")
_NAMED = re.compile(r"swift-(?P<rule>[a-z]+(?:-of)?)-(?P<n>[1-9][0-9]{0,5})", re.ASCII)


@dataclass(frozen=True)
class RuleChoice:
    """What a model's name chooses: a rule of :mod:`swift_rm.selection.rules` and N, or neither."""

    rule: str | None = None
    n: int | None = None


def listed_models(plain: str, most: int, rewards: bool) -> list[str]:
    """Return the names that a list of models shows: the plain one and, with ``rewards``, examples with at most ``most``."""
    return [plain, *(name for name in EXAMPLES if rewards and int(name.rpartition("-")[2]) <= most)]


def rule_of_name(name: str, plain: str) -> RuleChoice:
    """Return what the name of a model chooses; raise GatewayError, status 404, for one that is not there."""
    if name == plain:
        return RuleChoice()
    found = _NAMED.fullmatch(name)
    rule = found["rule"].removesuffix("-of") if found else None
    if found is None or rule not in SERVED_RULES or (found["rule"].endswith("-of") and rule != "best"):
        raise GatewayError(
            404,
            f"the model {name[:100]!r} is not there: ask for {plain!r}, or for the best of N of it as swift-best-of-N or "
            f"swift-RULE-N, where RULE is {', '.join(SERVED_RULES)}",
            param="model",
            code="model_not_found",
        )
    return RuleChoice(rule, int(found["n"]))
