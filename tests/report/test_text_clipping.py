import random

import pytest

from swift_rm.files.text import brief, clip
from swift_rm.report.text_clipping import (
    NOTE_BYTES,
    Tokens,
    clip_plain,
    clip_shaded,
    level,
    plain_html,
    shaded_size,
    size,
    tokens_of,
)
from swift_rm.report.token_view_data import Scale
from tests.report.pages import HOSTILE, UNSEEN, Page

SCALE = Scale(4.0, 1.0)
TEXTS = ["a" * 4000, "<&>" * 900, "\u65e5\u672c" * 800, "x\n" * 10_000, "".join([*HOSTILE, *UNSEEN]) * 20, ""]


def kept(count, seed=0, text=" word"):
    rng = random.Random(seed)
    gates = [rng.choice([None, 0.0, rng.random(), 1.0]) for _ in range(count)]
    return Tokens(
        [rng.choice([text, "<b>", "\n", "", "\u65e5"]) for _ in range(count)], gates, [rng.gauss(0, 4) for _ in range(count)]
    )


@pytest.mark.parametrize("said", TEXTS)
@pytest.mark.parametrize("room", [NOTE_BYTES, 130, 1000, 3000, 10**6])
def test_a_text_fits_and_says_how_much_is_left_out_of_its_middle(said, room):
    fitted = clip_plain(said, room)
    assert size(fitted.html) <= max(room, NOTE_BYTES)
    if size(plain_html(said)) <= room:
        assert (fitted.html, fitted.left_out) == (plain_html(said), 0)
        return
    before, _, rest = fitted.html.partition('<b class="cut">')
    note, _, after = rest.partition("</b>")
    assert f"{fitted.left_out:,} characters" in note
    assert plain_html(said).startswith(before)
    assert plain_html(said).endswith(after)
    if room >= 1000:  # nearly all of it is used
        assert size(fitted.html) > 0.8 * room - NOTE_BYTES


def test_what_is_kept_and_what_is_left_out_are_the_whole_and_its_line_ends_are_counted():
    said = "\n".join(f"line {number}" for number in range(10_000))
    fitted = clip_plain(said, 2000)
    before, after = fitted.html.split('<b class="cut">')[0], fitted.html.split("</b>")[1]
    assert said.startswith(before)
    assert said.endswith(after)
    assert len(before) + fitted.left_out + len(after) == len(said)
    left_out = said[len(before) : len(said) - len(after)]
    assert f"{len(left_out):,} characters and {left_out.count(chr(10)):,} line ends left out" in fitted.html
    assert after.endswith("line 9999")  # where the answer is


@pytest.mark.parametrize("room", [NOTE_BYTES, 500, 2000, 10**6])
def test_shaded_tokens_fit_too(room):
    tokens = kept(400)
    fitted = clip_shaded(tokens, SCALE, room)
    assert size(fitted.html) <= room
    Page(f"<p>{fitted.html}</p>")  # no element is cut
    assert ("word" in fitted.html) == (room > 200)
    assert (fitted.left_out == 0) == (room == 10**6)
    assert size(clip_shaded(tokens, SCALE, 10**6).html) <= shaded_size(tokens)


def test_neighbours_of_one_class_are_one_element_and_what_hardly_counts_has_none():
    tokens = Tokens(["a", "b", "c", "d", "e"], [1.0, 1.0, 0.01, None, 1.0], [4.0, 4.0, 4.0, None, -4.0])
    assert clip_shaded(tokens, SCALE, 1000).html == '<i class="r20 g4">ab</i>cd<i class="r0 g4">e</i>'


def test_the_level_is_that_of_a_slow_search():
    rng = random.Random(1)
    for _ in range(200):
        sizes = [rng.randrange(50) for _ in range(rng.randrange(1, 9))]
        room = rng.randrange(sum(sizes) + 20)
        slow = max(limit for limit in range(60) if sum(min(one, limit) for one in sizes) <= room)
        assert level(sizes, room) == min(slow, max(sizes))
    assert level([], 5) == 0


def test_clip_and_brief_say_that_there_is_more():
    assert clip("abc", 3) == brief("abc", 3) == "abc"
    assert clip("abcd", 3) == "abc\u2026 (1 more characters)"
    assert brief("abcd", 3) == "abc\u2026"


@pytest.mark.parametrize(
    "tokens",
    [
        None, [], "abc", {}, {"text": ["a"]}, {"text": ["a"], "gate": [1.0], "reward": []},
        {"text": "a", "gate": "b", "reward": "c"},
        {"text": [1], "gate": [1.0], "reward": [1.0]}, {"text": ["a"], "gate": ["1"], "reward": [1.0]},
        {"text": ["a"], "gate": [[]], "reward": [1.0]}, {"text": ["a"], "gate": [10**400], "reward": [1.0]},
    ],
)  # fmt: skip
def test_tokens_that_are_not_in_order_are_none(make_rollout, tokens):
    assert tokens_of(make_rollout(extra={"tokens": tokens})) is None


def test_tokens_are_read_with_numbers_of_any_kind(make_rollout):
    tokens = tokens_of(make_rollout(extra={"tokens": {"text": ["a", "b"], "gate": [1, None], "reward": [float("nan"), 2.0]}}))
    assert len(tokens) == 2
    assert clip_shaded(tokens, SCALE, 1000).html == "ab"
    assert tokens_of(make_rollout()) is None
