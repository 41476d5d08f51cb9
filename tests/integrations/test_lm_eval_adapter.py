import copy
import importlib
import json
import logging
import subprocess
import sys
from pathlib import Path

import datasets
import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, score
from swift_rm.models.load import load_language_model, resolve
from swift_rm.tasks.answers import find_answer
from swift_rm.tasks.homework import HomeworkTask

pytestmark = pytest.mark.adapters

TASK = Path(__file__).parents[2] / "examples" / "lm_eval_homework" / "homework.yaml"
LIMIT, REPEATS = 20, 16
SETTINGS = {"do_sample": True, "temperature": 1.0, "max_gen_toks": 64, "until": []}


@pytest.fixture(scope="module")
def adapter():
    return importlib.import_module("swift_rm.integrations.lm_eval")


@pytest.fixture(scope="module")
def loaded():
    return *load_language_model(progress=False), SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))


@pytest.fixture(scope="module")
def lm(adapter, loaded):
    model, tokenizer, rm = loaded
    return adapter.SwiftLM(model, rm, tokenizer=tokenizer, batch_size=10)


@pytest.fixture(scope="module")
def evaluated(lm):
    from lm_eval import simple_evaluate

    return simple_evaluate(lm, tasks=[str(TASK)], limit=LIMIT, apply_chat_template=True, bootstrap_iters=0)


def requests(contexts, settings, repeats=1):
    from lm_eval.api.instance import Instance

    asked = [Instance("generate_until", {}, (context, dict(settings)), i) for i, context in enumerate(contexts)]
    return [one for one in asked for _ in range(repeats)]


def contexts(lm, n):
    questions = HomeworkTask("test").questions(n)
    return [lm.apply_chat_template([{"role": "user", "content": question.question_id}]) for question in questions]


def prompts(lm, asked):
    return [lm.tokenizer(context, add_special_tokens=False)["input_ids"] for context in asked]


def test_the_best_response_is_right_more_often_than_the_first(evaluated):
    told = evaluated["results"]["swift_homework"]
    first, vote, best, shrunk = (told[f"exact_match,{name}"] for name in ("first", "majority", "best", "shrunk"))
    assert 0.2 < first < best <= shrunk + 0.2
    assert max(first, vote) < shrunk
    assert told["sample_len"] == LIMIT


def test_the_filter_chose_what_score_ranks_first(evaluated, lm, loaded):
    samples = [one for one in evaluated["samples"]["swift_homework"] if one["filter"] == "best"]
    assert len(samples) == LIMIT
    for one in samples[:6]:
        ((texts,),) = (one["resps"],)
        context = one["arguments"][0][0]
        assert len(texts) == REPEATS
        rewards = score(*loaded, prompts(lm, [context]) * REPEATS, texts)
        chosen = texts[max(range(REPEATS), key=rewards.__getitem__)]
        assert one["filtered_resps"] == [find_answer(chosen)]
        assert one["exact_match"] == (find_answer(chosen) == one["doc"]["answer"])


def test_responses_carry_the_rewards_of_their_generation(adapter, lm, loaded):
    asked = contexts(lm, 3)
    plan = [asked[0], asked[1], asked[2], asked[0]]

    def draw(seed):
        fresh = adapter.SwiftLM(loaded[0], loaded[2], tokenizer=loaded[1], batch_size=2)
        torch.manual_seed(seed)  # what --seed does
        return fresh.generate_until(requests(plan, SETTINGS, repeats=2), disable_tqdm=True)

    texts = draw(5)
    assert len(set(texts)) > 4
    places = [context for context in plan for _ in range(2)]
    assert [one.reward for one in texts] == pytest.approx(score(*loaded, prompts(lm, places), list(texts)), abs=1e-4)
    assert draw(5) == texts != draw(6)


@pytest.mark.parametrize("until", [[], [","], ["<answer>", "wait"]])
def test_greedy_responses_are_those_of_their_own_class(adapter, lm, loaded, until):
    from lm_eval.models.huggingface import HFLM

    theirs = HFLM(loaded[0], tokenizer=loaded[1], batch_size=2)
    settings = [{"do_sample": False, "max_gen_toks": limit, "until": until} for limit in (64, 5)]
    asked = [one for each in settings for one in requests(contexts(lm, 3), each)]
    ours = lm.generate_until(asked, disable_tqdm=True)
    assert ours == theirs.generate_until(asked, disable_tqdm=True)
    assert len(set(ours)) == 6
    assert all(isinstance(one, adapter.ScoredText) for one in ours)


def test_responses_go_through_tasks_without_our_filter(lm):
    from lm_eval import simple_evaluate

    rows = [{"question": one.question_id, "answer": one.reference} for one in HomeworkTask("test").questions(3)]
    plain = {
        "task": "plain", "custom_dataset": lambda **config: {"test": datasets.Dataset.from_list(rows)}, "test_split": "test",
        "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", "generation_kwargs": {**SETTINGS, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    found = simple_evaluate(lm, tasks=[plain], apply_chat_template=True, bootstrap_iters=0)
    assert found["results"]["plain"]["exact_match,none"] == 0.0  # nothing is cut from the text: it never equals the answer
    assert [one["target"] for one in found["samples"]["plain"]] == [row["answer"] for row in rows]


def test_a_task_of_theirs_runs_with_our_filter(lm, tmp_path):
    from lm_eval import simple_evaluate

    file = tmp_path / "questions.jsonl"
    rows = [{"question": one.question_id, "answer": f"so #### {one.reference}"} for one in HomeworkTask("test").questions(5)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    extract = {"function": "regex", "group_select": -1, "regex_pattern": "(-?[$0-9.,]{2,})|(-?[0-9]+)"}  # gsm8k's own
    best, first = {"function": "best_of_n"}, {"function": "take_first"}
    overrides = {
        "task": "gsm8k", "dataset_path": "json", "dataset_name": None, "doc_to_text": "{{question}}", "num_fewshot": 0,
        "dataset_kwargs": {"data_files": {"train": str(file), "test": str(file)}, "cache_dir": str(tmp_path)},
        "generation_kwargs": SETTINGS, "repeats": 4,
        "filter_list": [{"name": "best", "filter": [best, extract, first]}, {"name": "first", "filter": [extract, first]},
                        {"name": "text", "filter": [best, first]}],
    }  # fmt: skip
    group = {"group": "gsm8k_best_of_n", "task": [overrides]}
    found = simple_evaluate(lm, tasks=[group], apply_chat_template=True, bootstrap_iters=0)
    samples = {name: [one for one in found["samples"]["gsm8k"] if one["filter"] == name] for name in ("best", "text")}
    right = [find_answer(one["filtered_resps"][0]) == row["answer"][-2:] for one, row in zip(samples["text"], rows, strict=True)]
    assert [one["exact_match"] for one in samples["best"]] == right
    assert found["results"]["gsm8k"]["exact_match,best"] == sum(right) / 5
    assert all(one["filtered_resps"][0] in one["resps"][0] and len(one["resps"][0]) == 4 for one in samples["text"])


def test_rewards_survive_copies_and_their_cache(adapter, lm, tmp_path):
    from lm_eval.api.model import CachingLM

    assert copy.deepcopy(adapter.ScoredText("4", 1.5)).reward == 1.5
    cached, asked = CachingLM(lm, str(tmp_path / "cache.db")), requests(contexts(lm, 2), {**SETTINGS, "do_sample": False})
    drawn = cached.generate_until(asked)
    drawer, lm.sampler.draw = lm.sampler.draw, None  # now nothing may be drawn
    try:
        again = cached.generate_until(asked)
    finally:
        lm.sampler.draw = drawer
        lm.set_cache_hook(type(lm.cache_hook)(None))
    assert [(one, one.reward) for one in again] == [(one, one.reward) for one in drawn]


def test_the_filter_follows_its_rule(adapter):
    def texts(*pairs):
        return [adapter.ScoredText(text, reward) for text, reward in pairs]

    nan = float("nan")
    groups = [texts(("4", 0.5), ("5", 2.0), ("4", 1.9)), texts(("7", nan), ("8", -3.0)), texts(("1", 1.0), ("2", 1.0))]
    assert adapter.BestOfNFilter().apply(groups, [{}] * 3) == [["5"], ["8"], ["1"]]
    assert adapter.BestOfNFilter(rule="vote").apply(groups[:1], [{}]) == [["4"]]
    assert adapter.BestOfNFilter().apply([], []) == []
    with pytest.raises(ValueError, match="the response 'plain' carries no reward: generate with --model swift-rm"):
        adapter.BestOfNFilter().apply([[*groups[0], "plain"]], [{}])
    with pytest.raises(ValueError, match="none of the 1 candidates has a reward"):
        adapter.BestOfNFilter().apply([texts(("7", nan))], [{}])
    with pytest.raises(ValueError, match="unknown selection rule 'bets'"):
        adapter.BestOfNFilter(rule="bets")
    with pytest.raises(ValueError, match=r"select='rank' and external=None: .* fuse with an external reward"):
        adapter.BestOfNFilter(rule="rank")


def test_the_command_lines_find_the_model_and_the_filter(adapter, monkeypatch, capsys):
    line = ["--model", "swift-rm", "--apply_chat_template", "--limit", "1", "--gen_kwargs", "max_gen_toks=48"]
    monkeypatch.setattr(sys, "argv", ["lm_eval", *line, "--include_path", str(TASK.parent), "--tasks", "swift_homework"])
    logger, level = logging.getLogger("lm_eval"), logging.getLogger("lm_eval").level
    adapter.main()
    logger.setLevel(level)
    assert "|swift_homework|      1|best    |     0|exact_match|" in capsys.readouterr().out
    command = [sys.executable, "-m", "lm_eval", *line, "--tasks", str(TASK)]
    theirs = subprocess.run(command, capture_output=True, text=True, cwd=TASK.parents[2])
    assert "|swift_homework|      1|best    |     0|exact_match|" in theirs.stdout, theirs.stderr


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": "auto"}, "takes a number as batch_size .got 'auto'"),
        ({"think_end_token": 14}, "text as think_end_token .got 14"),
        ({"mixed_precision_dtype": "bfloat16"}, "dtype instead of mixed_precision_dtype .got torch.bfloat16"),
        ({"reward_model": SwiftRewardModel(SwiftConfig(64, (1,)))}, "has hidden size 96"),
    ],
)
def test_what_the_engine_does_not_follow_is_refused(adapter, options, message):
    with pytest.raises(ValueError, match=message):
        adapter.SwiftLM("tiny-reasoner", **options)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_sample": False}, "do_sample=False gives 2 equal responses"),
        ({"max_gen_toks": 512}, "max_gen_toks=512 leaves no room for a question: the model's context is 512"),
        ({"num_beams": 2}, "num_beams=2 is not supported"),
        ({"max_length": 9}, "max_length cannot be passed on"),
    ],
)
def test_settings_that_cannot_be_followed_are_refused(lm, settings, message):
    with pytest.raises(ValueError, match=message):
        lm.generate_until(requests(contexts(lm, 1), {**SETTINGS, **settings}, repeats=2), disable_tqdm=True)


def test_a_question_that_is_too_long_is_cut_on_its_left_and_that_is_said(lm, monkeypatch):
    long, asked, draw = contexts(lm, 1)[0] * 30, [], lm.sampler.draw
    monkeypatch.setattr(
        lm.sampler, "draw", lambda prompts, *args, **kwargs: asked.extend(prompts) or draw(prompts, *args, **kwargs)
    )
    with pytest.warns(UserWarning, match=r"a question of \d+ tokens is cut on its left: there is room for 448"):
        lm.generate_until(requests([long], SETTINGS), disable_tqdm=True)
    assert asked == [prompts(lm, [long])[0][-448:]]


def test_without_the_library_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("swift_rm.integrations.lm_eval")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval.api.filter", None)
    with pytest.raises(ImportError, match=r'pip install "swift-rm\[adapters\]"'):
        importlib.import_module("swift_rm.integrations.lm_eval")
