import json
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

import swift_rm.models.load
from swift_rm import SwiftConfig, SwiftRewardModel, best_of_n
from swift_rm.cli.main import main
from swift_rm.models.load import ASSETS, load_language_model
from swift_rm.records.question_records import read_records
from swift_rm.sampling.generation import seed_for
from swift_rm.tasks.homework import HomeworkTask
from tests.tiny_models import classifier

MODELS = ["--model", "tiny-reasoner", "--reward-model", "tiny-reasoner-reward"]
PROMPTS = [question.prompt for question in HomeworkTask("test").questions(8)]
QUESTIONS = [
    {"question": PROMPTS[0][-1]["content"]}, {"question_id": "messages", "prompt": PROMPTS[1]}, {"id": 3, "prompt": PROMPTS[2]},
    {"id": "ids", "prompt_ids": [1, 3, 19, 24, 27, 18, 22, 4, 9]}, *[{"prompt": prompt} for prompt in PROMPTS[4:]],
]  # fmt: skip
NAMES = ["question-0", "messages", "3", "ids", "question-4", "question-5", "question-6", "question-7"]
WAVES = ["-n", "5", "--batch-size", "3", "--wave", "2", "--stop-at", "0.9", "--min-gain", "0.01", "--prune", "halving"]


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def run(capsys, *arguments):
    code = main(["best-of-n", *MODELS, *map(str, arguments)])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    return write(tmp_path_factory.mktemp("asked") / "questions.jsonl", QUESTIONS)


@pytest.fixture(scope="module")
def whole(asked):
    out = asked.parent / "whole.jsonl"
    assert main(["best-of-n", *MODELS, *WAVES, "--input", str(asked), "--out", str(out)]) == 0
    return out


def test_a_line_holds_the_question_its_candidates_and_what_decided_them(whole):
    records = lines(whole)
    assert [record["question_id"] for record in records] == NAMES
    assert records[0]["prompt"] == PROMPTS[0]
    assert (records[3]["prompt"], records[3]["prompt_ids"]) == (None, QUESTIONS[3]["prompt_ids"])
    order = ["question_id", "prompt", "prompt_ids", "best", "candidates", "tokens_spent", "tokens_saved", "ended", "settings",
             "model", "reward_model"]  # fmt: skip
    fields = ["text", "token_ids", "reward", "probability", "logprob", "finish_reason", "answer", "flag", "external"]
    for record in records:
        assert list(record) == order
        assert list(record["best"]) == fields
        assert record["best"] in record["candidates"]
        assert record["tokens_spent"] == sum(len(one["token_ids"]) for one in record["candidates"])
        assert record["model"] == {"id": "tiny-reasoner", "revision": None}
        assert record["reward_model"] == "tiny-reasoner-reward"
        wanted = {"n": 5, "wave": 2, "stop_at": 0.9, "prune": "halving", "prune_min_tokens": 16, "seed": 0, "dtype": "float32"}
        assert {key: record["settings"][key] for key in wanted} == wanted
        assert "batch_size" not in record["settings"]
    assert len({record["ended"] for record in records}) > 1


def test_the_lines_are_the_results_of_best_of_n_batch_by_batch(whole):
    model, tokenizer = load_language_model(device="cpu")
    rm = SwiftRewardModel.from_pretrained(ASSETS / "tiny-reasoner-reward")
    for start in (0, 3, 6):
        records = lines(whole)[start : start + 3]
        results = best_of_n(
            model, tokenizer, rm, [record["prompt_ids"] for record in records], 5, "shrunk", "halving", 0.9, wave=2,
            min_gain=0.01, seed=seed_for(0, *NAMES[start : start + 3]),
        )  # fmt: skip
        for record, result in zip(records, results, strict=True):
            got = [(one["token_ids"], one["reward"], one["finish_reason"]) for one in record["candidates"]]
            assert got == [(one.token_ids, one.reward, one.finish_reason) for one in result.candidates]
            assert record["best"]["token_ids"] == result.best.token_ids
            assert (record["tokens_spent"], record["ended"]) == (result.tokens_spent, result.ended)


def test_the_lines_are_explained(whole, tmp_path, capsys):
    code = main(["explain", *MODELS, "--input", str(whole), "--out", str(tmp_path / "view.html"), "--json"])
    assert code == 0
    data = json.loads(capsys.readouterr().out)
    assert (data["questions"], data["responses"]) == (8, sum(len(record["candidates"]) for record in lines(whole)))


@pytest.mark.parametrize("calls", [1, 30, 80, 140])
def test_ctrl_c_at_any_moment_leaves_whole_answers_and_the_rerun_ends_equal(asked, whole, tmp_path, capsys, monkeypatch, calls):
    def load(*args, **kwargs):
        model, tokenizer = load_language_model(*args, **kwargs)
        left = iter(range(calls))

        def count(*_):
            if next(left, None) is None:
                raise KeyboardInterrupt

        model.register_forward_pre_hook(count)
        return model, tokenizer

    out = tmp_path / "results.jsonl"
    monkeypatch.setattr(swift_rm.models.load, "load_language_model", load)
    code, printed, error = run(capsys, *WAVES, "--input", asked, "--out", out)
    monkeypatch.undo()
    assert (code, printed) == (130, "")
    assert error == (
        f"swift-rm: stopped; {len(lines(out))} of 8 questions are answered in {out}, and the same command goes on from there\n"
    )
    assert whole.read_text().startswith(out.read_text())
    assert len(out.read_text()) < len(whole.read_text())
    assert run(capsys, *WAVES, "--input", asked, "--out", out)[0] == 0
    assert out.read_bytes() == whole.read_bytes()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.99])
def test_a_file_cut_anywhere_is_mended_and_ends_equal(asked, whole, tmp_path, capsys, share):
    out, content = tmp_path / "results.jsonl", whole.read_bytes()
    out.write_bytes(content[: int(share * len(content))])
    assert run(capsys, *WAVES, "--input", asked, "--out", out)[0] == 0
    assert out.read_bytes() == content


def test_a_run_killed_or_stopped_from_outside_goes_on_and_ends_equal(tmp_path, capsys):
    asked = write(tmp_path / "asked.jsonl", [{"question": f"{i}+{i + 1}"} for i in range(10, 26)])
    options = ["-n", "2", "--batch-size", "1", "--input", str(asked), "--out"]
    assert run(capsys, *options, tmp_path / "whole.jsonl")[0] == 0
    for name, kill, code in (("killed", signal.SIGKILL, -signal.SIGKILL), ("stopped", signal.SIGINT, 130)):
        out = tmp_path / f"{name}.jsonl"
        command = [sys.executable, "-m", "swift_rm.cli", "best-of-n", *MODELS, *options, str(out)]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if out.exists() and out.read_bytes().count(b"\n") > 1:  # while the first line is synced, an interrupt takes it back
                break
            time.sleep(0.02)
        process.send_signal(kill)
        error = process.communicate(timeout=60)[1]
        assert process.returncode == code
        assert 0 < len(out.read_bytes().splitlines()) < 16
        if code == 130:
            said = f"stopped; {len(lines(out))} of 16 questions are answered in {out}, and the same command goes on from there"
            assert error == f"swift-rm: {said}\n"
        assert run(capsys, *options, out)[0] == 0
        assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--seed", 1], "other settings (there, now): {'seed': (0, 1)}"),
        (["-n", 4], "other settings (there, now): {'n': (5, 4)}"),
        (["--prune-min-tokens", 8], "other settings (there, now): {'prune_min_tokens': (16, 8)}"),
        (["--reward-model", "{tmp}/tiny-reasoner-reward"], "other settings (there, now): {'reward_weights': ('"),
        (["--reward-model", "{tmp}/rm"], "other reward model (there, now): {'reward_model': ('tiny-reasoner-reward', 'rm')}"),
        (["--model", "{tmp}/lm"], "other model (there, now): {'id': ('tiny-reasoner', 'lm')}"),
        (["--input", "{tmp}/fewer.jsonl"], "answers question 'question-7', which is not among the questions given"),
        (["--input", "{tmp}/other.jsonl"], "answers another question 'question-0': its prompt differs"),
    ],
)
def test_a_file_of_another_run_is_refused_and_left_alone(asked, whole, tmp_path, capsys, change, message):
    rm = SwiftRewardModel.from_pretrained(ASSETS / "tiny-reasoner-reward")
    rm.save_pretrained(tmp_path / "rm")
    with torch.no_grad():
        rm.head.bias += 1
    rm.save_pretrained(tmp_path / "tiny-reasoner-reward")
    if "{tmp}/lm" in change:
        shutil.copytree(ASSETS / "tiny-reasoner", tmp_path / "lm")
    write(tmp_path / "fewer.jsonl", QUESTIONS[:-1])
    write(tmp_path / "other.jsonl", [{"question": "1+1"}, *QUESTIONS[1:]])
    out = tmp_path / "results.jsonl"
    out.write_bytes(whole.read_bytes())
    change = [str(argument).replace("{tmp}", str(tmp_path)) for argument in change]
    code, printed, error = run(capsys, *WAVES, "--input", asked, "--out", out, *change)
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert message in error
    assert out.read_bytes() == whole.read_bytes()


def test_a_finished_file_is_left_alone_and_goes_on_with_more_questions_of_its_length(asked, whole, tmp_path, capsys):
    out = tmp_path / "results.jsonl"
    out.write_bytes(whole.read_bytes())
    code, printed, _ = run(capsys, *WAVES, "--input", asked, "--out", out, "--json")
    data = json.loads(printed)
    assert (code, data["questions"], sum(data["ended"].values())) == (0, 8, 8)
    assert data["tokens_spent"] == sum(record["tokens_spent"] for record in lines(out))
    assert out.read_bytes() == whole.read_bytes()
    longer = write(tmp_path / "longer.jsonl", [*QUESTIONS, {"prompt_ids": [1, 3, *[19] * 40, 4, 9]}])
    code, _, error = run(capsys, *WAVES, "--input", longer, "--out", out)
    assert (code, "{'max_new_tokens': (" in error) == (2, True)
    more = write(tmp_path / "more.jsonl", [*QUESTIONS, {"question": "4+4"}])
    assert run(capsys, *WAVES, "--input", more, "--out", out)[0] == 0
    assert out.read_bytes().startswith(whole.read_bytes())
    assert [record["question_id"] for record in lines(out)] == [*NAMES, "question-8"]


def test_a_budget_is_shared_out_among_all_questions_in_one_run(asked, tmp_path, capsys, monkeypatch):
    out, command = (
        tmp_path / "results.jsonl",
        ["-n", 8, "--wave", 1, "--batch-size", 3, "--budget", 400, "--input", asked, "--out"],
    )
    assert run(capsys, *command, out)[0] == 0
    records = lines(out)
    assert [record["question_id"] for record in records] == NAMES
    assert {record["ended"] for record in records} <= {"budget", "all", "gain"}
    assert len({len(record["candidates"]) for record in records}) > 1
    assert 200 < sum(record["tokens_spent"] for record in records) < 500
    content = out.read_bytes()
    assert run(capsys, *command, out)[0] == 0
    assert out.read_bytes() == content
    out.write_bytes(b"".join(content.splitlines(keepends=True)[:3]))
    code, _, error = run(capsys, *command, out)
    assert code == 2
    assert "holds 3 of 8 questions, and --budget 400 is shared out among all of them in one run" in error

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["swift_rm.decoding.best_of_n"], "best_of_n", interrupted)
    code, printed, error = run(capsys, *command, tmp_path / "new.jsonl")
    assert (code, printed) == (130, "")
    assert error == "swift-rm: stopped; nothing was written: a budget is for all questions in one run\n"
    assert (tmp_path / "new.jsonl").read_bytes() == b""


def test_lines_to_stdout_are_the_lines_of_the_file_and_nothing_else(asked, whole, capsys):
    code, printed, error = run(capsys, *WAVES, "--input", asked, "--out", "-")
    assert (code, printed, error) == (0, whole.read_text(), "")
    assert run(capsys, *WAVES, "--input", asked, "--out", "-", "--json")[1] == whole.read_text()


def test_typed_questions_are_printed_as_one_json_list(capsys):
    code, printed, error = run(capsys, "--json", "-n", 3, "--prune", "halving", "--prune-min-tokens", 4, "27+15-08", "31-14+22")
    assert (code, error) == (0, "")
    records = json.loads(printed)
    assert [record["prompt"][0]["content"] for record in records] == ["27+15-08", "31-14+22"]
    for record in records:
        assert {"best", "candidates", "tokens_spent", "tokens_saved", "ended", "settings"} <= set(record)
        assert [one["finish_reason"] for one in record["candidates"]].count("pruned") == 2
        assert record["best"] == record["candidates"][0]


def test_ctrl_c_prints_what_is_there_of_typed_questions(capsys, monkeypatch):
    def interrupted(*args, on_results, **kwargs):
        on_results(real(*args, **kwargs)[:1])
        raise KeyboardInterrupt

    real = sys.modules["swift_rm.decoding.best_of_n"].best_of_n
    monkeypatch.setattr(sys.modules["swift_rm.decoding.best_of_n"], "best_of_n", interrupted)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    code, printed, error = run(capsys, "-n", 2, "27+15-08", "31-14+22")
    assert (code, error) == (130, "swift-rm: stopped; 1 of 2 questions were answered in full\n")
    assert printed.startswith("27+15-08\n")
    assert printed.count("\n* ") == 1
    assert "31-14+22" not in printed


def test_a_guide_of_pruning_and_an_external_model_are_read(tokenizer, tmp_path, capsys):
    classifier(tokenizer).save_pretrained(tmp_path / "second")
    tokenizer.save_pretrained(tmp_path / "second")
    asked = write(tmp_path / "asked.jsonl", [{"question": "27+15"}, {"prompt_ids": [1, 3, 9]}])
    command = ["--select", "rank", "--external-model", tmp_path / "second", "-n", 4, "--out", "-"]
    code, printed, error = run(capsys, *command, "--input", write(tmp_path / "one.jsonl", [{"question": "27+15"}]))
    assert (code, error) == (0, "")
    (record,) = [json.loads(line) for line in printed.splitlines()]
    assert len({one["external"] for one in record["candidates"]} - {None}) > 1
    assert record["settings"]["external_model"] == {"id": "second", "revision": None}
    code, _, error = run(capsys, *command, "--input", asked)
    assert (code, "question 'question-1' has only token ids" in error) == (2, True)
    rm = SwiftRewardModel.from_pretrained(ASSETS / "tiny-reasoner-reward")
    with torch.no_grad():
        rm.head.weight[-1] *= -1
    rm.save_pretrained(tmp_path / "guide")
    how = ["-n", 6, "--prune", "halving", "--prune-min-tokens", 6, "--json", "27+15-08+31"]
    plain, guided = (json.loads(run(capsys, *how, *guide)[1])[0] for guide in ([], ["--prune-model", tmp_path / "guide"]))
    assert guided["settings"]["prune_model"].startswith("guide ")
    assert [one["token_ids"] for one in plain["candidates"]] != [one["token_ids"] for one in guided["candidates"]]
    SwiftRewardModel(SwiftConfig(64, (1,))).save_pretrained(tmp_path / "wide")
    code, _, error = run(capsys, *how, "--prune-model", tmp_path / "wide")
    assert (code, "expected hidden states of width 64" in error) == (2, True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["27+15", "--batch-size", "-1"], "-n and --batch-size must be at least 1, got 16 and -1"),
        ([], "give questions either as text or with --input, got neither"),
        (["27+15", "--input", "{tmp}/q", "--out", "-"], "got both"),
        (["--input", "{tmp}/q"], "--input and --out go together: where to, --out?"),
        (["27+15", "--out", "{tmp}/o"], "--input and --out go together: typed questions are printed"),
        (["27+15", "--select", "rank"], "read an --external-model: got rank, none"),
        (["27+15", "--external-model", "e"], "read an --external-model: got shrunk, e"),
        (["27+15", "--prune-model", "g"], "say how to --prune, which is not asked for"),
        (["27+15", "--wave", "2"], "say how to go on with --stop-at or --budget, neither of which"),
        (["27+15", "--stop-at", "2"], "stop_at is a probability above 0 and at most 1, got 2.0"),
        (["--input", "{tmp}/q", "--out", "{tmp}/q"], "--out is the --input"),
        (["--input", "{tmp}/none", "--out", "-"], "none"),
        (["--input", "{tmp}/q", "--out", "{tmp}/other"], "other:1: not a result of best-of-n: it has no 'question_id'"),
        (["--input", "{tmp}/strange", "--out", "-"], "the prompt of question 'question-0' holds the token id 999999"),
    ],
)
def test_misuse_is_one_sentence(tmp_path, capsys, options, message):
    write(tmp_path / "q", QUESTIONS)
    write(tmp_path / "other", [{"text": "precious"}])
    write(tmp_path / "strange", [{"prompt_ids": [1, 999999]}])
    code, printed, error = run(capsys, *(option.replace("{tmp}", str(tmp_path)) for option in options))
    assert (code, printed, error.count("\n")) == (2, "", 1)
    assert message in error


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"prompt_ids": []}, "'prompt_ids' must be a list of at least one token id, got []"),
        ({"prompt_ids": [1, True]}, "'prompt_ids' must be"),
        ({"prompt": []}, "'prompt' must be text or chat messages, got []"),
        ({"prompt": [{"content": "4"}]}, "'prompt' must be text or chat messages"),
        ({"question": {"text": "4"}}, "there is no 'question' or 'prompt' as text, and no 'prompt_ids'; it has ['question']"),
        ({"id": "question-0", "question": "4"}, "the id 'question-0' was used before"),
        ({"question": "\ud800"}, "surrogates not allowed"),
    ],
)
def test_a_line_that_is_no_question_is_named(tmp_path, record, message):
    path = write(tmp_path / "q.jsonl", [{"question": "27+15"}, record])
    with pytest.raises(ValueError) as error:
        read_records(str(path))
    assert str(error.value).startswith(f"{path}:2: no question to answer: ")
    assert message in str(error.value)
