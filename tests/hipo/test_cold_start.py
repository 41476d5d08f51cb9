from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace

import pytest

from swift_rm.hipo import Template
from swift_rm.hipo.cold_start.base_response import BaseResponse, read_native
from swift_rm.hipo.cold_start.cold_rows import ColdRow, read_rows, write_rows
from swift_rm.hipo.cold_start.judge_text import RuleExplainer
from swift_rm.hipo.cold_start.mode_choice import choose_mode, random_mode
from swift_rm.hipo.cold_start.pipeline import build, check_explainer
from swift_rm.models.load import load_language_model
from swift_rm.records.rollouts import Rollout
from swift_rm.reward.calibration import Calibration
from swift_rm.reward.reward_model import SwiftConfig, SwiftRewardModel
from swift_rm.tasks.task import Question

TERSE = RuleExplainer("terse")
PROMPT = [{"role": "user", "content": "27+15"}]


@pytest.fixture(scope="module")
def tokenizer():
    return load_language_model(progress=False)[1]


@pytest.fixture
def said(tokenizer):
    """Make rollouts of texts such as ``"<answer>42</answer>"``."""

    def make(text, label=1, question="27+15", finish="stop", **fields):
        ids = tokenizer(text + ("<eos>" if finish == "stop" else ""), add_special_tokens=False)["input_ids"]
        extra = {"reference": "42", "question": {"steps": 2}, "probability": fields.pop("probability", None)}
        return Rollout(question, PROMPT, [1, 3], text, ids, finish, label=label, extra=extra, **fields)

    return make


def made(rollouts, tokenizer, **options):
    return build(rollouts, tokenizer, **{"explain": TERSE, "random_share": 0.0, **options})


LONG, SHORT = "<think>now 27+15=42, </think><answer>42</answer>", "<think>27+15=42</think><answer>42</answer>"
AT_ONCE = "<answer>42</answer>"


@pytest.mark.parametrize(
    ("p_on", "p_off", "mode"),
    [(1, 0, "on"), (0, 1, "off"), (0.5, 0.5, "off"), (0.6, 0.5, "on"), (0.59, 0.5, "off"), (0.7, 0.6, "on"), (0.0, 0.0, "off")],
)
def test_the_higher_pass_rate_wins_and_ties_go_to_think_off(p_on, p_off, mode):
    assert choose_mode(p_on, p_off) == mode
    assert choose_mode(0.5, 0.5, delta=0.0) == "off"


def test_a_share_of_the_questions_gets_a_random_mode_by_seed_and_id():
    drawn = [random_mode(f"q{i}", 3) for i in range(20_000)]
    chosen = [mode for mode in drawn if mode is not None]
    assert random_mode("half a pair: \ud800", 3, share=1.0) in ("on", "off")
    assert 150 < len(chosen) < 250 and 0.35 < chosen.count("on") / len(chosen) < 0.65
    assert drawn == [random_mode(f"q{i}", 3) for i in range(20_000)] != [random_mode(f"q{i}", 4) for i in range(20_000)]
    assert {random_mode(f"q{i}", share=0.0) for i in range(100)} == {None}


@pytest.mark.parametrize(
    ("text", "mode", "read"),
    [
        (SHORT, "on", BaseResponse("27+15=42", "42")),
        ("27+15=42</think><answer>42", "on", BaseResponse("27+15=42", "42")),  # the opening tag stood in the prompt
        ("<think>1</think>42", "on", BaseResponse("1", "42")),
        ("<think></think>42", "on", BaseResponse("", "42")),
        ("<think>wait 27+15=42, </think>42", "on", BaseResponse("wait 27+15=42, ", "42")),  # its tokens end in white space
        (AT_ONCE, "off", BaseResponse(None, "42")),
        ("27+15=42", "off", BaseResponse(None, "27+15=42")),
        ("<think></think>42", "off", BaseResponse(None, "42")),
        (AT_ONCE, "on", None),
        (SHORT, "off", None),
        ("<think>1", "on", None),
        ("<think>1</think>", "on", None),
        ("<think>1</think><answer></answer>", "on", None),
        ("2<think>1</think>42", "on", None),
        ("<think>1</think><think>1</think>42", "on", None),
        ("<think>1<answer>2</answer></think>42", "on", None),
        ("<think>1</think><answer>4</answer><answer>5</answer>", "on", None),
        ("27+15=42<answer>42</answer>", "off", None),  # worked out beside the answer: not answered at once
        ("<answer>42</answer>7", "off", None),
        ("42</answer>", "off", None),
        ("<judge>1</judge>42", "off", None),
        ("<think_off>42", "off", None),
        ("4<question>2", "off", None),
        ("", "off", None),
    ],
)
def test_native_responses_are_read_and_never_guessed(said, tokenizer, text, mode, read):
    assert read_native(said(text), mode, tokenizer, Template()) == read
    assert read_native(said(text, finish="length"), mode, tokenizer, Template()) is None


def test_the_shortest_correct_response_of_the_better_mode_is_kept(said, tokenizer):
    on = [said(LONG), said(SHORT), said("<think>1</think><answer>9</answer>", 0), said(LONG)]
    cold = made({"on": on, "off": [said(AT_ONCE), *[said("<answer>7</answer>", 0)] * 3]}, tokenizer)
    completion = "<judge>72</judge><think_on><think>27+15=42</think><answer>42</answer>"
    assert cold.rows == (ColdRow("27+15", PROMPT, completion, "on", 0.75, 0.25, "2 steps", "42"),)
    assert {name: count for name, count in cold.counts.items() if count} == {
        "questions": 1, "kept": 1, "on": 1, "responses": 8,
    }  # fmt: skip


def test_a_tie_is_taught_without_thinking(said, tokenizer):
    cold = made({"on": [said(SHORT)] * 2, "off": [said(AT_ONCE)] * 2}, tokenizer)
    assert cold.rows[0].completion == "<judge>99</judge><think_off><answer>42</answer>" and cold.counts["ties"] == 1
    assert made({"on": [said(SHORT)] * 2, "off": [said(AT_ONCE), said(AT_ONCE, 0)]}, tokenizer, delta=0.6).rows[0].mode == "off"


def test_a_mode_without_a_correct_response_gives_way_to_the_other(said, tokenizer):
    ways = {"on": [said(SHORT), *[said(SHORT, 0)] * 19], "off": [said(AT_ONCE, 0)] * 20}
    cold = made(ways, tokenizer)  # 0.05 against 0 is a tie
    assert (cold.rows[0].mode, cold.counts["ties"], cold.counts["other_mode"]) == ("on", 1, 1)
    malformed = made({"on": [said("<think>1", 1)], "off": [said(AT_ONCE), said(AT_ONCE, 0)]}, tokenizer)
    assert malformed.rows[0].mode == "off" and malformed.counts["malformed"] == 1
    assert made(ways, tokenizer, random_share=1.0).rows[0].mode == "on"  # whichever chance chose


def test_questions_without_a_correct_response_are_dropped_and_counted(said, tokenizer):
    other = [replace(said(AT_ONCE), question_id="b")], [replace(said(SHORT), question_id="b")]
    cold = made({"on": [said(SHORT, 0), *other[1]], "off": [said(AT_ONCE, 0), *other[0]]}, tokenizer)
    assert [row.question_id for row in cold.rows] == ["b"]
    assert (cold.counts["questions"], cold.counts["kept"], cold.counts["dropped"]) == (2, 1, 1)


def test_random_modes_are_counted_and_both_come(said, tokenizer):
    ids = [f"q{i}" for i in range(40)]
    ways = {"on": [said(SHORT, question=i) for i in ids], "off": [said(AT_ONCE, question=i) for i in ids]}
    cold = made(ways, tokenizer, random_share=1.0)
    assert cold.counts["random"] == 40 and cold.counts["ties"] == 0 and 8 < cold.counts["on"] < 32
    assert [row.mode for row in cold.rows] == [random_mode(i, 0, 1.0) for i in ids]


def test_one_mode_alone_and_no_judge_block(said, tokenizer):
    cold = made({"on": [said(LONG), said(SHORT)]}, tokenizer, judged=False)
    assert cold.rows[0].completion == "<think_on>" + SHORT
    assert (cold.rows[0].p_on, cold.rows[0].p_off) == (1.0, None)
    assert made({"on": [said(SHORT)]}, tokenizer).rows[0].completion == "<judge>9</judge><think_on>" + SHORT


def test_pass_rates_from_probabilities_where_there_are_no_labels(said, tokenizer):
    on = [
        said(SHORT, None, probability=0.5),
        said(LONG, None, probability=0.9),
        said(SHORT, None, "27+15", "length", probability=0.7),
    ]
    off = [said(AT_ONCE, None, probability=0.25)]
    cold = made({"on": on, "off": off}, tokenizer, source="swift")
    assert cold.rows[0].p_on == pytest.approx(1.4 / 3)  # what was cut has no answer to be right with
    assert (cold.rows[0].p_off, cold.rows[0].mode) == (0.25, "on")
    strict = made({"on": on, "off": off}, tokenizer, source="swift", at_least=0.6)
    assert "now 27+15" in strict.rows[0].completion
    both = made({"on": [said(SHORT, 0, probability=0.9), *on[1:2]], "off": off}, tokenizer, source="both")
    assert both.rows[0].p_on == 0.45
    assert made({"on": on, "off": [said(AT_ONCE, 1)]}, tokenizer).counts["unjudged"] == 1


def test_a_reward_is_made_a_probability_by_the_reward_model(said, tokenizer):
    rm = SwiftRewardModel(SwiftConfig(4, (-1,), calibration=asdict(Calibration("temperature", slope=0.5))))
    ways = {"on": [said(SHORT, None, reward=2.0)], "off": [said(AT_ONCE, None, reward=-2.0)]}
    cold = made(ways, tokenizer, source="swift", rm=rm)
    assert cold.rows[0].p_on == pytest.approx(0.7310586) and cold.rows[0].p_off == pytest.approx(0.2689414)
    with pytest.raises(ValueError, match="none of the 2 responses has a probability, or a reward beside a reward model"):
        made(ways, tokenizer, source="swift")


def test_what_cannot_be_built_is_said_in_one_sentence(said, tokenizer):
    ways = {"on": [said(SHORT)], "off": [said(AT_ONCE)]}
    for options, error in [
        ({"source": "guesses"}, "'labels', 'swift' .* got 'guesses'"),
        ({"delta": 2}, "shares between 0 and 1 .* got 2, 0.0 and 0.5"),
        ({"explain": RuleExplainer()}, "cannot write the explanation 'thinking first was right in 1 of 1 tries"),
        ({"explain": lambda facts: "</judge>"}, "the judge text holds the tag '</judge>'"),
        ({"questions": [Question("x", "y", None)]}, "question '27\\+15' of the rollouts is not among the 1 questions"),
    ]:
        with pytest.raises(ValueError, match=error):
            made(ways, tokenizer, **options)
    for rollouts, error in [
        ({}, "'on' and 'off', or one of them, got \\[\\]"),
        ({"maybe": ways["on"]}, "got \\['maybe'\\]"),
        ({"on": [], "off": []}, "no think-on responses"),
        ({**ways, "on": [*ways["on"], said(SHORT, question="z")]}, "question 'z' has think-on but no think-off responses"),
        ({**ways, "on": [replace(ways["on"][0], prompt="other")]}, "'27\\+15' have different prompts"),
        ({"on": [said(SHORT, None)]}, "none of the 1 responses has a label, where pass rates come from 'labels'"),
    ]:
        with pytest.raises(ValueError, match=error):
            made(rollouts, tokenizer)
    given = made({**ways, "on": [replace(ways["on"][0], prompt="other")]}, tokenizer, questions=[Question("27+15", "p", "41")])
    assert (given.rows[0].prompt, given.rows[0].reference, given.rows[0].difficulty) == ("p", "41", None)


def test_rows_are_written_and_read_back(tmp_path):
    rows = [ColdRow("a", PROMPT, "x\u2028", "on", 1.0, 0.5, "2 steps", "42"), ColdRow("b", "text", "y", "off")]
    path = tmp_path / "cold.jsonl"
    write_rows(path, rows)
    assert read_rows(path) == rows
    for line, error in [
        ('{"question_id": "a"}', ":1: not a row to train on: it has no prompt, no completion, no mode, only"),
        ('{"question_id": "a", "prompt": 1, "completion": "", "mode": "on"}', ":1: 'prompt' must be text or a list"),
        ('{"question_id": "a", "prompt": "", "completion": "", "mode": "up"}', "'on' or 'off', got 'up'"),
        ('{"question_id": "a", "prompt": "", "completion": "", "mode": "on", "p_on": true}', "'p_on' must be a number or null"),
        ('{"question_id": "a", "prompt": "", "completion": "", "mode": "on"}', "'prompt' must be text or chat messages of role"),
        ('{"question_id": "a", "prompt": [1], "completion": "", "mode": "on"}', "messages of role and content, got \\[1\\]"),
        ('{"question_id": "a", "prompt": [{"role": "user"}], "completion": "", "mode": "on"}', "messages of role and content"),
        (r'{"question_id": "a", "prompt": "p", "completion": "\ud800", "mode": "on"}', ":1: 'completion' is no Unicode text"),
        ("", "holds no records"),
    ]:
        path.write_text(line)
        with pytest.raises(ValueError, match=error):
            read_rows(path)


def test_what_an_endpoint_says_and_the_tokenizer_cannot_write_is_replaced_by_the_rule(said, tokenizer):
    """One such reply does not end the work that was paid for; a rule that cannot be written is found before any work."""

    class Endpoint:
        rule, fallbacks = TERSE, Counter()

        def __call__(self, facts):
            return "\u2603 snow"

        def instead(self, facts, reason):
            self.fallbacks[reason] += 1
            return self.rule(facts)

    cold = made({"on": [said(LONG)], "off": [said(AT_ONCE, 0)]}, tokenizer, explain=Endpoint())
    assert cold.rows[0].completion.startswith("<judge>90</judge>") and cold.counts["rule_text"] == 1
    check_explainer(Endpoint(), tokenizer, Template())
    check_explainer(RuleExplainer(), tokenizer, Template(judge=None))
    with pytest.raises(ValueError, match="cannot write the explanation 'thinking first was right in 7 of 8 tries"):
        check_explainer(RuleExplainer(), tokenizer, Template())
