import math
import re

import pytest

from swift_rm.files.text import visible
from swift_rm.report.html_page import POLICY
from swift_rm.report.token_view import DARK, GATE_STEPS, LIGHT, REWARD_STEPS, SHADES, colour, render_page
from swift_rm.report.token_view_data import CandidateView, PageView, QuestionView, TokenView
from tests.report.pages import HOSTILE, TAGS, UNSEEN, Page, read_png


def token(text="a", gate=0.5, reward=1.0, token_id=7):
    return TokenView(text, token_id, gate, reward)


def candidate(*tokens, reward=1.0, probability=0.75, **known):
    return CandidateView(list(tokens) or [token()], reward, probability, **known)


def question(*candidates, question_id="q1", prompt=((None, "2+2"),), total=None):
    return QuestionView(question_id, prompt, candidates, len(candidates) if total is None else total)


def render(*questions, title="the title", position="token", total=None):
    total = len(questions) if total is None else total
    return render_page(PageView(title, "a/base", "a/reward", position, questions, total))


def hostile_page():
    texts = [*HOSTILE, *UNSEEN]
    tokens = [token(text, token_id=i) for i, text in enumerate(texts)]
    every = "".join(texts)
    known = {"answer": every, "finish_reason": every, "flag": every, "label": 0}
    turns = [(None, every), (every, every)]
    page = PageView(every, every, every, "token", [question(candidate(*tokens, **known), question_id=every, prompt=turns)], 1)
    return render_page(page), texts


def test_whatever_a_model_says_is_text():
    html, texts = hostile_page()
    page = Page(html)
    assert page.comments == 0
    for tag, attributes in page.elements:
        assert set(attributes) <= TAGS[tag], (tag, attributes)
        assert re.fullmatch(r"#q\d+", attributes.get("href", "#q1"))
    assert [text for _, text in page.tokens] == [visible(text) for text in texts]
    assert page.texts["title"] == [visible("".join(texts))]
    assert "<script" not in html
    assert sum(tag == "style" for tag, _ in page.elements) == 1
    (style,) = page.texts["style"]
    assert not re.search(r"url\(|@import|http|//", style)
    html.encode()  # no surrogate is left
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u202a-\u202e\u2066-\u2069\ufeff]", html)


def test_the_page_is_forbidden_all_but_its_own_style():
    metas = [attributes for tag, attributes in Page(render(question(candidate()))).elements if tag == "meta"]
    assert metas[0] == {"charset": "utf-8"}
    assert metas[1] == {"http-equiv": "Content-Security-Policy", "content": POLICY}
    assert POLICY == "default-src 'none'; style-src 'unsafe-inline'"
    assert metas[2]["name"] == "viewport"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a b", "a b"), ("\x00", "\u2039U+0000\u203a"), ("\x1b[1m", "\u2039U+001B\u203a[1m"),
        ("\u202eab", "\u2039U+202E\u203aab"),
        ("\U000e0041", "\u2039U+E0041\u203a"), ("\u00a0", "\u2039U+00A0\u203a"),
        ("\u65e5\u05e9\u00e9\ufffd", "\u65e5\u05e9\u00e9\ufffd"),
    ],
)  # fmt: skip
def test_what_cannot_be_seen_gets_its_code_point(text, shown):
    assert visible(text) == shown


def test_line_ends_tabs_and_parts_of_characters_have_signs():
    tokens = [token(text) for text in ("a\n", "\n\n", "\tb", "", " c")]
    assert [text for _, text in Page(render(question(candidate(*tokens)))).tokens] == [
        "a\u23ce\n", "\u23ce\n\u23ce\n", "\u21e5\tb", "\u25cc", " c",
    ]  # fmt: skip


def test_a_token_carries_its_numbers_and_what_it_adds_and_those_sum_to_the_reward():
    tokens = [token("x", 0.25, 8.0, 11), token("y", 0.75, -4.0, 12)]
    (x, _), (y, _) = Page(render(question(candidate(*tokens, reward=-1.0)))).tokens
    assert (x["data-r"], x["data-g"], x["data-a"], x["data-i"]) == ("+8.000", "0.250", "+2.000", "11")
    assert (y["data-r"], y["data-g"], y["data-a"], y["data-i"]) == ("\u22124.000", "0.750", "\u22123.000", "12")
    assert x["tabindex"] == "0"


def test_tokens_outside_the_region_or_without_a_finite_state_have_no_colour():
    outside, broken = TokenView("<think>", 3), token("x", math.nan, math.nan, 4)
    found = Page(render(question(candidate(outside, broken, token("y", 1.0, 2.0))))).tokens
    assert [attributes for attributes, _ in found[:2]] == [{"data-i": "3"}, {"data-i": "4"}]
    assert found[2][0]["class"] == "t r20 g4"
    assert found[2][0]["data-a"] == "+2.000"


def classes(*tokens):
    return [attributes["class"].split()[1:] for attributes, _ in Page(render(question(candidate(*tokens)))).tokens]


def test_colour_is_symmetric_and_in_proportion_to_the_reward_and_shade_to_the_gate():
    rewards = [-10.0, -5.0, -0.2, 0.0, 0.2, 5.0, 10.0]
    assert [one for one, _ in classes(*(token(reward=reward) for reward in rewards))] == ["r0", "r5", *["r10"] * 3, "r15", "r20"]
    gates = [0.0, 0.05, 0.1, 0.2, 0.4]  # the page's largest has the full shade
    assert [one for _, one in classes(*(token(gate=gate) for gate in gates))] == ["g0", "g0", "g1", "g2", "g4"]


def test_a_few_extreme_rewards_and_those_with_a_closed_gate_do_not_set_the_scale():
    tokens = [token(gate=1.0, reward=4.0)] * 95 + [token(gate=1.0, reward=-900.0)] * 5 + [token(gate=1e-6, reward=5000.0)] * 50
    html = render(question(candidate(*tokens)))
    assert "\u22124 or less" in html
    assert "+4 or more" in html
    assert classes(*tokens)[94][0] == "r20"
    assert classes(*tokens)[95][0] == "r0"


def test_one_scale_for_the_whole_page():
    weak, strong = candidate(token(reward=1.0), reward=1.0), candidate(token(reward=-10.0), reward=-10.0)
    both = Page(render(question(weak), question(strong))).tokens
    assert [attributes["class"].split()[1] for attributes, _ in both] == ["r11", "r0"]


@pytest.mark.parametrize("tokens", [[TokenView("a", 1)], [token(gate=0.0, reward=0.0)], [token(gate=0.0, reward=3.0)]])
def test_a_page_without_weight_has_a_scale_too(tokens):
    assert len(Page(render(question(candidate(*tokens)))).tokens) == 1


def test_candidates_are_ranked_with_what_is_known_of_them():
    best = candidate(reward=2.5, probability=0.924, answer="84", label=1, finish_reason="stop")
    worst = candidate(reward=-0.25, probability=0.44, answer="75", label=0, finish_reason="length", flag="marker_missing")
    none = candidate(reward=math.nan, probability=math.nan, flag="not_finite")
    html = render(question(none, worst, best, total=9))
    heads = [" ".join(re.sub("<[^>]+>", " ", part.split("<p ")[0]).split()) for part in html.split("<article>")[1:]]
    assert heads == [
        "1 +2.50 92.4 % right answer 84 graded right \u2713 finish stop",
        "2 \u22120.25 44.0 % right answer 75 graded wrong \u2717 finish length flag marker missing",
        "3 not finite flag not finite",
    ]
    assert "3 of 9 candidates, best first" in html


def test_the_legend_says_where_the_state_is_read_and_what_was_left_out():
    assert "at the token itself" in render(question(candidate()))
    html = render(question(candidate()), position="generating", total=300)
    assert "that produced it, before it was chosen" in html
    assert "1 of 300 questions" in html
    assert "gate \u00b7 reward / \u03a3 gate" in html


def test_the_page_is_lean():
    tokens = [token(" word", k / 1000, k / 100 - 5, 100_000 + k) for k in range(1000)]
    one, three = (len(render(*[question(candidate(*tokens))] * count).encode()) for count in (1, 3))
    assert (three - one) / 2000 < 125
    assert one - (three - one) / 2 < 12_000


def luminance(rgb):
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (value / 255 for value in rgb)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize(("mode", "card"), [(LIGHT, (255, 255, 255)), (DARK, (31, 31, 34))])
def test_text_can_be_read_on_every_colour(mode, card):
    palette, ink = mode
    for step in range(REWARD_STEPS):
        for opacity in SHADES:
            ground = [opacity * c + (1 - opacity) * under for c, under in zip(colour(step, palette), card, strict=True)]
            bright, dim = sorted((luminance(ground), luminance(ink)), reverse=True)
            assert (bright + 0.05) / (dim + 0.05) >= 4.5, (step, opacity)
    assert len({colour(step, palette) for step in range(REWARD_STEPS)}) == REWARD_STEPS
    assert len(SHADES) == GATE_STEPS


@pytest.mark.browser
def test_a_browser_shows_hostile_text_and_runs_none_of_it(browse, tmp_path):
    html, texts = hostile_page()
    page = Page(browse(tmp_path, html, "--dump-dom"))
    assert page.texts["title"] == [visible("".join(texts))]
    assert [text for _, text in page.tokens] == [visible(text) for text in texts]
    assert {tag for tag, _ in page.elements} <= set(TAGS)


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "mode", "card"), [(1, LIGHT, (255, 255, 255)), (0, DARK, (31, 31, 34))])
def test_a_browser_paints_tokens_by_reward_and_gate(browse, tmp_path, scheme, mode, card):
    low, high = token("low" * 9, 0.5, -9.0), token("high" * 9, 1.0, 9.0)
    html = render(question(candidate(low, high)))
    settings = [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=900,900", "--hide-scrollbars"]
    browse(tmp_path, html, *settings, f"--screenshot={tmp_path / 'page.png'}")
    pixels = read_png((tmp_path / "page.png").read_bytes())
    half = [round(SHADES[2] * c + (1 - SHADES[2]) * under) for c, under in zip(colour(0, mode[0]), card, strict=True)]
    for wanted in (half, colour(20, mode[0]), card):  # half a shade of the lowest colour is nowhere but on that token
        near = sum(all(abs(a - b) <= 1 for a, b in zip(pixel, wanted, strict=True)) for pixel in pixels)
        assert near > 500, wanted
