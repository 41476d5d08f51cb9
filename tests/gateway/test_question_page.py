"""The page at /: a form, its answer, its errors, and what a browser makes of it."""

import math
import re
import urllib.error
import urllib.parse
import urllib.request

import pytest

from swift_rm.files.text import visible
from swift_rm.gateway.app.question_html import PAGE_POLICY, RULE_TEXTS
from swift_rm.gateway.request.errors import GatewayError
from swift_rm.gateway.request.settings import Settings
from swift_rm.selection.rule_table import SERVED_RULES
from tests.gateway.page_visits import visit, words
from tests.gateway.running_gateway import serving
from tests.gateway.stub import Stub
from tests.report.pages import HOSTILE, UNSEEN, Page, read_png

CANDIDATES = (("the second is 42", "42", 2.5, 0.924), ("41 it is", "41", -0.25, 0.44))


@pytest.fixture(scope="module")
def stub():
    return Stub(CANDIDATES)


@pytest.fixture(scope="module")
def address(stub):
    settings = Settings(model="a/<b>stub</b>", reward_model="some-reward-model", max_n=16, max_prompt_chars=400, max_body_kib=4)
    with serving(stub, settings) as address:
        yield f"{address}/"


def fields(html):
    """The form's fields by name, with their values; of the select the selected option."""
    found = {}
    for tag, attributes in Page(html).elements:
        if tag == "input":
            found[attributes["name"]] = attributes["value"]
        elif tag == "option" and "selected" in attributes:
            found["rule"] = attributes["value"]
    return {**found, "question": Page(html).texts.get("textarea", ["\n"])[0].removeprefix("\n")}


def test_the_empty_form_is_labelled_and_has_its_limits(address):
    status, headers, html = visit(address)
    page = Page(html)
    assert (status, headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert headers["content-security-policy"] == PAGE_POLICY
    assert "form-action 'self'" in PAGE_POLICY
    assert {"http-equiv": "Content-Security-Policy", "content": PAGE_POLICY.partition("; frame")[0]} in [
        attributes for tag, attributes in page.elements if tag == "meta"
    ]
    assert fields(html) == {
        "question": "", "rule": "shrunk", "n": "8", "temperature": "1", "max_tokens": "", "abstain_below": "",
    }  # fmt: skip
    labels = {attributes["for"] for tag, attributes in page.elements if tag == "label"}
    inputs = {attributes["id"]: attributes for tag, attributes in page.elements if tag in ("input", "select", "textarea")}
    assert labels == set(inputs)
    assert (inputs["n"]["max"], inputs["question"]["maxlength"]) == ("16", "400")
    options = page.texts["option"]
    assert options == [f"{rule}: {RULE_TEXTS[rule]}" for rule in SERVED_RULES]
    assert not [tag for tag, _ in page.elements if tag in ("script", "img", "link", "iframe")]
    assert "a/<b>stub</b>" in page.texts["bdi"]
    assert "some-reward-model" in page.texts["bdi"]


def test_a_question_is_answered_with_all_candidates_and_the_form_keeps_what_was_typed(address, stub):
    form = {"question": "\n 27 + 15\r\n& <more>", "rule": "vote", "n": "4", "temperature": "0.5", "max_tokens": "9"}
    status, _, html = visit(address, form)
    assert status == 200
    assert fields(html) == {**form, "question": "\n 27 + 15\n& <more>", "abstain_below": ""}
    asked = stub.asked[-1]
    with urllib.request.urlopen(f"{address}metrics", timeout=20) as reply:
        assert b"swift_rm_candidates_total 4.0" in reply.read()
    assert (asked.rule, asked.drawn, asked.temperature, asked.max_tokens, asked.chat) == ("vote", 4, 0.5, 9, True)
    assert asked.prompts == [[{"role": "user", "content": "\n 27 + 15\n& <more>"}]]
    said = words(html)
    assert "Answer the second is 42 answer 42 reward +2.50 right 92.4 % drawn 4 candidates tokens 8 time 0.0" in said
    assert "rule vote All 4 candidates chosen +2.50 92.4 % right answer 42" in said
    assert [text for _, text in Page(html).tokens] == ["the second is 42", "41 it is"] * 2
    assert said.count("right answer 41") == 2


def test_one_response_needs_no_rule(address, stub):
    status, _, html = visit(address, {"question": "x", "rule": "best", "n": "1", "temperature": "0"})
    assert (status, stub.asked[-1].rule, stub.asked[-1].drawn) == (200, None, 1)
    assert "The candidate chosen" in words(html)


def test_an_abstention_says_why_and_shows_what_there_was(address):
    status, _, html = visit(address, {"question": "x", "rule": "best", "n": "2", "abstain_below": "0.95"})
    assert status == 200
    assert "No answer the chosen candidate's probability to be right is 0.924, below 0.95 reward +2.50" in words(html)
    assert "All 2 candidates 1 +2.50" in words(html)
    assert "chosen +" not in words(html)


@pytest.mark.parametrize(
    ("form", "status", "said"),
    [
        ({"question": " \r\n", "n": "2"}, 400, "type a question first"),
        ({"n": "2"}, 400, "type a question first"),
        ({"question": "x", "n": "17", "rule": "best"}, 400, "17 candidates are more than this server allows, 16"),
        ({"question": "x", "n": "2", "temperature": "0"}, 400, "temperature 0 would make all 2 candidates equal"),
        ({"question": "x", "n": "two"}, 400, "best_of: input should be a valid integer, got 'two'"),
        ({"question": "x", "n": "9" * 5000}, 413, "the body is larger than this server takes, 4 KiB"),
        ({"question": "x", "n": "2", "temperature": "nan"}, 400, "temperature: "),
        ({"question": "x", "n": "2", "rule": "<b>"}, 400, "select: input should be 'shrunk', 'best'"),
        ({"question": "y" * 401, "n": "2"}, 413, "the prompt has 405 characters, and this server takes up to 400"),
        (b"question=%ff&n=2", 400, "the form cannot be read"),
        (b"question=\xff&n=2", 400, "the form cannot be read"),
        (b"&".join([b"a=1"] * 40), 400, "the form cannot be read"),
        (b"", 400, "type a question first"),
    ],
)
def test_what_cannot_be_asked_is_said_on_the_page(address, form, status, said):
    got, _, html = visit(address, form)
    assert got == status
    assert f"Not answered {status} {said}" in words(html)
    if isinstance(form, dict) and status == 400:
        assert fields(html)["question"] == form.get("question", "").replace("\r\n", "\n")


def test_other_types_and_other_sites_are_refused(address, stub):
    before = len(stub.asked)
    assert visit(address, b"{}", {"content-type": "application/json"})[0] == 415
    for header in ({"sec-fetch-site": "cross-site"}, {"origin": "http://evil.example"}, {"origin": "null"}):
        assert visit(address, {"question": "x", "n": "1"}, header)[0] == 403
    assert visit(address, {"question": "x", "n": "1"}, {"origin": address.rstrip("/")})[0] == 200
    assert len(stub.asked) == before + 1


def test_a_failure_of_the_backend_is_shown_with_its_status(address, stub, monkeypatch):
    async def fail(asking, views=False):
        raise GatewayError(502, "the upstream <b>fell over</b>", headers={"retry-after": "7"})

    monkeypatch.setattr(stub, "answer", fail)
    status, headers, html = visit(address, {"question": "27 + 15", "n": "2"})
    assert (status, headers["retry-after"]) == (502, "7")
    assert "the upstream <b>fell over</b>" in Page(html).texts["bdi"]
    assert fields(html)["question"] == "27 + 15"


def test_whatever_is_typed_or_said_is_text(stub, monkeypatch):
    every = "".join(one for one in [*HOSTILE, *UNSEEN] if one not in ("\ud800", "\r", "\x00")) + "</textarea>"
    monkeypatch.setattr(stub, "candidates", ((every, every, math.nan, math.nan), (every, None, -1.0, 0.3)))
    with serving(stub, Settings(model=every, reward_model=every, name=every)) as address:
        status, _, html = visit(f"{address}/", {"question": every, "n": "2", "rule": "majority", "max_tokens": '"><b>'})
        assert status == 400
        assert fields(html)["max_tokens"] == '"><b>'
        _, _, html = visit(f"{address}/", {"question": every, "n": "2", "rule": "majority"})
    page = Page(html)
    assert fields(html)["question"] == every
    assert page.comments == 0
    assert not {tag for tag, _ in page.elements} & {"script", "img", "base", "svg"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert [text for _, text in page.tokens] == [visible(every)] * 2
    shown = html.split("<textarea")[0] + html.split("</textarea>")[1]
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u200b\u2028\u202a-\u202e\u2066-\u2069\ufeff]", shown)
    assert "not finite" in html


def test_without_a_reward_model_there_is_no_form():
    with serving(Stub(rewards=False), Settings(model="m", upstream="http://127.0.0.1:1/v1")) as address:
        for form in (None, {"question": "x", "n": "2"}):
            status, _, html = visit(f"{address}/", form)
            assert status == 200
            assert "There is no reward model here" in words(html)
            assert "<form" not in html


def test_the_page_can_be_left_out(stub):
    with serving(stub, Settings(model="m", reward_model="r", page=False)) as address:
        assert visit(f"{address}/")[0] == 404


@pytest.mark.browser
@pytest.mark.parametrize(("scheme", "ground"), [(1, (246, 246, 244)), (0, (22, 22, 24))])
def test_a_browser_shows_it_on_a_phone_without_scrolling_sideways(address, browse, tmp_path, scheme, ground):
    _, _, html = visit(address, {"question": "w" * 300, "n": "8"})
    picture = tmp_path / "page.png"
    phone = [f"--blink-settings=preferredColorScheme={scheme}", "--window-size=390,1200", "--hide-scrollbars"]
    browse(tmp_path, html, *phone, f"--screenshot={picture}")
    pixels = read_png(picture.read_bytes())
    assert len(pixels) == 390 * 1200
    margin = [pixels[row * 390 + column] for row in range(1200) for column in (2, 387)]
    assert set(margin) == {ground}, "nothing stands in the margins, so nothing reaches beyond them"
