import json
import re
import sys
from dataclasses import replace

import pytest

from swift_rm.cli.main import main
from swift_rm.files.text import visible
from swift_rm.report.html_page import POLICY
from tests.report.pages import HOSTILE, UNSEEN, Page

LONG = "word " * 5000 + "the end"


def graded(make_rollout, rewards, *, said=None, questions=4):
    """Questions of three responses, answered 7, 7 and 8, of which the last is right on the even ones."""
    return [
        make_rollout(
            f"q{question}", label=int((answer == "8") == (question % 2 == 0)), reward=reward, response_ids=[5] * (place + 1),
            prompt=f"prompt {question}", prompt_ids=[1, question], response=said or f"It is {answer}.", answer=answer,
        )
        for question in range(questions)
        for place, (answer, reward) in enumerate(zip("778", rewards, strict=True))
    ]  # fmt: skip


def write(path, rollouts):
    path.write_text("".join(rollout.to_json() + "\n" for rollout in rollouts))
    return path


@pytest.fixture
def files(tmp_path, make_rollout):
    """Two scored files of the same responses: A's rewards prefer the 8, B's the first 7."""
    a = write(tmp_path / "a.jsonl", graded(make_rollout, [-1.0, -1.0, 3.0]))
    return a, write(tmp_path / "b.jsonl", graded(make_rollout, [2.0, -1.0, 0.0]))


def run(capsys, *arguments):
    code = main(["compare", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_two_reward_models_in_json(capsys, files):
    code, out, error = run(capsys, *files, "--rules", "swift_best", "--json", "--show", 0)
    assert (code, error) == (0, "")
    data = json.loads(out)
    assert (data["questions"], data["n"], data["lead_changes"]) == (4, 3, [])
    assert (data["a"]["file"], data["b"]["file"]) == tuple(map(str, files))
    assert data["a"]["rule"] == data["b"]["rule"] == "swift_best"
    assert (data["a"]["accuracy"]["value"], data["b"]["accuracy"]["value"], data["difference"]["value"]) == (0.5, 0.5, 0.0)
    assert data["difference"]["low"] < 0 < data["difference"]["high"]
    assert data["table"] == {"both_right": 0, "only_a": 2, "only_b": 2, "both_wrong": 0, "parted": 0}
    assert data["responses"] == {"same": True, "shared": 12, "of": 12}
    assert [row["k"] for row in data["by_k"]] == [1, 2, 3]
    assert data["by_k"][-1]["difference"] == data["difference"]
    # within a question A ranks 8 above both 7, which tie; B ranks the first 7 above the 8 above the second 7
    assert data["auroc_within"]["a"]["value"] == 0.5
    assert data["auroc_within"]["b"]["value"] == 0.5
    assert data["a"]["tokens_per_question"] == 6
    assert data["disagreements"][0] == {
        "question_id": "q0",
        "a": {"answer": "8", "right": 1.0, "reward": 3.0, "place": 2},
        "b": {"answer": "7", "right": 0.0, "reward": 2.0, "place": 0},
    }
    assert [one["question_id"] for one in data["disagreements"]] == ["q0", "q1", "q2", "q3"]


def test_two_rules_on_one_file_in_the_terminal(capsys, files):
    code, out, error = run(capsys, files[0], "--rules", "majority", "swift_best", "--show", 1)
    assert (code, error) == (0, "")
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert [line.partition(" majority ")[2] for line in lines if line.startswith("A /")] == ["50.0 [0.0, 100.0] - 6.0"]
    assert "A right 0 2" in lines
    assert "A wrong 2 0" in lines
    assert "4 disagreements A answers reward B answers reward" in lines
    assert "q0 7 wrong -1.00 8 right 3.00" in lines
    assert "and 3 more" in lines
    assert not any(line.startswith("q1 ") for line in lines)


def test_the_first_responses_and_the_questions_of_both_are_compared(capsys, tmp_path, make_rollout, files):
    fewer = graded(make_rollout, [1.0, 2.0, 3.0], said="Other words.", questions=6)
    del fewer[3:6]
    other = write(tmp_path / "c.jsonl", [replace(one, response_ids=[9]) for one in fewer])
    code, out, _ = run(capsys, files[0], other, "-n", 2, "--json")
    data = json.loads(out)
    assert (code, data["questions"], data["n"]) == (0, 3, 2)
    assert (data["a"]["only_here"], data["b"]["only_here"]) == (1, 2)
    assert data["responses"] == {"same": False, "shared": 0, "of": 6}
    assert (data["a"]["tokens_per_question"], data["b"]["tokens_per_question"]) == (3, 2)
    _, out, _ = run(capsys, files[0], other, "-n", 2)
    assert "3 questions x 2 responses. A and B answered the same questions with other responses." in out
    assert f"Left out: 1 question only in A, {files[0]}." in out
    assert f"Left out: 2 questions only in B, {other}." in out


def test_bad_lines_are_counted_or_stop_the_run(capsys, files):
    with open(files[0], "a") as out:
        out.write("{broken\n")
    code, _, error = run(capsys, *files)
    assert code == 2
    assert f"{files[0]}:13: not valid JSON" in error
    code, _, error = run(capsys, *files, "--skip-bad-lines")
    assert (code, error) == (0, f"swift-rm: skipped 1 invalid lines of {files[0]}\n")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a.jsonl", "b.jsonl", "--rules", "best"], "unknown rule 'best'; the rules are first, majority,"),
        (
            ["a.jsonl", "b.jsonl", "--rules", "first", "oracle", "length"],
            "two files and two rules at most, got 2 files and 3 rules",
        ),
        (["a.jsonl", "a.jsonl"], "nothing to compare: a.jsonl by swift_shrunk twice"),
        (["a.jsonl", "./a.jsonl", "--rules", "oracle"], "nothing to compare: a.jsonl by oracle twice"),
        (["a.jsonl"], "nothing to compare: a.jsonl by swift_shrunk twice; give a second file, or --rules with two rules"),
        (["a.jsonl", "none.jsonl"], "No such file or directory: 'none.jsonl'"),
        (["a.jsonl", "empty.jsonl"], "empty.jsonl holds no records"),
        (["a.jsonl", "bare.jsonl"], "bare.jsonl: the rule swift_shrunk needs a reward, which `swift-rm score` writes"),
        (["a.jsonl", "b.jsonl", "--show", "-1"], "--show must be 0 or more questions, got -1"),
        (["a.jsonl", "b.jsonl", "-n", "0"], "a.jsonl: n must be at least 1 response a question, got 0"),
        (["a.jsonl", "b.jsonl", "--report", "b.jsonl"], "b.jsonl is a file to read, which writing would replace"),
        (["a.jsonl", "none.jsonl", "--report", "folder"], "is a folder"),
        (["a.jsonl", "none.jsonl", "--report", "a.jsonl/page.html"], "a.jsonl"),
    ],
)
def test_what_is_wrong_is_one_sentence(capsys, files, monkeypatch, make_rollout, arguments, said):
    monkeypatch.chdir(files[0].parent)
    (files[0].parent / "folder").mkdir()
    (files[0].parent / "empty.jsonl").touch()
    write(files[0].parent / "bare.jsonl", graded(make_rollout, [None] * 3))
    before = files[1].read_text()
    code, out, error = run(capsys, *arguments)
    assert (code in (1, 2), out) == (True, "")
    assert said in error
    assert error.count("\n") == 1
    assert files[1].read_text() == before


def test_one_question_and_missing_rewards_are_said(capsys, tmp_path, make_rollout):
    one = write(tmp_path / "one.jsonl", graded(make_rollout, [None, 1.0, 2.0], questions=1))
    code, out, _ = run(capsys, one, "--rules", "swift_best", "majority")
    assert code == 0
    assert "One question has no interval to speak of" in out
    assert "1 response of A has no score to go by and is never chosen." in out


def test_without_matplotlib_the_report_says_what_to_install(capsys, files, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, error = run(capsys, *files, "--report", tmp_path / "page.html")
    assert (code, error.count("\n")) == (1, 1)
    assert 'pip install "swift-rm[report]"' in error
    assert run(capsys, *files)[0] == 0


def hostile_files(tmp_path, make_rollout):
    """Files in which every text is hostile, and a prompt of messages; the last question's response is long."""
    texts = [*HOSTILE, *(text for text in UNSEEN if text != "\ud800")]
    rows = [("a", 1.0, 0.0, 1), ("b", 0.0, 1.0, 0)]
    made = [[], []]
    for text in [*texts, LONG]:
        for answer, *rewards, label in rows:
            for side, reward in zip(made, rewards, strict=True):
                side.append(
                    make_rollout(
                        f"id {text[:40]}", prompt=[{"role": text[:40], "content": f"prompt {text[:40]}"}], prompt_ids=[1],
                        label=label, reward=reward, response=f"{answer} {text}", answer=f"{answer} {text[:40]}",
                        finish_reason=text[:40],
                    )
                )  # fmt: skip
    files = [write(tmp_path / name, side) for name, side in zip(("x.jsonl", "<b>y&amp;.jsonl"), made, strict=True)]
    return files, texts


def test_the_page_shows_both_responses_and_escapes_everything(capsys, tmp_path, make_rollout):
    pytest.importorskip("matplotlib")
    files, texts = hostile_files(tmp_path, make_rollout)
    out = tmp_path / "new" / "page.html"
    code, printed, _ = run(capsys, *files, "--rules", "swift_best", "--report", out, "--show", 100, "--json")
    assert code == 0
    assert json.loads(printed)["report"] == str(out)
    html = out.read_text()
    assert html.count(POLICY.replace("'", "&#x27;")) + html.count(POLICY) == 1
    page = Page(html)
    tags = {tag for tag, _ in page.elements}
    assert not tags & {"script", "img", "iframe", "object", "base", "link", "form", "input", "image"}
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {link.removeprefix("#") for link in links} <= set(ids)
    said = page.texts["bdi"] + page.texts.get("p", [])
    for text in texts:
        assert f"a {visible(text)}" in said
        assert f"b {visible(text)}" in said
    assert html.count("only A is right") == len(texts) + 1
    assert not set(html) & (set("".join(UNSEEN)) - set("[31m"))
    assert "the end" in html
    assert len(re.findall("characters left out", html)) == 2
    assert html.count('<svg xmlns="http://www.w3.org/2000/svg"') == 2


@pytest.mark.parametrize(("show", "shown"), [(0, 0), (3, 3)])
def test_the_page_shows_as_many_disagreements_as_asked_for(capsys, files, tmp_path, show, shown):
    pytest.importorskip("matplotlib")
    out = tmp_path / "page.html"
    assert run(capsys, *files, "--rules", "swift_best", "--report", out, "--show", show)[0] == 0
    html = out.read_text()
    assert html.count("<article ") == shown
    assert "on 4 of 4 questions" in html


def test_charts_are_drawn_from_the_json_alone(capsys, files):
    pytest.importorskip("matplotlib")
    from swift_rm.report.plots.compare_charts import accuracy_by_k, difference_by_k

    data = json.loads(run(capsys, *files, "--rules", "majority", "swift_best", "--json")[1])
    chart = difference_by_k(data)
    assert chart.rows == tuple((row["k"], *row["difference"].values()) for row in data["by_k"])
    assert f"{100 * data['difference']['value']:+.1f} points" in chart.alt.replace("\u2212", "-")
    both = accuracy_by_k(data)
    assert both.rows == tuple((side.upper(), row["k"], *row[side].values()) for side in "ab" for row in data["by_k"])
    assert "B: swift_best" in both.svg()


def test_the_page_of_one_question_has_no_plural_and_every_box_that_scrolls_a_name(capsys, tmp_path, make_rollout):
    pytest.importorskip("matplotlib")
    group = graded(make_rollout, [1.0, 2.0, 3.0], questions=1)
    a, b = write(tmp_path / "a.jsonl", group[1:2]), write(tmp_path / "b.jsonl", [replace(group[2], response_ids=[9])])
    out = tmp_path / "page.html"
    assert run(capsys, a, b, "--rules", "swift_best", "--report", out)[0] == 0
    page = Page(out.read_text())
    said = " ".join(re.sub("<[^>]+>", " ", out.read_text()).split())
    assert "Of 1 question with 1 response each A is right on" in said
    assert "on 1 of 1 question, of which 1 below" in said
    assert "with 1 response a question." in said and "With 1 response the difference is" in said
    assert "1 questions" not in said
    boxes = [attributes for _, attributes in page.elements if "tabindex" in attributes]
    assert all(box["role"] == "group" and box["aria-label"] for box in boxes)
    assert {"prompt", "response of A", "response of B", "Questions by who is right"} <= {box["aria-label"] for box in boxes}


def test_the_chart_of_differences_has_the_sign_of_its_texts(capsys, files):
    pytest.importorskip("matplotlib")
    from swift_rm.report.plots.compare_charts import difference_by_k

    data = json.loads(run(capsys, *files, "--rules", "majority", "swift_best", "--json")[1])
    for row in data["by_k"]:
        row["difference"] = {"value": -0.1, "low": -0.2, "high": 0.05}
    chart = difference_by_k(data)
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", chart.svg())
    assert "\u221210" in shown and not [text for text in shown if text.startswith("-")]
    assert chart.header[1] == "A \u2212 B"


@pytest.mark.browser
def test_a_browser_runs_nothing_of_the_page(capsys, tmp_path, make_rollout, browse):
    pytest.importorskip("matplotlib")
    files, texts = hostile_files(tmp_path, make_rollout)
    out = tmp_path / "out.html"
    assert run(capsys, *files, "--rules", "swift_best", "--report", out, "--show", 100)[0] == 0
    page = Page(browse(tmp_path, out.read_text(), "--dump-dom"))
    assert page.texts["title"][0] == "A: x.jsonl against B: <b>y&amp;.jsonl"
    said = page.texts["bdi"] + page.texts["p"]
    assert all(f"{side} {visible(text)}" in said for text in texts for side in "ab")
    assert "script" not in {tag for tag, _ in page.elements}
