import json
import re

import pytest

from swift_rm.cli.main import main
from swift_rm.records.answered_questions import read_answered_questions
from swift_rm.report.token_view_data import view_candidate
from swift_rm.scoring.token_scoring import ScoredTokens
from tests.report.pages import Page

MODELS = ["--model", "tiny-reasoner", "--reward-model", "tiny-reasoner-reward"]
RIGHT, WRONG = "<think>27+15=42, </think><answer>42</answer>", "<think>27+15=32, </think><answer>32</answer>"
MESSAGES = [{"role": "user", "content": "27+15"}]


def write(path, *records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(capsys, command, source, out, *options):
    code = main([command, *MODELS, "--input", str(source), "--out", str(out), *map(str, options)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def explained(capsys, tmp_path, *records, options=()):
    out = tmp_path / "new" / "view.html"
    code, printed, error = run(capsys, "explain", write(tmp_path / "in.jsonl", *records), out, "--json", *options)
    assert code == 0, error
    return json.loads(printed), out.read_text()


def headings(html):
    """Return the text of each card's head by question."""
    sections = html.split("<section ")[1:]
    cards = [section.split("<article>")[1:] for section in sections]
    return [[" ".join(re.sub("<[^>]+>", " ", card.split("<p ")[0]).split()) for card in one] for one in cards]


def test_the_page_shows_every_token_and_the_rewards_of_score(capsys, tmp_path):
    records = [{"prompt": MESSAGES, "response": text, "label": label} for text, label in ((WRONG, 0), (RIGHT, 1))]
    data, html = explained(capsys, tmp_path, *records)
    assert run(capsys, "score", tmp_path / "in.jsonl", tmp_path / "scored.jsonl")[0] == 0
    scored = [json.loads(line) for line in (tmp_path / "scored.jsonl").read_text().splitlines()]
    heads = [f"{one['reward']:+.2f} {100 * one['probability']:.1f} % right" for one in scored]
    heads = [head.replace("-", "\u2212") for head in heads]
    assert headings(html) == [[f"1 {heads[1]} graded right \u2713", f"2 {heads[0]} graded wrong \u2717"]]
    tokens = Page(html).tokens
    half = len(tokens) // 2
    assert ["".join(text for _, text in part) for part in (tokens[:half], tokens[half:])] == [RIGHT + "<eos>", WRONG + "<eos>"]
    for part, one in ((tokens[:half], scored[1]), (tokens[half:], scored[0])):
        adds = sum(float(attributes["data-a"].replace("\u2212", "-")) for attributes, _ in part)
        assert adds == pytest.approx(one["reward"], abs=0.0006 * half)
    assert data["bytes"] == len(html.encode())
    assert (data["questions"], data["responses"], data["tokens"]) == (1, 2, 2 * half)


def test_a_question_with_candidates_and_single_responses_mix(capsys, tmp_path):
    ids = [1, 3, 19, 24, 27, 18, 22, 4, 9]
    candidates = [
        {"text": WRONG, "answer": "32", "finish_reason": "stop"},
        {"text": "not read", "token_ids": [13, 21, 19, 14, 2], "answer": None},
    ]
    best = {"question_id": "a", "prompt": MESSAGES, "prompt_ids": ids, "candidates": candidates}
    single = {"question_id": "a", "prompt": MESSAGES, "response": RIGHT, "answer": 42}
    other = {"question_id": 7, "prompt_ids": ids, "response_ids": [13, 21, 19, 14, 2]}
    data, html = explained(capsys, tmp_path, best, other, single, {"prompt": "<question>27+15<student>", "response": RIGHT})
    assert [len(question) for question in headings(html)] == [3, 1, 1]
    assert (data["questions"], data["responses"]) == (3, 5)
    first = "\n".join(headings(html)[0])
    assert "answer 32 finish stop" in first
    assert "answer 42" in first
    assert re.findall(r"<h2>(.*?)</h2>", html) == [
        "Question 1 <small><bdi>a</bdi></small>", "Question 2 <small><bdi>7</bdi></small>", "Question 3",
    ]  # fmt: skip
    assert "&lt;question&gt;27+15&lt;student&gt;" in html.split('id="q2"')[1]  # ids are shown as their text


def test_only_so_many_questions_and_candidates_are_shown_and_the_rest_is_counted(capsys, tmp_path):
    records = [{"question_id": q, "prompt": MESSAGES, "response": RIGHT} for q in "abc" for _ in range(3)]
    data, html = explained(capsys, tmp_path, *records, options=("--questions", 2, "-n", 1))
    assert [len(question) for question in headings(html)] == [1, 1]
    assert (data["questions"], data["questions_left_out"], data["responses"], data["responses_left_out"]) == (2, 1, 2, 7)
    assert "2 of 3 questions" in html
    assert "1 of 3 candidates" in html


def test_the_same_id_with_another_prompt_is_another_question(tmp_path):
    records = [{"question_id": "0", "prompt": prompt, "response": "x"} for prompt in ("1+1", "2+2", "1+1")]
    questions = read_answered_questions(write(tmp_path / "in.jsonl", *records))
    assert [len(question.answered) for question in questions] == [2, 1]


def test_tokens_before_the_region_are_shown_without_numbers(tokenizer):
    ids = tokenizer("</think>42<eos>")["input_ids"]
    scored = ScoredTokens(ids, range(1, 4), [0.1, 0.2, 0.3], [1.0, 2.0, 3.0], 2.3, "marker_missing")
    view = view_candidate(tokenizer, [1], scored, 0.9, {"label": "yes", "answer": 42})
    assert [token.text for token in view.tokens] == ["</think>", "4", "2", "<eos>"]
    assert [token.gate for token in view.tokens] == [None, 0.1, 0.2, 0.3]
    assert [token.reward for token in view.tokens] == [None, 1.0, 2.0, 3.0]
    assert (view.label, view.answer, view.finish_reason, view.flag) == (None, "42", None, "marker_missing")


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt": "1+1"}, "in.jsonl:2: neither a response nor a question with candidates: there is neither 'response_ids' nor"),
        ({"response": "2"}, "there is neither 'prompt_ids' nor 'prompt'; it has ['response']"),
        ({"prompt": "1+1", "candidates": []}, "'candidates' must be a list of at least one object, got []"),
        ({"prompt": "1+1", "candidates": ["2"]}, "'candidates' must be a list of at least one object, got ['2']"),
        ({"prompt": "1+1", "candidates": [{"response": "2"}]}, "there is neither 'token_ids' nor 'text'; it has ['response']"),
        ({"prompt": "1+1", "response_ids": "22"}, "'response_ids' must be token ids, got '22'"),
        ({"prompt": "1+1", "response": [{"content": "2"}]}, "'response' must be text or token ids"),
        ({"prompt_ids": [1, True], "response": "2"}, "'prompt_ids' must be token ids, got [1, True]"),
        ({"prompt": "1+1", "response_ids": []}, "in.jsonl:2: the response is empty: it has no token to score"),
        ({"prompt_ids": [1, 999], "response": "2"}, "in.jsonl:2: the response holds the token id 999"),
    ],
)
def test_a_line_that_cannot_be_shown_is_named(capsys, tmp_path, record, message):
    source = write(tmp_path / "in.jsonl", {"prompt": "1+1", "response": "2"}, record)
    code, out, error = run(capsys, "explain", source, tmp_path / "view.html")
    assert (code, out) == (2, "")
    assert message in error
    assert error.count("\n") == 1
    assert not (tmp_path / "view.html").exists()


def test_misuse_is_refused(capsys, tmp_path):
    source = write(tmp_path / "in.jsonl", {"prompt": "1+1", "response": "2"})
    code, _, error = run(capsys, "explain", source, tmp_path / "view.html", "-n", 0)
    assert code == 2
    assert "--questions and -n must be at least 1, got 20 and 0" in error
    code, _, error = run(capsys, "explain", tmp_path / "none.jsonl", tmp_path / "view.html")
    assert code == 2
    assert "none.jsonl" in error
