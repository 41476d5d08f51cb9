import math
from types import SimpleNamespace

import pytest

from swift_rm.files.text import visible
from swift_rm.report.html_page import POLICY, Html, document, figure, table, text
from tests.report.pages import HOSTILE, UNSEEN, Page


def cells(html):
    """The rows of the one table in some HTML, as (tag, scope, class, text) each."""
    rows, page = [], Page(html)
    for tag, attributes in page.elements:
        if tag == "tr":
            rows.append([])
        elif tag in ("th", "td"):
            rows[-1].append((tag, attributes.get("scope"), attributes.get("class")))
    return rows


def test_a_document_is_one_file_that_may_do_nothing():
    page = Page(document("</title><script>x</script>", "<p>body</p>", "p{color:red}"))
    assert page.texts["title"] == ["</title><script>x</script>"]
    assert {tag for tag, _ in page.elements} == {"html", "head", "meta", "title", "style", "body", "p"}
    metas = [attributes for tag, attributes in page.elements if tag == "meta"]
    assert {"http-equiv": "Content-Security-Policy", "content": POLICY} in metas
    assert POLICY == "default-src 'none'; style-src 'unsafe-inline'"
    assert "p{color:red}" in page.texts["style"][0]


@pytest.mark.parametrize("said", [*HOSTILE, *UNSEEN, "\u05e9\u05dc\u05d5\u05dd", "a\nb"])
def test_text_is_text(said):
    page = Page(str(text(said)))
    assert [tag for tag, _ in page.elements] == ["bdi"]
    assert page.texts["bdi"] == [visible(said)]
    text(said).encode()
    assert text(Html("<b>x</b>")) == "<b>x</b>"


def test_visible_is_the_slow_one_of_every_character():
    for start in range(0, 0x110000, 0x1000):
        some = "".join(map(chr, range(start, start + 0x1000)))
        slow = "".join(c if c.isprintable() or c in "\n\t" else f"\u2039U+{ord(c):04X}\u203a" for c in some)
        assert visible(some) == slow


def test_a_table_has_a_caption_headers_with_a_scope_and_numbers_on_the_right():
    html = table("<cap>", ["name", "k", "share", "note"], [["<a>", 3, 0.123456, "x"], ["b", 40, math.nan, None]])
    page = Page(html)
    assert page.texts["bdi"] == ["<cap>", "name", "k", "share", "note", "<a>", "x", "b"]
    assert page.texts["td"] == ["3", "0.1235", "40", "\u2013", "\u2013"]
    assert cells(html) == [
        [("th", "col", None), ("th", "col", "n"), ("th", "col", "n"), ("th", "col", None)],
        *[[("th", "row", None), ("td", None, "n"), ("td", None, "n"), ("td", None, None)]] * 2,
    ]
    assert ("caption", {}) in page.elements


def test_a_table_takes_html_and_columns_to_be_right_aligned_and_refuses_a_short_row():
    html = table("c", ["a", "b"], [["x", Html("<b>1</b>")]], right=[1])
    assert '<td class="n"><b>1</b></td>' in html
    assert "\u22120.5" in table("c", ["a", "b"], [["x", -0.5]])
    with pytest.raises(ValueError, match="zip"):
        table("c", ["a", "b"], [["x", "y", "z"]])
    assert "<tbody>" in table("empty", ["a"], [])


def test_a_figure_has_its_picture_its_words_and_its_numbers():
    chart = SimpleNamespace(
        name="it", title="A <title>", alt="Up & up.", header=("k", "value"), rows=((1, 0.5),),
        svg=lambda themed: f"<svg><title>{themed}</title></svg>", key=lambda: ["<a>: solid line", "b: dotted line"],
    )  # fmt: skip
    page = Page(figure(chart))
    assert page.texts["bdi"][:3] == ["A <title>", "Up & up.", "<a>: solid line; b: dotted line"]
    assert page.texts["title"] == ["True"]
    assert ("figure", {"id": "chart-it"}) in page.elements
    assert [tag for tag, _ in page.elements if tag in ("svg", "figcaption", "details", "table")] == [
        "svg", "figcaption", "details", "table",
    ]  # fmt: skip
    assert page.texts["th"] == ["1"]
    assert page.texts["td"] == ["0.5"]


@pytest.mark.parametrize("name", [*HOSTILE, *UNSEEN, 'a "title" & more'])
def test_boxes_that_scroll_have_a_role_and_a_name(name):
    chart = SimpleNamespace(
        name="it", title=name, alt="Up.", header=("k",), rows=((1,),), svg=lambda themed: "<svg></svg>", key=lambda: []
    )
    boxes = [attributes for tag, attributes in Page(figure(chart)).elements if "tabindex" in attributes]
    assert [box["aria-label"] for box in boxes] == [visible(name), f"{visible(name)}: the numbers drawn"]
    assert all((box["tabindex"], box["role"]) == ("0", "group") for box in boxes)
    assert 'class="key"' not in figure(chart)


def test_a_negative_number_has_a_minus_whatever_its_type():
    assert Page(table("c", ["k", "x", "y"], [[-1, -2, -0.5]])).texts["td"] == ["\u22122", "\u22120.5"]
    assert ">\u22121</th>" in table("c", ["k"], [[-1]])
