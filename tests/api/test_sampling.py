import json
import os
import signal
import subprocess
import sys
import time

import pytest

from swift_rm.api.endpoint import Endpoint
from swift_rm.api.failures import ApiFailure
from swift_rm.api.sampling import sample_api
from swift_rm.cli.main import main
from swift_rm.records.rollouts import read_rollouts
from swift_rm.tasks.task import Grade, Question
from tests.api.api_records import keys
from tests.api.api_server import KEY, MODEL, answer, choice, choices, cut, drawn, leaks, raw, status

QUESTIONS = [Question(f"q{i}", [{"role": "user", "content": f"1 + {i}"}], str(i % 3)) for i in range(6)]


def grade(question, text):
    found = text.rpartition("= ")[2]
    return Grade(found or None, int(found == question.reference))


def sample(api, out, questions=QUESTIONS, n=4, model=MODEL, **options):
    limits = {name: options.pop(name) for name in ("concurrency", "retries", "extra_body") if name in options}
    endpoint = Endpoint(model, api.url, **{"retries": 1, "longest_wait_s": 0.01, "timeout_s": 2.0, **limits})
    return [one for made in sample_api(endpoint, questions, n, out, grade=grade, top_logprobs=5, **options) for one in made]


ALL = [(question.question_id, i) for question in QUESTIONS for i in range(4)]


@pytest.fixture
def whole(api, tmp_path):
    sample(api, tmp_path / "whole.jsonl")
    return tmp_path / "whole.jsonl"


def fails_on(words, fault=None):
    def server(handler, request):
        mine = request["messages"][0]["content"] == words and "seed" in request
        ((fault or status(500)) if mine else answer())(handler, request)

    return server


def test_records_are_the_usual_ones_without_ids(api, tmp_path):
    made = sample(api, tmp_path / "r.jsonl", max_tokens=3)
    assert [one.to_json() for one in read_rollouts(tmp_path / "r.jsonl")] == [one.to_json() for one in made]
    assert keys(tmp_path / "r.jsonl") == ALL
    request = next(one for one in api.requests[1:] if one["messages"] == QUESTIONS[2].prompt)
    for i, record in enumerate(made[8:12]):
        told = drawn(request, i)
        entries = told["logprobs"]["content"]
        text = told["message"]["content"]
        assert (record.response, record.prompt, record.prompt_ids, record.response_ids) == (text, QUESTIONS[2].prompt, [], [])
        assert record.extra["token_logprobs"] == [entry["logprob"] for entry in entries]
        assert record.extra["top_logprobs"] == [[other["logprob"] for other in entry["top_logprobs"]] for entry in entries]
        assert record.extra["token_confidence"] == pytest.approx([0.7 * 3] * len(entries))
        assert record.logprob_mean == pytest.approx(sum(record.extra["token_logprobs"]) / len(entries))
        assert (record.answer, record.label) == (grade(QUESTIONS[2], text).answer, grade(QUESTIONS[2], text).label)
        assert record.extra["reference"] == "2" and "self_certainty" not in record.extra
        assert record.model == {"id": MODEL, "revision": None}
        assert record.sampling == {
            "temperature": 1.0, "top_p": 1.0, "max_tokens": 3, "top_logprobs": 5, "n": 4, "seed": 0
        }  # fmt: skip


def test_a_finished_run_asks_nothing_more(api, whole):
    before, asked = whole.read_bytes(), len(api.requests)
    assert len(sample(api, whole)) == 24 and whole.read_bytes() == before and len(api.requests) == asked


def test_a_run_that_goes_on_equals_one_that_was_not_stopped(api, whole, tmp_path):
    out = tmp_path / "halves.jsonl"
    lines = whole.read_bytes().splitlines(keepends=True)
    out.write_bytes(b"".join(lines[:8]) + lines[8][:40])
    made = sample(api, out)
    assert out.read_bytes() == whole.read_bytes() and len(made) == 24


@pytest.mark.parametrize(
    "fault", [status(500), status(429, retry_after_ms=5), cut, raw("{"), raw("[]"), status(400, "too long"), choices({})]
)
def test_what_finished_is_kept_and_the_same_call_goes_on(api, whole, tmp_path, fault):
    out, usual = tmp_path / "r.jsonl", api.usual
    api.usual = fails_on("1 + 2", fault)
    with pytest.raises(ApiFailure) as failure:
        sample(api, out)
    said = str(failure.value)
    assert said.startswith("4 of 24 responses are missing: ") and said.endswith("and the same command goes on from there")
    assert not leaks(said, out.read_text()) and "\n" not in said
    assert keys(out) == [key for key in ALL if key[0] != "q2"]
    api.usual = usual
    made = sample(api, out)
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())
    assert [one.to_json() for one in made] == whole.read_text().splitlines()


def test_single_responses_of_a_question_are_kept(api, tmp_path):
    out, usual = tmp_path / "r.jsonl", answer(most=1)
    api.usual = usual
    with pytest.warns(UserWarning, match="one by one"):
        whole = sample(api, tmp_path / "whole.jsonl")
    unlucky = {request["seed"] for request in api.requests if request.get("seed")}
    unlucky = set(sorted(unlucky)[:7])

    def server(handler, request):
        (status(503) if request.get("seed") in unlucky else usual)(handler, request)

    api.usual = server
    with pytest.warns(UserWarning), pytest.raises(ApiFailure, match=r"7 of 24 responses are missing: .* HTTP status 503"):
        sample(api, out)
    assert len(keys(out)) == 17
    api.usual = usual
    with pytest.warns(UserWarning):
        assert sample(api, out) == whole and len(set(keys(out))) == len(keys(out)) == 24


def test_an_interrupted_run_writes_what_came(api, whole, tmp_path):
    out = tmp_path / "r.jsonl"
    endpoint = Endpoint(MODEL, api.url)
    made = sample_api(endpoint, QUESTIONS, 4, out, grade=grade, top_logprobs=5)
    next(made)
    time.sleep(0.3)  # others come in the meantime
    with pytest.raises(KeyboardInterrupt):
        made.throw(KeyboardInterrupt)
    assert sorted(keys(out)) == ALL  # although nobody had looked at them yet
    assert sorted(out.read_bytes().splitlines()) == sorted(whole.read_bytes().splitlines())


def test_a_wrong_key_midway_keeps_what_came(api, tmp_path):
    api.usual = fails_on("1 + 4", status(401, KEY))
    with pytest.raises(ValueError, match="refuses the key") as error:
        sample(api, tmp_path / "r.jsonl", concurrency=1)
    assert keys(tmp_path / "r.jsonl") == ALL[:16] and not leaks(error.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "other"}, r"other model \(there, now\): \{'id': \('tiny', 'other'\)\}"),
        ({"temperature": 0.5}, r"other settings \(there, now\): \{'temperature': \(1.0, 0.5\)\}"),
        ({"extra_body": {"top_k": 4}}, r"'extra_body': \(None, \{'top_k': 4\}\)"),
        ({"questions": QUESTIONS[:5]}, "which is not among the questions given"),
        ({"questions": [Question("q0", "another", "0"), *QUESTIONS[1:]]}, "another question 'q0': its prompt"),
    ],
)
def test_a_file_of_another_run_is_refused(api, whole, change, said):
    before, asked = whole.read_bytes(), len(api.requests)
    with pytest.raises(ValueError, match=said):
        sample(api, whole, **change)
    assert whole.read_bytes() == before and len(api.requests) == asked


def test_a_server_with_fewer_alternatives_is_refused_before_anything_is_written(api, tmp_path):
    api.usual = choices(choice(0, ["a"], top=[-1.0, -2.0]))
    with pytest.warns(UserWarning), pytest.raises(ValueError, match=r"returned 2 alternatives .* --top-logprobs 2"):
        sample(api, tmp_path / "r.jsonl")
    assert (tmp_path / "r.jsonl").read_bytes() == b""


def test_an_empty_response_is_recorded(api, tmp_path):
    api.usual = choices(choice(0, ["<eos>"], text="", top=[-0.1, -2.5]), choice(1, ["= 0"], top=[-0.0001, -9.9]))
    empty, other = sample(api, tmp_path / "r.jsonl", QUESTIONS[:1], n=2)
    assert (empty.response, empty.label, empty.logprob_mean, empty.extra["token_logprobs"]) == ("", 0, None, [])
    assert other.label == 1 and read_rollouts(tmp_path / "r.jsonl") == [empty, other]


def test_what_a_server_writes_is_kept_as_it_is(api, tmp_path):
    text = "\x1b[2J\ud83d = 0\u2028"
    api.usual = raw(json.dumps({"choices": [choice(0, ["a"], text=text, top=[-0.0001, -9.9])]}))
    (one,) = sample(api, tmp_path / "r.jsonl", QUESTIONS[:1], n=1)
    assert one.response == text and len((tmp_path / "r.jsonl").read_bytes().splitlines()) == 1
    assert read_rollouts(tmp_path / "r.jsonl") == [one]


def test_a_killed_run_goes_on(api, tmp_path, capsys):
    whole, out = tmp_path / "whole.jsonl", tmp_path / "r.jsonl"
    arguments = ["sample", "--api", api.url, "--model", "tiny", "--task", "homework", "--questions", "30", "-n", "2"]
    arguments += ["--top-logprobs", "5", "--concurrency", "1", "--out"]
    assert main([*arguments, str(whole)]) == 0
    api.busy_s = 0.03
    killed = subprocess.Popen([sys.executable, "-m", "swift_rm.cli", *arguments, str(out)])
    deadline = time.monotonic() + 60
    while not (out.exists() and len(out.read_bytes().splitlines()) > 4):
        assert time.monotonic() < deadline and killed.poll() is None
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    api.busy_s = 0
    assert 4 < len(out.read_bytes().splitlines()) < 60
    assert main([*arguments, str(out)]) == 0
    told = capsys.readouterr()
    assert "responses                60" in told.out and not leaks(told.out, told.err)
    assert out.read_bytes() == whole.read_bytes()
