import json

import pytest
import torch

from swift_rm.cli.main import main
from tests.api.api_server import KEY, answer, leaks, status
from tests.api.best_of_n_runs import fails_on, reward_model

QUESTIONS = ["1 + 1", "1 + 2", "1 + 3"]


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("swift_rm.api.endpoint.backoff", lambda attempt, longest_s: 0.0)


@pytest.fixture(scope="module")
def head(tmp_path_factory):
    folder = tmp_path_factory.mktemp("head")
    torch.manual_seed(0)
    reward_model().save_pretrained(folder)
    return folder


@pytest.fixture
def run(api, capsys):
    def call(command, *arguments):
        code = main([command, "--api", api.url, "--model", "tiny", *map(str, arguments)])
        told = capsys.readouterr()
        assert not leaks(told.out, told.err)
        return code, told.out, told.err

    return call


def asked(path):
    path.write_text("".join(json.dumps({"id": text, "question": text}) + "\n" for text in QUESTIONS))
    return path


def test_sample_writes_records_and_says_what_they_cost(api, run, tmp_path):
    out = tmp_path / "r.jsonl"
    bodies = ("--extra-body", '{"top_k": 7}', "--chat-template-kwargs", '{"a": false}', "--max-new-tokens", 9)
    code, told, _ = run("sample", "--task", "homework", "--questions", 3, "-n", 2, "--out", out, "--json", *bodies)
    data = json.loads(told)
    assert code == 0 and data["responses"] == 6 and data["requests"] == 4 and data["prompt_tokens"] == 28
    assert data["right"] + data["not_right"] == 6 and data["completion_tokens"] > 0 and data["unreported"] == 0
    request = api.requests[-1]
    assert (request["top_k"], request["chat_template_kwargs"], request["max_tokens"]) == (7, {"a": False}, 9)
    assert request["top_logprobs"] == 20 and len(out.read_text().splitlines()) == 6


def test_sample_that_fails_says_how_to_go_on(api, run, tmp_path):
    api.next.append(answer())
    api.usual = status(500, "oh no")
    code, told, err = run(
        "sample", "--task", "homework", "--questions", 1, "-n", 2, "--out", tmp_path / "r.jsonl", "--retries", 1
    )
    assert (code, told) == (1, "") and err.count("\n") == 1 and "2 of 2 responses are missing: " in err
    assert "failed after 2 tries: HTTP status 500: 'oh no'; the others are in" in err


@pytest.mark.parametrize(
    ("fault", "code", "said"),
    [(status(401, f"bad key {KEY}"), 2, "refuses the key"), (status(404, "no"), 2, "has no model 'tiny'"),
     (answer(logprobs=None), 2, "returned no log-probabilities"), (status(503), 1, "HTTP status 503")],
)  # fmt: skip
def test_what_is_wrong_from_the_start_is_one_sentence(api, run, head, tmp_path, fault, code, said):
    api.usual = fault
    for command in (
        ("sample", "--task", "homework", "--out", tmp_path / "r.jsonl"),
        ("best-of-n", "--reward-model", head, "1 + 1"),
    ):
        found, told, err = run(*command, "--retries", 0)
        assert (found, told) == (code, "") and said in err and err.startswith("swift-rm: ")
        assert [line for line in err.splitlines() if "requests" not in line or "log-prob" in line] == [err.splitlines()[-1]]


def test_typed_questions_are_answered(api, run, head):
    code, told, err = run("best-of-n", "--reward-model", head, "-n", 3, *QUESTIONS)
    records = [json.loads(line) for line in told.splitlines()]
    assert code == 0 and [record["question_id"] for record in records] == ["question-0", "question-1", "question-2"]
    assert all(len(record["candidates"]) == 3 and record["prompt_ids"] == [] for record in records)
    assert records[0]["best"]["text"] and records[0]["model"] == {"id": "tiny", "revision": None}
    assert "4 requests, 0 retries, 28 prompt tokens" in err


def test_some_typed_questions_fail(api, run, head):
    api.usual = fails_on("1 + 2")
    code, told, err = run("best-of-n", "--reward-model", head, "-n", 3, "--retries", 0, *QUESTIONS)
    assert code == 1 and len(told.splitlines()) == 2
    assert err.splitlines()[-1].startswith("swift-rm: 1 of 3 questions have no candidate: ")


def test_a_file_of_questions_is_answered_and_gone_on_with(api, run, head, tmp_path):
    files = ("--input", asked(tmp_path / "in.jsonl"), "--out")
    assert run("best-of-n", "--reward-model", head, *files, tmp_path / "whole.jsonl")[0] == 0
    api.usual = fails_on("1 + 3")
    code, told, err = run("best-of-n", "--reward-model", head, *files, tmp_path / "r.jsonl", "--retries", 0)
    assert (code, told) == (1, "") and "2 of 3 are answered in" in err and "the same command goes on" in err
    assert len((tmp_path / "r.jsonl").read_text().splitlines()) == 2
    api.usual = answer()
    code, told, _ = run("best-of-n", "--reward-model", head, *files, tmp_path / "r.jsonl", "--json")
    assert code == 0 and json.loads(told)["requests"] == 2 and json.loads(told)["ended"] == {"all": 3}
    assert (tmp_path / "r.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    code, _, err = run("best-of-n", "--reward-model", head, *files, tmp_path / "r.jsonl", "--temperature", 0.5)
    assert code == 2 and "other settings (there, now): {'temperature': (1.0, 0.5)}" in err
    code, told, _ = run("best-of-n", "--reward-model", head, *files, "-")
    assert code == 0 and len(told.splitlines()) == 3


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("sample", ["--layers", "-1"], "--layers needs the language model here, and not behind --api"),
        ("sample", ["--features", "f"], "--features needs"),
        ("sample", ["--ray"], "--ray needs"),
        ("sample", ["--device", "cpu"], "--device needs"),
        ("sample", ["--batch-size", "3"], "--batch-size needs"),
        (
            "sample",
            ["--top-k", "5"],
            "--top-k needs the language model here, and not behind --api, which gets it as --extra-body",
        ),
        ("sample", ["--extra-body", "[1]"], "must be JSON objects"),
        ("sample", ["--extra-body", '{"n": 1}'], "extra_body cannot set 'n'"),
        ("sample", ["--concurrency", "0"], "concurrency at least 1"),
        ("sample", ["--top-logprobs", "21"], "top_logprobs 0 to 20"),
        ("best-of-n", ["--prune", "halving"], "--prune needs"),
        ("best-of-n", ["--stop-at", "0.9"], "--stop-at needs"),
        ("best-of-n", ["--raw"], "--raw needs"),
    ],
)
def test_options_that_do_not_fit_are_refused_by_name(api, run, head, tmp_path, command, options, said):
    rest = ["--task", "homework", "--out", tmp_path / "r.jsonl"] if command == "sample" else ["--reward-model", head, "1 + 1"]
    code, told, err = run(command, *rest, *options)
    assert (code, told) == (2, "") and said in err and not api.requests


def test_options_of_an_api_go_with_one(capsys, tmp_path):
    for option in (
        ["--concurrency", "2"],
        ["--timeout", "9"],
        ["--api-key-env", "X"],
        ["--extra-body", "{}"],
        ["--retries", "0"],
    ):
        arguments = ["sample", "--model", "tiny-reasoner", "--task", "homework", "--out", str(tmp_path / "r.jsonl")]
        assert main([*arguments, *option]) == 2
        assert f"{option[0]} goes with --api" in capsys.readouterr().err
    assert main(["best-of-n", "--model", "tiny-reasoner", "--reward-model", "tiny-reasoner-reward", "--any-model", "1"]) == 2
    assert "--any-model goes with --api" in capsys.readouterr().err
