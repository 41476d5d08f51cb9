import json
import math
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch

from swift_rm import sample
from swift_rm.records.rollouts import read_rollouts
from swift_rm.sampling.generation import end_tokens, generate_responses
from swift_rm.tasks.homework import HomeworkTask

SETTINGS = {"max_new_tokens": 12}


def questions(count=5):
    return list(HomeworkTask("test").questions(count))


def test_every_question_has_n_records_with_its_tokens_and_statistics(llama, tokenizer, tmp_path):
    task, out = HomeworkTask("test"), tmp_path / "r.jsonl"
    rollouts = sample(llama, tokenizer, questions(), 3, out, grade=task.grade, batch_size=2, **SETTINGS)
    assert read_rollouts(out) == rollouts
    assert [(r.question_id, r.extra["sample"]) for r in rollouts] == [(q.question_id, i) for q in questions() for i in range(3)]
    for rollout in rollouts:
        assert 1 <= len(rollout.response_ids) <= 12
        assert (rollout.finish_reason == "stop") == (rollout.response_ids[-1] == tokenizer.eos_token_id)
        assert tokenizer.eos_token_id not in rollout.response_ids[:-1]
        assert rollout.response == tokenizer.decode(rollout.response_ids, skip_special_tokens=True)
        assert rollout.label == task.grade(questions()[0], rollout.response).label or rollout.label == 1
        assert rollout.sampling["temperature"] == 1.0


@torch.no_grad()
def test_statistics_equal_those_of_a_teacher_forced_pass(llama, tokenizer):
    rollouts = sample(llama, tokenizer, questions(3), 4, batch_size=3, **SETTINGS)
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids + rollout.response_ids])
        logprobs = torch.log_softmax(llama(ids).logits[0].float(), -1)[len(rollout.prompt_ids) - 1 : -1]
        chosen = logprobs.gather(-1, torch.tensor(rollout.response_ids)[:, None])[:, 0]
        assert rollout.extra["token_logprobs"] == pytest.approx(chosen.tolist(), abs=2e-4)
        assert rollout.logprob_mean == pytest.approx(float(chosen.mean()), abs=1e-4)
        assert rollout.extra["token_confidence"] == pytest.approx((-logprobs.topk(20).values.mean(-1)).tolist(), abs=2e-4)
        certainty = -(logprobs + math.log(logprobs.shape[-1])).mean()
        assert rollout.extra["self_certainty"] == pytest.approx(float(certainty), abs=1e-4)


def test_the_same_seed_gives_the_same_file_and_another_seed_another(llama, tokenizer, tmp_path):
    torch.manual_seed(5)
    state = torch.get_rng_state()
    files = [tmp_path / name for name in "abc"]
    for file, seed in zip(files, (1, 1, 2), strict=True):
        sample(llama, tokenizer, questions(), 2, file, seed=seed, batch_size=2, **SETTINGS)
    assert files[0].read_bytes() == files[1].read_bytes() != files[2].read_bytes()
    assert torch.equal(torch.get_rng_state(), state), "the caller's random state was touched"


@pytest.mark.parametrize("kept", [0, 1, 5, 7])
def test_a_cut_file_is_completed_to_what_an_uninterrupted_run_writes(llama, tokenizer, tmp_path, kept):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    sample(llama, tokenizer, questions(), 3, whole, batch_size=2, **SETTINGS)
    lines = whole.read_text().splitlines(keepends=True)
    cut.write_text("".join(lines[:kept]) + lines[kept][:40])
    sample(llama, tokenizer, questions(), 3, cut, batch_size=2, **SETTINGS)
    assert cut.read_bytes() == whole.read_bytes()


def test_ctrl_c_keeps_what_was_finished(llama, tokenizer, tmp_path):
    calls = []

    def interrupted(question, response):
        calls.append(question.question_id)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return HomeworkTask("test").grade(question, response)

    with pytest.raises(KeyboardInterrupt):
        sample(llama, tokenizer, questions(), 3, tmp_path / "r", grade=interrupted, batch_size=1, **SETTINGS)
    assert len(read_rollouts(tmp_path / "r")) == 6
    rollouts = sample(
        llama, tokenizer, questions(), 3, tmp_path / "r", grade=HomeworkTask("test").grade, batch_size=1, **SETTINGS
    )
    assert read_rollouts(tmp_path / "r") == rollouts


def test_a_run_killed_with_sigkill_goes_on_to_the_same_file(tmp_path):
    def command(out, count=60):
        arguments = ["sample", "--model", "tiny-reasoner", "--task", "homework:test", "--questions", str(count), "-n", "2"]
        return [sys.executable, "-m", "swift_rm.cli", *arguments, "--batch-size", "1", "--max-new-tokens", "8", "--out", str(out)]

    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    subprocess.run(command(whole), check=True, capture_output=True, timeout=300)
    for wanted in (1, 30):
        run = subprocess.Popen(command(killed), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while run.poll() is None and time.monotonic() < deadline:
            if killed.exists() and killed.read_bytes().count(b"\n") >= wanted:
                break
            time.sleep(0.005)
        os.kill(run.pid, signal.SIGKILL)
        run.wait()
        assert 0 < killed.read_bytes().count(b"\n") < 120
    subprocess.run(command(killed), check=True, capture_output=True, timeout=300)
    keys = [(json.loads(line)["question_id"], json.loads(line)["sample"]) for line in killed.read_text().splitlines()]
    assert len(keys) == len(set(keys)) == 120
    assert killed.read_bytes() == whole.read_bytes()


def test_a_file_of_other_settings_questions_or_another_model_is_refused(llama, tokenizer, tmp_path):
    out = tmp_path / "r.jsonl"
    sample(llama, tokenizer, questions(2), 2, out, **SETTINGS)
    before = out.read_bytes()
    with pytest.raises(ValueError, match=r"sampled with other settings .*'temperature': \(1\.0, 0\.5\)"):
        sample(llama, tokenizer, questions(2), 2, out, temperature=0.5, **SETTINGS)
    sample(llama, tokenizer, questions(2), 2, out, batch_size=1, **SETTINGS)  # smaller batches may go on with it
    assert out.read_bytes() == before
    altered = [replace(question, reference="00") for question in questions(2)]
    with pytest.raises(ValueError, match=r"another question .* its prompt or reference answer differs"):
        sample(llama, tokenizer, altered, 2, out, **SETTINGS)
    with pytest.raises(ValueError, match="another question 'question-0'"):
        sample(llama, tokenizer, ["01+02"], 2, tmp_path / "plain", **SETTINGS)
        sample(llama, tokenizer, ["55-44"], 2, tmp_path / "plain", **SETTINGS)
    with pytest.raises(ValueError, match="which is not among the questions given"):
        sample(llama, tokenizer, questions(4)[2:], 2, out, **SETTINGS)
    line = json.loads(before.splitlines()[0])
    line["model"] = {"id": "org/another", "revision": None}
    out.write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"other model .*org/another"):
        sample(llama, tokenizer, questions(2), 2, out, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n and batch_size must be at least 1, got 0"),
        ({"questions": []}, "no questions"),
        ({"questions": "01+02"}, "must be a list, not one text"),
        ({"generation_config": object()}, "generation_config cannot be passed on"),
        ({"questions": [""]}, "prompt of question 'question-0' is empty"),
        ({"do_sample": False}, "do_sample=False gives 2 equal responses"),
        ({"num_beams": 4}, "num_beams=4 is not supported"),
        ({"max_new_tokens": 5000}, "leaves no room for 5000 new tokens: the model's context is 2048"),
    ],
)
def test_what_cannot_be_sampled_is_refused(llama, tokenizer, change, message):
    arguments = {"questions": questions(2), "n": 2, **SETTINGS, **change}
    with pytest.raises(ValueError, match=message):
        sample(llama, tokenizer, arguments.pop("questions"), arguments.pop("n"), **arguments)


def test_two_questions_of_one_id_are_refused(llama, tokenizer):
    with pytest.raises(ValueError, match="two questions have the id"):
        sample(llama, tokenizer, questions(1) * 2, 2, **SETTINGS)


def test_greedy_equals_generate(llama, tokenizer):
    rollouts = sample(llama, tokenizer, questions(2), 1, do_sample=False, **SETTINGS)
    for rollout in rollouts:
        ids = torch.tensor([rollout.prompt_ids])
        expected = llama.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12)[0, ids.shape[1] :]
        assert rollout.response_ids == expected.tolist()[: len(rollout.response_ids)]


def test_without_an_end_token_every_response_ends_by_length(llama, tokenizer):
    assert end_tokens(llama, {"eos_token_id": None}) == frozenset()
    rows = generate_responses(llama, tokenizer, [[1, 3]], 2, 0, {"max_new_tokens": 5, "do_sample": True, "eos_token_id": -1})
    assert [(len(r.token_ids), r.finish_reason) for r in rows[0]] == [(5, "length")] * 2


def test_a_models_own_penalties_do_not_touch_plain_sampling_or_its_statistics(llama, tokenizer, monkeypatch):
    expected = sample(llama, tokenizer, questions(2), 2, **SETTINGS)
    monkeypatch.setattr(llama.generation_config, "repetition_penalty", 50.0)
    monkeypatch.setattr(llama.generation_config, "no_repeat_ngram_size", 1)
    monkeypatch.setattr(llama.generation_config, "temperature", 0.2)
    monkeypatch.setattr(llama.generation_config, "top_k", 1)
    monkeypatch.setattr(llama.generation_config, "num_beams", 3)
    assert sample(llama, tokenizer, questions(2), 2, **SETTINGS) == expected
    assert any(len(set(r.response_ids)) < len(r.response_ids) for r in expected)
    for rollout in sample(llama, tokenizer, questions(2), 2, no_repeat_ngram_size=1, **SETTINGS):
        assert len(set(rollout.response_ids)) == len(rollout.response_ids)
        assert rollout.sampling["no_repeat_ngram_size"] == 1


def test_the_users_criteria_processors_and_stop_strings_apply_and_padding_is_cut(llama, tokenizer, monkeypatch):
    class EndsIn:
        def __init__(self, tokenizer, strings):
            self.tokenizer, self.strings = tokenizer, strings

        def __call__(self, input_ids, scores, **kwargs):
            texts = [self.tokenizer.decode(row[width:]) for row in input_ids]
            return torch.tensor([any(text.endswith(s) for s in self.strings) for text in texts])

    def third_token(input_ids, scores, **kwargs):
        done = torch.zeros(len(input_ids), dtype=torch.bool)
        done[0] = input_ids.shape[1] - width >= 3
        return done

    def only_sevens(input_ids, scores):
        return torch.full_like(scores, -torch.inf).index_fill(1, torch.tensor([tokenizer.convert_tokens_to_ids("7")]), 0.0)

    prompt = tokenizer("<bos><question>27+15<student>", add_special_tokens=False)["input_ids"]
    width = len(prompt)
    settings = {"max_new_tokens": 6, "do_sample": True, "logits_processor": [only_sevens]}
    rows = generate_responses(llama, tokenizer, [prompt], 2, 0, {**settings, "stopping_criteria": [third_token]})[0]
    assert [(row.text, row.finish_reason) for row in rows] == [("777", "stop"), ("777777", "length")]
    assert [len(row.token_logprobs) for row in rows] == [3, 6]
    monkeypatch.setattr("transformers.StopStringCriteria", EndsIn)  # transformers' own needs a tokenizer that knows "abcdef"
    rows = generate_responses(llama, tokenizer, [prompt], 2, 0, {**settings, "stop_strings": ["77"]})[0]
    assert [(row.text, row.finish_reason) for row in rows] == [("77", "stop")] * 2


def test_dropout_is_off_while_sampling_and_scoring_and_on_again_after(tokenizer):
    from tests.tiny_models import tiny_model

    model = tiny_model("gpt2", vocab_size=len(tokenizer), resid_pdrop=0.5, n_positions=256).train()
    one, two = (sample(model, tokenizer, questions(2), 1, do_sample=False, **SETTINGS) for _ in range(2))
    assert one == two
    assert model.training
    assert all(module.training for module in model.modules())


def test_a_template_may_be_told_not_to_think(llama, tokenizer):
    rollouts = sample(llama, tokenizer, questions(1), 1, chat_template_kwargs={"enable_thinking": False}, **SETTINGS)
    assert tokenizer.decode(rollouts[0].prompt_ids).endswith("<think_off>")
    assert rollouts[0].sampling["chat_template_kwargs"] == {"enable_thinking": False}
