import json
import re
import shutil
import sys
import types
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest
import reproduce_swift
import swift_protocol as paper
import swift_table
from swift_heads import rewards_of, shard_bytes
from swift_questions import check_disjoint, open_questions, question_files

from swift_rm import SwiftRewardModel
from swift_rm.evaluation.evaluate import evaluate
from swift_rm.features.key import FeatureKey
from swift_rm.features.store import FeatureStore
from swift_rm.records.rollouts import read_rollouts
from swift_rm.tasks.task import Question

FIGURES = {  # of the paper: Best-of-4/16/64 on 500 questions of MATH
    "SWIFT": "49.8 / 54.6 / 53.6 | 55.4 / 59.4 / 62.6 | 57.8 / 61.6 / 62.8",
    "Skywork-8B": "43.8 / 48.4 / 48.8 | 52.2 / 52.4 / 53.4 | 56.8 / 59.0 / 61.6",
    "Eurus-7B": "42.6 / 48.2 / 46.8 | 50.8 / 52.0 / 52.2 | 54.6 / 56.8 / 55.0",
}
SIZES = ["--train-questions", "30", "--test-questions", "10", "--seeds", "2"]


@pytest.fixture(scope="module")
def smoke(tmp_path_factory):
    out = tmp_path_factory.mktemp("smoke") / "run"
    reproduce_swift.main(["--smoke", "--out", str(out), *SIZES])
    return out


@pytest.fixture
def copy(smoke, tmp_path):
    return shutil.copytree(smoke, tmp_path / "run")


def table_of(text, title):
    """Return the cells below the header of the first table after ``title``, by the first of each row."""
    lines = [*text.split(title, 1)[1].split("| --- |", 1)[1].splitlines()[1:], ""]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[: lines.index("")]]
    return {row[0]: row[1:] for row in rows}


def test_the_smoke_run_writes_the_papers_table_and_all_figures(smoke):
    results, table = json.loads((smoke / "results.json").read_text()), (smoke / "table.md").read_text()
    assert results["ks"] == [2, 4, 8] and "| reward model | Best-of-2 | Best-of-4 | Best-of-8 |" in table
    rows = table_of(table, "# The protocol of SWIFT")
    assert list(rows) == list(results["rows"]) and len(rows) == 9
    for name, cells in results["rows"].items():
        for cell, shown in zip(cells, rows[name], strict=True):
            assert 0 <= cell["low"] <= cell["value"] <= cell["high"] <= 1
            assert shown.startswith(f"{100 * cell['value']:.1f} [")
    assert [cell["k"] for cell in results["rows"]["oracle"]] == [2, 4, 8]
    assert results["test"]["questions"] == 10 and results["test"]["n"] == 8 and results["test"]["ungraded"] == 0
    assert results["train"]["questions"] + results["train"]["validation_questions"] == 30
    assert results["published_model"] is None and "not to be compared" in table
    assert "train questions 30 instead of 6000" in table, "what is not as published is said"
    assert {name: " | ".join(cells) for name, cells in table_of(table, "## Published figures").items()} == FIGURES


def test_the_figures_are_those_of_evaluate(smoke):
    """Rewards, labels and answers meet in the right order: `evaluate` finds the same from scored records."""
    results = json.loads((smoke / "results.json").read_text())
    sampled = read_rollouts(smoke / "test_rollouts.jsonl")
    rewards = np.array(json.loads((smoke / "rewards.json").read_text())).reshape(2, 2, len(sampled))
    found = []
    for seed in range(2):
        scored = [replace(one, reward=r) for one, r in zip(sampled, rewards[1, seed], strict=True)]
        found.append(evaluate(scored, bootstrap=10, vote_subsets=200))
    rules = {"majority vote": "majority", "mean log-probability": "mean_logprob", "oracle": "oracle"}
    for name, rule in {**rules, swift_table.NAMES["ours"]: "swift_best", swift_table.VOTES["ours"]: "swift_shrunk"}.items():
        for cell in results["rows"][name]:
            there = np.mean([one.curves[rule][cell["k"] - 1].value for one in found])
            assert cell["value"] == pytest.approx(there, abs=1e-9), name
    auroc = np.mean([one.auroc_within["swift"].value for one in found])
    assert results["auroc_within"][swift_table.NAMES["ours"]]["value"] == pytest.approx(auroc)


def test_the_first_k_are_the_first(make_rollout):
    """One question, the right response sampled last: the first two never hold it, a sixth of all pairs' halves do."""
    test = [make_rollout(label=int(i == 3), answer=str(i), logprob_mean=-float(i)) for i in range(4)]
    scores = np.array([[0.0, 1.0, 2.0, 3.0]])
    rows = swift_table.measure(test, {"published": scores, "ours": -scores}, (2, 4))["rows"]
    values = {name: [cell["value"] for cell in cells] for name, cells in rows.items()}
    assert values[swift_table.FIRST_K] == [0.0, 1.0]
    assert values[swift_table.NAMES["published"]] == pytest.approx([0.5, 1.0])
    assert values[swift_table.NAMES["ours"]] == values["mean log-probability"] == pytest.approx([0.0, 0.0])
    assert values["a single response"] == values["majority vote"] == pytest.approx([0.25, 0.25])


def test_an_ungraded_response_is_not_right_and_counted(make_rollout):
    test = [make_rollout(label=label) for label in (None, 1)]
    measured = swift_table.measure(test, {"published": np.zeros((1, 2)), "ours": np.array([[np.nan, 1.0]])}, (2,))
    assert measured["test"]["ungraded"] == 1 and measured["test"]["without_reward"] == 1
    assert measured["rows"]["oracle"][0]["value"] == 1.0 and measured["rows"]["a single response"][0]["value"] == 0.5


def test_the_published_figures_are_the_papers():
    said = {
        name: " | ".join(" / ".join(f"{one:.1f}" for one in figures) for figures in models.values())
        for name, models in paper.PUBLISHED.items()
    }
    assert said == FIGURES
    assert all(list(models) == list(paper.PUBLISHED_MODELS.values()) for models in paper.PUBLISHED.values())
    sizes = paper.Protocol()
    assert (sizes.train_questions, sizes.train_n, sizes.test_questions, sizes.test_n) == (6000, 8, 500, 64)
    assert (sizes.temperature, sizes.top_p, sizes.max_new_tokens, sizes.ks) == (1.0, 0.9, 1024, paper.PUBLISHED_KS)
    recipe = paper.RECIPES["published"]
    assert (recipe.loss, recipe.lr, recipe.weight_decay, recipe.epochs) == ("bce", 1e-4, 1e-5, 40)
    assert (recipe.patience, recipe.validation, recipe.standardise) == (3, 0.2, "none")


def test_figures_of_one_of_their_models_stand_in_the_table(smoke, tmp_path):
    results = json.loads((smoke / "results.json").read_text())
    folder = tmp_path / "Llama-3.1-8B-Instruct"
    folder.mkdir()
    assert paper.published_name("meta-llama/Llama-3.1-8B-Instruct", "math") == paper.published_name(str(folder), "math")
    assert paper.published_name("meta-llama/Llama-3.1-8B-Instruct", "gsm8k") is None is paper.published_name("gpt2", "math")
    table = swift_table.write_table({**results, "published_model": "Llama-3.1-8B"})
    rows = table_of(table, "# The protocol of SWIFT")
    assert rows["published: SWIFT"] == ["-", "55.4", "-"], "only where k is one of theirs"
    assert "not to be compared" not in table


def test_a_second_run_samples_fits_and_scores_nothing_again(copy, monkeypatch):
    before = {name: (copy / name).read_bytes() for name in ("table.md", "results.json", "test_rollouts.jsonl", "rewards.json")}
    shutil.rmtree(copy / "features")  # not needed any more when all heads are there
    for name in before.keys() & {"table.md", "results.json"}:
        (copy / name).unlink()
    for place in ("swift_rm.sampling.batch_sampler.generate_responses", "swift_heads.fit_bank", "swift_heads.score_heads"):
        monkeypatch.setattr(place, None)
    reproduce_swift.main(["--smoke", "--out", str(copy), *SIZES])
    assert {name: (copy / name).read_bytes() for name in before} == before
    assert not (copy / "features").exists()


def test_a_run_that_was_stopped_goes_on_where_it_was(smoke, copy):
    """Half of the training responses, no features, one head: everything comes out the same."""
    lines = (copy / "train_rollouts.jsonl").read_text().splitlines(keepends=True)
    (copy / "train_rollouts.jsonl").write_text("".join(lines[: len(lines) // 2]))
    for name in ("features", "heads/ours-1", "heads/published-0", "heads/published-1"):
        shutil.rmtree(copy / name)
    (copy / "rewards.json").unlink()
    reproduce_swift.main(["--smoke", "--out", str(copy), *SIZES])
    assert (copy / "train_rollouts.jsonl").read_bytes() == (smoke / "train_rollouts.jsonl").read_bytes()
    again, before = (np.array(json.loads((path / "rewards.json").read_text())) for path in (copy, smoke))
    np.testing.assert_allclose(again, before, atol=0.05)  # states read again are those of generation but for rounding


def test_sampling_and_heads_are_those_of_the_paper(smoke):
    heads = {path.name: SwiftRewardModel.from_pretrained(path).config for path in (smoke / "heads").iterdir()}
    assert sorted(heads) == ["ours-0", "ours-1", "published-0", "published-1"]
    for name, config in heads.items():
        assert config.position == "token" and config.layers == (0, 1, 2, 3, 4) and config.region == "response"
        assert config.training["lr"] == (1e-4 if name.startswith("published") else 0.01)
        assert config.training["seed"] == int(name[-1])
    for name, n in (("train", 4), ("test", 8)):
        sampling = read_rollouts(smoke / f"{name}_rollouts.jsonl")[0].sampling
        expected = {"do_sample": True, "temperature": 1.0, "top_p": 0.9, "top_k": 0, "max_new_tokens": 128, "n": n}
        assert expected.items() <= sampling.items()
    store = FeatureStore(smoke / "features")
    assert store.key.positions == ("token",) and len(store.labels) == 30 * 4


def test_other_settings_do_not_go_on_in_the_same_folder(copy):
    with pytest.raises(SystemExit, match=r"begun with other settings.*'seeds': \(2, 3\).*another --out"):
        reproduce_swift.main(["--smoke", "--out", str(copy), *SIZES[:-1], "3"])
    with pytest.raises(SystemExit, match=r"'layers': \[3, 4\]"):
        reproduce_swift.main(["--smoke", "--out", str(copy), *SIZES, "--layers=-2,-1"])


def write_questions(path, numbers):
    path.write_text("".join(json.dumps({"question": f"{n}+{n}", "answer": str(2 * n)}) + "\n" for n in numbers))
    return str(path)


def test_questions_in_both_training_and_test_are_refused(tmp_path):
    train, test = write_questions(tmp_path / "a.jsonl", range(10, 20)), write_questions(tmp_path / "b.jsonl", range(19, 25))
    with pytest.raises(SystemExit, match=r"^reproduce_swift: 1 test questions are training questions too \(the first: 'b-1'"):
        reproduce_swift.main(
            ["--model", "tiny-reasoner", "--dataset", "jsonl", "--data", train, test, "--out", str(tmp_path / "out"),
             "--train-questions", "10", "--test-questions", "6", "--prompt", "{question}"]
        )  # fmt: skip
    one, other = Question("x", "What  is\n1?", "1"), Question("y", "what is 1?", "1")
    with pytest.raises(ValueError, match=r"'y' is training's 'x'"):
        check_disjoint([one], [other])
    check_disjoint([one], [Question("x", "What is 2?", "2")])


def test_prompts_are_one_message_with_the_instruction_before_the_question(tmp_path):
    file = tmp_path / "q.jsonl"
    write_questions(file, [3])
    with ExitStack() as stack:
        _, (chat,) = open_questions(stack, file, 1, paper.PROMPTS["math"], chat=True)
        _, (plain,) = open_questions(stack, file, 1, paper.PROMPTS["aqua"], chat=False)
    assert [message["role"] for message in chat.prompt] == ["user"]
    assert re.search(r"step by step.*\\boxed\{\}\.\n3\+3$", chat.prompt[0]["content"], re.DOTALL)
    assert plain.prompt.startswith("This is a multiple-choice question") and plain.prompt.endswith("\n3+3")


HUB = {
    "openai/gsm8k": {
        "train": [{"question": "Six and one?", "answer": "6+1=7\n#### 7"}],
        "test": [{"question": "A thousand?", "answer": "#### 1,000"}],
    },
    "deepmind/aqua_rat": {
        "train": [{"question": "2+2?", "options": ["A)4", "B)5"], "correct": "A", "rationale": "r"}] * 2
        + [{"question": "3+3?", "options": ["A)4", "B)6"], "correct": "B", "rationale": "r"}],
        "validation": [{"question": "3+3?", "options": ["A)4", "B)6"], "correct": "B", "rationale": "r"}],
        "test": [{"question": "5+5?", "options": ["A)10", "B)6"], "correct": "A", "rationale": "r"}],
    },
    "DigitalLearningGmbH/MATH-lighteval": {"train": [{"problem": "Half?", "solution": "It is\n$\\boxed{\\frac12}$."}]},
    "HuggingFaceH4/MATH-500": {"test": [{"problem": "Root?", "solution": "So $\\boxed{\\sqrt2}$.", "answer": "\\sqrt2"}]},
}


def test_the_hubs_data_sets_become_questions_that_can_be_graded(tmp_path, monkeypatch):
    def load_dataset(name, config=None, split=None):
        return HUB[name] if split is None else HUB[name][split]

    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load_dataset))
    wanted = {
        "gsm8k": (["7"], ["1000"], "So it is \\boxed{1000}.", ""),
        "aqua": (["A"], ["B", "A"], "Thus \\boxed{(b)}.", "2 of 3 training questions left out: in the test, or there twice"),
        "math": (["\\frac12"], ["\\sqrt2"], "Thus $\\boxed{\\sqrt{2}}$.", ""),
    }
    for dataset, (train, test, response, left_out) in wanted.items():
        folder = tmp_path / dataset
        folder.mkdir()
        *files, said = question_files(dataset, None, folder, paper.Protocol())
        assert said == left_out
        with ExitStack() as stack:
            opened = [
                open_questions(stack, path, count, paper.PROMPTS[dataset], chat=True)
                for path, count in zip(files, map(len, (train, test)), strict=True)
            ]
            assert [[one.reference for one in asked] for _, asked in opened] == [train, test]
            task, asked = opened[1]
            assert task.grade(asked[0], response).label == 1 and task.grade(asked[0], "\\boxed{17}").label == 0
            check_disjoint(opened[0][1], asked)
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert question_files("aqua", None, tmp_path / "aqua", paper.Protocol())[2], "what was read once is not asked for again"
    with pytest.raises(ImportError, match=r"`pip install datasets`, or give the questions by --data"):
        question_files("math", None, tmp_path, paper.Protocol())


def test_deviations_from_the_published_run_are_said(llama, tokenizer):
    key = FeatureKey.of(llama, tokenizer, (-1,), ("token",), dtype="int8")
    said = paper.deviations(paper.Protocol(top_p=1.0), key)
    assert said == ["top p 1.0 instead of 0.9", "1 instead of all 4 layers", "training states in int8"]
    whole = FeatureKey.of(llama, tokenizer, range(4), ("token",))
    assert paper.deviations(paper.Protocol(), whole) == []


def test_a_shard_holds_several_questions_whatever_their_states(llama, tokenizer):
    small = FeatureKey.of(llama, tokenizer, (-1,), ("token",))
    assert shard_bytes(small, 1024) == 256 * 2**20
    large = replace(small, hidden_size=4096, base_layers=32, layers=tuple(range(33)))
    assert shard_bytes(large, 1024) == 4 * 8 * 1024 * 33 * 4096 * 2


def test_rewards_that_are_there_are_not_computed_again(tmp_path, make_rollout):
    (tmp_path / "rewards.json").write_text("[[1.0, null], [2.0, 3.0]]")
    found = rewards_of(tmp_path / "rewards.json", None, None, [], [make_rollout(), make_rollout()])
    assert found["ours"].tolist() == [[2.0, 3.0]] and np.isnan(found["published"][0, 1])


def test_misuse_is_one_sentence(tmp_path, capsys):
    for arguments, said in (
        (["--model", "tiny-reasoner"], "--model and --dataset are needed, or --smoke"),
        (["--smoke", "--dataset", "math"], "--smoke has its own questions"),
        (["--smoke", "--seeds", "0"], "must be at least 1, got 0 and 32"),
    ):
        with pytest.raises(SystemExit) as stopped:
            reproduce_swift.main([*arguments, "--out", str(tmp_path / "out")])
        assert stopped.value.code == 2 and said in capsys.readouterr().err
    with pytest.raises(SystemExit, match=r"reproduce_swift: --dataset jsonl needs the questions: --data"):
        reproduce_swift.main(["--model", "tiny-reasoner", "--dataset", "jsonl", "--out", str(tmp_path / "out")])


def test_help_says_that_no_large_model_was_run(capsys):
    with pytest.raises(SystemExit) as stopped:
        reproduce_swift.main(["--help"])
    out = capsys.readouterr().out
    assert stopped.value.code == 0 and "NOT RUN ON A LARGE MODEL BY US" in out
    flags = ("--smoke", "--model", "--dataset", "--data", "--out", "--layers", "--features-dtype", "--seeds", "--train-questions")
    assert all(flag in out for flag in flags) and "{math,gsm8k,aqua,jsonl}" in out
