"""The table of selection rules: names, what each needs, and the words in which pages say what it chooses.

Everything that lists rules takes them from here: ``select=``, the command, the gateway's names and page, vLLM's replies,
evaluations, comparisons, charts and cards. A new rule is an entry here, its choice in :func:`swift_rm.selection.rules.select`
and, if it is evaluated, its curve in :mod:`swift_rm.evaluation.rule_curves`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

DEFAULT_RULE = "shrunk"  # what `best_of_n` and the command choose by; benchmarks/decoding/over_optimisation.py has the evidence
ServedRule = Literal["shrunk", "best", "majority", "vote", "borda"]  # those that need no second model, for type checkers


@dataclass(frozen=True)
class Rule:
    """A selection rule.

    ``words`` say what it chooses to somebody who asks a question, ``evaluated_words`` to a reader of an evaluation, where it is
    called ``evaluated`` (None: it is not there). Of an ``elects`` rule candidates vote for answers; an ``external`` one fuses
    the rewards with those of a second model; ``main`` rules are those that tables, charts and cards show first.
    """

    name: str
    words: str
    evaluated: str | None = None
    evaluated_words: str = ""
    elects: bool = True
    by_reward: bool = True
    external: bool = False
    main: bool = False


RULE_TABLE = (
    Rule(
        "shrunk", "the answer with the best mean reward; few candidates count less",
        "swift_shrunk", "the answer with the highest shrunk mean of sigmoid(reward); the default", main=True,
    ),
    Rule("best", "the candidate with the highest reward", "swift_best", "the highest reward", elects=False, main=True),
    Rule("majority", "the answer that most candidates gave", "majority", "the most frequent answer", by_reward=False),
    Rule(
        "vote", "the answer with the largest sum of probabilities",
        "swift_vote", "the answer with the highest sum of sigmoid(reward)", main=True,
    ),
    Rule("borda", "the answer with the most votes, by rank", "swift_borda", "a vote weighted by the reward's rank"),
    Rule("rank", "the best rank of two rewards together", elects=False, external=True),
    Rule("scale", "the best sum of two rewards, each scaled", elects=False, external=True),
)  # fmt: skip
RULES = tuple(rule.name for rule in RULE_TABLE)
EXTERNAL_RULES = tuple(rule.name for rule in RULE_TABLE if rule.external)  # those that fuse with the rewards of a second model
SERVED_RULES = tuple(rule.name for rule in RULE_TABLE if not rule.external)

_BY_REWARD = sorted(
    (rule for rule in RULE_TABLE if rule.by_reward and rule.evaluated),
    key=lambda rule: (not rule.main, rule.name == DEFAULT_RULE),
)
# Their names in evaluations: those that go by the reward, as tables list them, the default after the other main ones; and the
# main ones, the default first.
EVALUATED_BY_REWARD = tuple(rule.evaluated or "" for rule in _BY_REWARD)
MAIN_EVALUATED = tuple(rule.evaluated for rule in RULE_TABLE if rule.main and rule.evaluated)
MAIN_IN_TABLES = tuple(rule.evaluated or "" for rule in _BY_REWARD if rule.main)
DEFAULT_EVALUATED = next(rule.evaluated or "" for rule in RULE_TABLE if rule.name == DEFAULT_RULE)
EVALUATED_WORDS = {rule.evaluated: rule.evaluated_words for rule in RULE_TABLE if rule.evaluated}
EVALUATED_VOTES = {rule.evaluated: rule.name for rule in RULE_TABLE if rule.evaluated and rule.elects}
