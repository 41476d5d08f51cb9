"""One entry makes a rule known everywhere: to ``select``, the command, the gateway, vLLM's server, evaluations and pages."""

from typing import get_args

import numpy as np
import pytest

from swift_rm.cli.main import build_parser
from swift_rm.evaluation.rule_curves import rule_curves
from swift_rm.evaluation.rule_outcome import SCORES, VOTES, chosen
from swift_rm.gateway.app.question_html import RULE_TEXTS as SHOWN
from swift_rm.gateway.request.model_names import rule_of_name
from swift_rm.report.evaluation_table import CURVES
from swift_rm.report.plots.matplotlib_figures import LOOKS
from swift_rm.report.question_summary import MAIN_RULES
from swift_rm.report.report_page import RULES as EXPLAINED
from swift_rm.reward.evaluation_results import REPORTED_RULES
from swift_rm.selection.rule_table import (
    DEFAULT_EVALUATED,
    DEFAULT_RULE,
    EVALUATED_BY_REWARD,
    MAIN_EVALUATED,
    RULE_TABLE,
    RULES,
    SERVED_RULES,
    ServedRule,
)
from swift_rm.selection.rules import select

EVALUATED = [rule for rule in RULE_TABLE if rule.evaluated]


@pytest.mark.parametrize("rule", RULE_TABLE, ids=RULES)
def test_a_rule_is_known_wherever_people_choose_one(rule):
    external = [0.0, 0.0] if rule.external else None
    assert select(rule.name, [0.0, 1.0], ["a", "a"], external).index in (0, 1)
    command = ["best-of-n", "--model", "m", "--reward-model", "r", "--select", rule.name, "question"]
    assert build_parser().parse_args(command).select == rule.name
    assert rule.words
    if not rule.external:
        assert SHOWN[rule.name] == rule.words
        assert rule_of_name(f"swift-{rule.name}-8", "plain").rule == rule.name


def test_the_served_rules_are_those_without_a_second_model():
    assert get_args(ServedRule) == SERVED_RULES == tuple(rule.name for rule in RULE_TABLE if not rule.external)
    assert DEFAULT_RULE in SERVED_RULES


@pytest.mark.parametrize("rule", EVALUATED, ids=[rule.evaluated for rule in EVALUATED])
def test_an_evaluated_rule_has_curve_choice_words_and_look(rule):
    answers, labels = [["a", "b", "a", "c"]], np.array([[1.0, 0.0, 1.0, 0.0]])
    scores = np.array([[0.1, 2.0, 0.3, -1.0]])
    assert rule.evaluated in rule_curves(answers, labels, {"swift": scores})
    assert SCORES[rule.evaluated] == ("swift" if rule.by_reward else None)
    assert (rule.evaluated in VOTES) == rule.elects
    assert chosen(rule.evaluated, scores[0], answers[0]) == select(rule.name, scores[0], answers[0]).index
    assert EXPLAINED[rule.evaluated] == rule.evaluated_words
    assert rule.evaluated in LOOKS


def test_what_is_shown_first_is_the_main_rules():
    assert MAIN_EVALUATED[0] == DEFAULT_EVALUATED == "swift_shrunk"
    assert MAIN_RULES[: len(MAIN_EVALUATED)] == MAIN_EVALUATED
    assert set(MAIN_EVALUATED) <= set(CURVES)
    assert MAIN_EVALUATED == REPORTED_RULES  # the room of reward lies below that of selection
    assert set(MAIN_EVALUATED) < set(EVALUATED_BY_REWARD)
