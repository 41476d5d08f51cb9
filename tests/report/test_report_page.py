import math
import re
from itertools import pairwise

import pytest

from swift_rm.evaluation.evaluate import evaluate
from swift_rm.files.text import visible
from swift_rm.report.html_page import POLICY
from swift_rm.report.question_summary import by_kind, probability, summarise_questions
from swift_rm.report.report_page import About, render_report
from swift_rm.selection.rules import select
from tests.report.pages import HOSTILE, UNSEEN, Page

TAGS = {
    "script",
    "iframe",
    "object",
    "embed",
    "link",
    "base",
    "form",
    "input",
    "button",
    "img",
    "audio",
    "video",
    "animate",
    "set",
}


def question(make_rollout, name, answers, labels, rewards, **fields):
    return [
        make_rollout(name, answer=answer, label=int(label), reward=reward, response=f"{name} says {answer}", **fields)
        for answer, label, reward in zip(answers, labels, rewards, strict=True)
    ]


@pytest.fixture
def groups(make_rollout):
    """One question of each kind, and a second that was missed, with less certainty."""
    return [
        question(make_rollout, "kept", "aab", "110", [2.0, 1.0, -1.0]),
        question(make_rollout, "unsure", "abc", "010", [0.5, 0.25, -3.0]),
        question(make_rollout, "lost", "abb", "000", [1.0, 0.0, 0.0]),
        question(make_rollout, "missed", "abb", "100", [-2.0, 3.0, 1.0]),
        question(make_rollout, "gained", "aab", "001", [-3.0, -3.0, 4.0]),
    ]


def figures(groups, **more):
    return {**evaluate([one for group in groups for one in group], bootstrap=50).to_dict(), "seconds": 1.0, **more}


def render(groups, budget=14_000_000, files=("scored.jsonl",), **more):
    return render_report(figures(groups, **more), groups, About(list(files), "my/reward"), budget=budget)


def words(html):
    return " ".join(re.sub("<[^>]+>", " ", html).replace("\u2007", " ").split())


def test_choices_are_those_of_selection_and_kinds_follow(groups):
    judged = summarise_questions(groups)
    for one, group in zip(judged, groups, strict=True):
        rewards, answers = [r.reward for r in group], [r.answer for r in group]
        for rule, name in {"swift_shrunk": "shrunk", "swift_best": "best", "swift_vote": "vote", "majority": "majority"}.items():
            assert one.choices[rule] == select(name, rewards, answers).index
        assert [group[place].reward for place in one.ranked] == sorted(rewards, reverse=True)
    assert [one.kind for one in judged] == ["kept", "missed", "lost", "missed", "gained"]
    ordered = by_kind(judged)
    assert [one.candidates[0].question_id for one in ordered["missed"]] == ["missed", "unsure"]  # the most certain first
    assert (judged[3].right, judged[3].best_right, judged[3].certainty) == (1, 0, 3.0)
    assert list(judged[0].choices) == ["swift_shrunk", "swift_best", "swift_vote", "majority", "mean_logprob"]


def test_the_answers_have_what_each_rule_goes_by(groups):
    (first, second) = summarise_questions(groups)[3].answers()
    sigmoid = [1 / (1 + math.exp(-reward)) for reward in (3.0, 1.0, -2.0)]
    shrink = 2 * math.sqrt(3)
    assert (first.answer, first.responses, first.right, first.highest) == ("b", 2, 0, 3.0)
    assert first.total == pytest.approx(sigmoid[0] + sigmoid[1])
    assert first.shrunk == pytest.approx((sigmoid[0] + sigmoid[1]) / (2 + shrink))
    assert (second.answer, second.right) == ("a", 1)
    assert second.shrunk == pytest.approx(sigmoid[2] / (1 + shrink))


def test_the_page_starts_with_the_main_figure_and_what_was_missed(groups):
    html, shown = render(groups)
    said = words(html[html.index("<body>") :])
    start = "Of 5 questions with 3 responses each, swift_shrunk, the default rule, answers 40.0 % ["
    assert said.index("Evaluation of scored.jsonl") < said.index(start) < said.index("Can the reward be trusted?")
    assert "reward model my/reward" in said
    assert "swift_shrunk missed 2 for which a right candidate was there; on 1 every candidate is wrong." in said
    order = [said.index(title) for title in ("Wrong, although", "Right, where the majority", "Right, as the", "Wrong, as every")]
    assert order == sorted(order)
    assert "Wrong, although a right candidate was there: 2 questions" in said
    assert "1 +3.00 95.3 % b wrong \u2717 stop chosen by swift_shrunk, swift_best, swift_vote, majority missed says b" in said
    assert "3 \u22122.00 11.9 % a right \u2713 stop" in said
    assert (shown.questions, shown.candidates, shown.shaded, shown.questions_left_out) == (5, 15, 0, 0)
    assert "swift-rm score --tokens" in said  # how to get the shading
    row = re.search(r'<tr><th scope="row"><a href="#q4">.*?</tr>', html)[0]
    assert words(row) == "missed 1 \u2717 b \u2717 b \u2717 b \u2717 b \u2713 a 95.3 % rank 3"


def test_every_chart_is_there_with_its_numbers_and_what_is_not_is_said(groups):
    layers = [{"layer": k, **{state: {"value": 0.6, "low": 0.5, "high": 0.7} for state in ("mean", "last")}} for k in (0, 1)]
    html, _ = render(groups, layers=layers)
    page = Page(html)
    figures_ = [attributes["id"] for tag, attributes in page.elements if tag == "figure"]
    assert figures_ == [
        f"chart-{name}" for name in ("accuracy_by_n", "accuracy_by_tokens", "differences", "calibration", "auroc_by_layer")
    ]
    assert html.count("The numbers of this chart") == 5
    assert "train --label-curve" in html
    assert "probe --out" not in html


def test_headings_captions_and_links_are_in_order(groups):
    page = Page(render(groups)[0])
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(later <= before + 1 for before, later in pairwise(levels))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("table") == tags.count("caption")
    assert all("scope" in attributes for tag, attributes in page.elements if tag == "th")
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    assert {f"#q{number}" for number in range(1, 6)} | {"#main", "#missed"} <= set(links)
    assert all(link.startswith("#") and link[1:] in ids for link in links)


def with_tokens(make_rollout, questions, n, length):
    tokens = {"text": [" ab<", "\n"] * (length // 2), "gate": [1.0, None] * (length // 2), "reward": [2.0, None] * (length // 2)}
    return [
        [
            make_rollout(f"q{q}", label=(q + k) % 3 == 0, answer=str(k % 3), reward=math.sin(7 * q + k), prompt="why? " * 200,
                         response=" ab<\n" * (length // 2), extra={"tokens": tokens})
            for k in range(n)
        ]
        for q in range(questions)
    ]  # fmt: skip


@pytest.mark.parametrize("budget", [150_000, 300_000, 500_000, 14_000_000])
def test_the_page_keeps_to_its_budget_and_counts_what_it_leaves_out(make_rollout, budget):
    groups = with_tokens(make_rollout, 30, 8, 200)
    html, shown = render(groups, budget)
    assert len(html.encode()) <= budget
    page = Page(html)
    questions = [attributes for tag, attributes in page.elements if tag == "details" and attributes.get("class") == "q"]
    candidates = [attributes for tag, attributes in page.elements if tag == "details" and attributes.get("class") == "c"]
    assert len(questions) == shown.questions == 30 - shown.questions_left_out
    assert len(candidates) == shown.candidates == 8 * shown.questions - shown.candidates_left_out
    assert html.count('<b class="cut">') >= shown.shortened
    links = {attributes["href"][1:] for tag, attributes in page.elements if tag == "a"}
    assert links <= {attributes.get("id") for _, attributes in page.elements}
    said = words(html)
    for count, what in (
        (shown.questions_left_out, "questions are left out"), (shown.candidates_left_out, "candidates are left out"),
        (shown.characters_left_out, "characters in all"),
    ):  # fmt: skip
        assert (f"{count:,} {what}" in said) == (count > 0)
    for row in re.findall(r"<details class=\"q\">.*?</div></details>", html, re.S):
        assert "chosen by swift_shrunk" in row  # whatever is left out, not the choice
    if budget == 14_000_000:
        assert (shown.candidates, shown.shaded, shown.shortened) == (240, 240, 0)
    elif budget >= 300_000:
        assert 0 < shown.shaded < 240
        assert len(html.encode()) > 0.8 * budget  # the room is used
    if budget == 150_000:
        assert shown.questions_left_out > 0


def test_a_question_too_large_for_the_page_goes_alone(make_rollout):
    groups = with_tokens(make_rollout, 3, 2, 20)
    turns = [{"role": "user", "content": "x" * 500}] * 5000
    groups.insert(0, [make_rollout("huge", label=k, answer=str(k), reward=1.0 - k, prompt=turns) for k in range(2)])
    html, shown = render(groups, 300_000)
    assert len(html.encode()) < 300_000
    assert (shown.questions, shown.questions_left_out) == (3, 1)


def test_without_room_for_any_question_all_are_counted_and_no_link_is_dead(groups):
    html, shown = render(groups, 1000)
    assert (shown.questions, shown.candidates, shown.questions_left_out) == (0, 0, 5)
    assert "Wrong, although a right candidate was there: 2 questions, 0 of them below" in words(html)
    page = Page(html)
    ids = {attributes.get("id") for _, attributes in page.elements}
    assert {attributes["href"][1:] for tag, attributes in page.elements if tag == "a"} <= ids


def test_main_candidates_are_shaded_before_others(make_rollout):
    html, shown = render(with_tokens(make_rollout, 30, 8, 200), 500_000)
    cards = re.findall(r'<details class="c".*?</details>', html, re.S)
    chosen = [card for card in cards if "chosen by" in card]
    assert all('<i class="r' in card for card in chosen)
    assert len(chosen) < shown.shaded or shown.shaded < len(cards)


def test_records_without_rewards_have_a_page_too(make_rollout):
    groups = [question(make_rollout, name, "aab", "001", [None] * 3, logprob_mean=None) for name in ("x", "y")]
    html, _ = render(groups)
    said = words(html)
    assert "a majority vote answers 0.0 % [0.0, 0.0] right. The records have no rewards" in said
    assert "swift_shrunk" not in said
    assert "Wrong, although a right candidate was there: 2 questions" in said


def test_one_question_has_a_page_too(groups):
    said = words(render(groups[3:4])[0])
    assert "Of 1 question with 3 responses each" in said
    assert "one question has no interval to speak of" in said
    assert "swift_shrunk missed 1" in said


def test_one_is_not_plural(make_rollout):
    html, _ = render([[make_rollout("q", answer="a", label=0, reward=1.0)]])
    said = words(html)
    assert "1 question \u00d7 1 response of" in said
    assert "What each rule makes of 1 response a question" in said
    assert "as every candidate is: 1 question No rule" in said
    assert not re.search(r"\b1 (questions|candidates|further) ", said)


def test_every_box_that_scrolls_has_a_name(make_rollout):
    html, _ = render([[make_rollout("q", answer="a", label=1, reward=1.0, response="x" * 5000)]])
    boxes = [attributes for _, attributes in Page(html).elements if "tabindex" in attributes]
    assert all(box.get("role") == "group" and box["aria-label"] for box in boxes if "prompt" not in box.get("class", ""))
    assert {"response", "Paired differences in accuracy"} <= {box.get("aria-label") for box in boxes}


def test_in_a_narrow_window_the_caption_says_how_lines_look(groups):
    html, _ = render(groups)
    assert ".key{display:none}" in html and "@media (max-width:34rem){.key{display:inline}}" in html
    assert re.search(r'class="key"> The lines: <bdi>.*swift_shrunk [\d.]+: solid line with circles;.*</bdi>', html)


def test_a_response_nobody_can_score_is_last_and_never_chosen(make_rollout):
    group = question(make_rollout, "q", ["a", None, "b"], "001", [None, 1.0, -1.0], extra={"flag": "marker_missing"})
    (one,) = summarise_questions([group])
    assert one.ranked == [1, 2, 0]
    assert one.choices["swift_shrunk"] == 2
    said = words(render([group])[0])
    assert "1 +1.00 73.1 % no answer wrong \u2717 stop, flag marker missing chosen by swift_best" in said
    assert "3 \u2013 a wrong \u2717 stop, flag marker missing" in said
    assert math.isnan(probability(group[0]))
    assert probability(make_rollout(reward=0.0, extra={"probability": 0.75})) == 0.75


def hostile(make_rollout):
    every = "".join([*HOSTILE, *UNSEEN, "\u05e9\u05dc\u05d5\u05dd"])
    tokens = {"text": [*HOSTILE, *UNSEEN], "gate": [1.0] * 21, "reward": [1.0] * 20 + [-1e308]}
    fields = {
        "prompt": [{"role": every, "content": every}], "response": every * 3, "finish_reason": every, "model": {"id": every},
        "extra": {"flag": every, "reference": every, "tokens": tokens},
    }  # fmt: skip
    groups = [
        [make_rollout(f"{every}{q}", answer=f"{every}{k}", label=k == q, reward=float(k), **fields) for k in range(2)]
        for q in range(2)
    ]
    return groups, every


def test_whatever_a_model_says_is_text(make_rollout):
    groups, every = hostile(make_rollout)
    html, _ = render(groups, files=[every])
    page = Page(html)
    assert page.comments == 0
    assert not {tag for tag, _ in page.elements} & TAGS
    for _, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("src", "srcset", "action", "srcdoc") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
    assert {attributes.get("content") for tag, attributes in page.elements if tag == "meta"} >= {POLICY}
    style = "".join(page.texts["style"])
    assert not re.search(r"url\(|@import|http|//", style)
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u202a-\u202e\u2066-\u2069\ufeff]", html)
    html.encode()
    assert any(visible(every) in said for said in page.texts["p"])


@pytest.mark.browser
def test_a_browser_shows_the_report_and_runs_none_of_it(browse, make_rollout, tmp_path):
    groups, every = hostile(make_rollout)
    html, _ = render(groups)
    dom = Page(browse(tmp_path, html, "--dump-dom"))
    assert "hacked" not in "".join(dom.texts["title"])
    assert not {tag for tag, _ in dom.elements} & TAGS
    assert any(visible(every) in said for said in dom.texts["p"])  # in a closed <details>: the browser's search opens it
    ids = [attributes.get("id") for _, attributes in dom.elements]
    assert all(attributes["href"][1:] in ids for tag, attributes in dom.elements if tag == "a")
    assert [tag for tag, _ in dom.elements].count("svg") == html.count("<svg")
