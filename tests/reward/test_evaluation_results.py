"""The files of an evaluation in a saved folder: what the Hub reads there, and that they live as long as the evaluation."""

import json
from pathlib import Path

import pytest
import yaml
from huggingface_hub import parse_eval_result_entries
from huggingface_hub.utils import validate_repo_id

from swift_rm import SwiftConfig, SwiftRewardModel
from swift_rm.cli.main import main
from swift_rm.reward.evaluation_results import EVALUATION_FILES, FIGURES, hub_name

NOTES = (
    "best of 16 answers of org/model, rule {}, 95 % interval [{}], 300 questions; "
    "single answer 49.9, majority vote 51.7, AUROC within questions 0.896"
)


def figure(value, low=None, high=None):
    return {"value": value, "low": value if low is None else low, "high": value if high is None else high}


def evaluation(dataset=("openai/gsm8k", "main"), **changes):
    accuracy = {
        "first": figure(0.4991), "majority": figure(0.5167), "swift_best": figure(0.84, 0.797, 0.88),
        "swift_vote": figure(0.7233, 0.6733, 0.77), "swift_shrunk": figure(0.90667, 0.8733, 0.9367), "oracle": figure(1.0),
    }  # fmt: skip
    named = {"dataset": dict(zip(("id", "task"), dataset, strict=True))} if dataset else {}
    more = {"curves": {"swift_best": [figure(0.5)] * 16}, "calibration": None, "seconds": 3.5}
    auroc = {"swift": figure(0.8961), "length": figure(0.5)}
    return {"questions": 300, "n": 16, "accuracy": accuracy, "auroc_within": auroc, **named, **more, **changes}


def reward_model(base_model="org/model"):
    return SwiftRewardModel(SwiftConfig(6, (0, 2), base_model=base_model))


def files(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


def results(folder):
    return {name: content for name, content in files(folder).items() if name in EVALUATION_FILES}


def entries(folder):
    """Read all results files as the Hub does: a list of entries in each, here of one."""
    found = {}
    for path in sorted((folder / ".eval_results").glob("*.yaml")):
        (found[path.stem],) = parse_eval_result_entries(yaml.safe_load(path.read_text()))
    return found


def test_each_rule_has_a_file_that_the_hub_reads(tmp_path):
    reward_model().with_evaluation(evaluation()).save_pretrained(tmp_path)
    found = entries(tmp_path)
    assert {rule: (one.dataset_id, one.task_id, one.value) for rule, one in found.items()} == {
        "swift_best": ("openai/gsm8k", "main", 84.0),
        "swift_shrunk": ("openai/gsm8k", "main", 90.67),
        "swift_vote": ("openai/gsm8k", "main", 72.33),
    }
    assert found["swift_shrunk"].notes == NOTES.format("swift_shrunk", "87.3, 93.7")
    assert found["swift_vote"].notes == NOTES.format("swift_vote", "67.3, 77.0")
    assert all(one.date is None for one in found.values()), "no date is made up"
    text = (tmp_path / ".eval_results/swift_best.yaml").read_text()
    assert text.splitlines()[:4] == ["- dataset:", "    id: openai/gsm8k", "    task_id: main", "  value: 84.0"]


def test_the_configuration_stays_small_and_the_json_is_whole(tmp_path):
    whole = evaluation(date="2026-01-05", layers=[{"layer": 1}])
    reward_model().with_evaluation(whole).save_pretrained(tmp_path)
    assert json.loads((tmp_path / FIGURES).read_text()) == whole
    kept = json.loads((tmp_path / "config.json").read_text())["evaluation"]
    assert set(kept) == {"questions", "n", "accuracy", "auroc_within", "dataset", "date"}
    assert entries(tmp_path)["swift_best"].date == "2026-01-05"
    card = (tmp_path / "README.md").read_text()
    assert "300 questions, 16 responses each, of openai/gsm8k (task main)." in card
    assert all(f"`{name}`" in card for name in EVALUATION_FILES)


def test_they_outlive_a_load_and_a_change_but_not_their_evaluation(tmp_path):
    reward_model().with_evaluation(evaluation()).save_pretrained(tmp_path / "a")
    loaded = SwiftRewardModel.from_pretrained(tmp_path / "a")
    loaded.save_pretrained(tmp_path / "b")
    assert results(tmp_path / "a") == results(tmp_path / "b") and set(EVALUATION_FILES) == set(results(tmp_path / "a"))
    loaded.with_config(calibration={"method": "platt", "slope": 1.0, "intercept": 0.0}).save_pretrained(tmp_path / "b")
    assert files(tmp_path / "b")[FIGURES] == files(tmp_path / "a")[FIGURES]
    (tmp_path / "b/.eval_results/hle.yaml").write_text("somebody's own")
    fewer = evaluation()
    del fewer["accuracy"]["swift_vote"]
    loaded.with_evaluation(fewer).save_pretrained(tmp_path / "b")
    assert {path.stem for path in (tmp_path / "b/.eval_results").iterdir()} == {"swift_best", "swift_shrunk", "hle"}
    for trained_anew in (reward_model(), loaded.with_config(evaluation=None), SwiftRewardModel.ensemble([loaded, loaded])):
        trained_anew.save_pretrained(tmp_path / "b")
        assert set(files(tmp_path / "b")) == {"README.md", "config.json", "model.safetensors", ".eval_results/hle.yaml"}
        loaded.save_pretrained(tmp_path / "b")
    reward_model().save_pretrained(tmp_path / "a")
    assert not (tmp_path / "a/.eval_results").exists()


def test_an_evaluation_that_does_not_say_what_was_asked_has_no_file_for_the_hub(tmp_path):
    reward_model().with_evaluation(evaluation(dataset=None)).save_pretrained(tmp_path)
    assert set(files(tmp_path)) == {"README.md", "config.json", "model.safetensors", FIGURES}
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / FIGURES).unlink()  # as folders of earlier versions are
    assert set(config["evaluation"]) == {"questions", "n", "accuracy", "auroc_within"}
    SwiftRewardModel.from_pretrained(tmp_path).save_pretrained(tmp_path / "again")
    assert set(files(tmp_path / "again")) == {"README.md", "config.json", "model.safetensors"}


@pytest.mark.parametrize("content", [b"{", b"[1]", b'{"questions": 3}', b"\xff", b"null"])
def test_figures_of_another_evaluation_are_left_out_and_said(tmp_path, content):
    reward_model().with_evaluation(evaluation()).save_pretrained(tmp_path)
    (tmp_path / FIGURES).write_bytes(content)
    with pytest.warns(UserWarning, match=r"swift_evaluation\.json is left out"):
        assert SwiftRewardModel.from_pretrained(tmp_path).figures is None


def test_names_are_text_and_nothing_else(tmp_path):
    wild = "a/b\n- dataset: {id: evil}\r\u202egnp.exe\x1b[31m: !!python/object/apply:os.system ['x'] # &a *a"
    rm = reward_model(base_model=wild).with_evaluation(evaluation(dataset=(wild, wild), date=wild))
    rm.save_pretrained(tmp_path)
    expected = "a/b - dataset: {id: evil}\u2039U+000D\u203a\u2039U+202E\u203agnp.exe"
    for one in entries(tmp_path).values():
        assert all(text.startswith(expected) for text in (one.dataset_id, one.task_id, one.date))
        assert f"16 answers of {expected}" in one.notes
    for name, content in files(tmp_path / ".eval_results").items():
        assert content.isascii() and len(content.splitlines()) == 6, name
    assert SwiftRewardModel.from_pretrained(tmp_path).config.evaluation["dataset"]["id"] == wild


def test_a_task_or_a_figure_that_is_missing_is_left_out_of_the_notes(tmp_path):
    poor = evaluation(dataset=("local/mine", None), auroc_within={}, accuracy={"swift_best": figure(0.5, 0.4, 0.6)})
    reward_model(base_model=None).with_evaluation(poor).save_pretrained(tmp_path)
    (one,) = entries(tmp_path).values()
    expected = "best of 16 answers of a model that is not recorded, rule swift_best, 95 % interval [40.0, 60.0], 300 questions"
    assert (one.task_id, one.notes) == ("default", expected)


def test_push_to_hub_uploads_them_and_deletes_those_of_an_earlier_evaluation(tmp_path, monkeypatch):
    uploads = []

    class Api:
        def __init__(self, **kwargs):
            pass

        def create_repo(self, repo_id, **kwargs):
            return type("Repo", (), {"repo_id": repo_id})()

        def upload_folder(self, repo_id, folder_path, delete_patterns, **kwargs):
            uploads.append((results(folder_path), delete_patterns))
            return "https://example.org/commit"

    monkeypatch.setattr("huggingface_hub.hub_mixin.HfApi", Api)
    rm = reward_model().with_evaluation(evaluation())
    rm.save_pretrained(tmp_path, push_to_hub=True, repo_id="me/rm")
    SwiftRewardModel.from_pretrained(tmp_path).push_to_hub("me/rm")
    rm.push_to_hub("me/rm", delete_patterns="*.bin")
    assert set(results(tmp_path)) == set(EVALUATION_FILES) and all(content == results(tmp_path) for content, _ in uploads)
    assert [patterns for _, patterns in uploads] == [list(EVALUATION_FILES), list(EVALUATION_FILES), "*.bin"]


def test_evaluate_writes_them_into_the_reward_model_folder(tmp_path, make_rollout, capsys):
    rollouts = [
        make_rollout(f"q{q}", label=int(i == q % 2), reward=float(i == q % 2) + 0.1 * q, answer=str(i))
        for q in range(6)
        for i in (0, 1)
    ]
    (tmp_path / "test set.jsonl").write_text("".join(one.to_json() + "\n" for one in rollouts))
    reward_model().save_pretrained(tmp_path / "rm")
    arguments = ["evaluate", str(tmp_path / "test set.jsonl"), "--reward-model", str(tmp_path / "rm"), "--json"]
    assert main([*arguments, "--dataset", "openai/gsm8k:main"]) == 0
    data = json.loads(capsys.readouterr().out)
    found = entries(tmp_path / "rm")
    assert {(one.dataset_id, one.task_id, one.value) for one in found.values()} == {("openai/gsm8k", "main", 100.0)}
    assert json.loads((tmp_path / "rm" / FIGURES).read_text())["accuracy"] == data["accuracy"]
    assert main(arguments) == 0
    assert {one.dataset_id for one in entries(tmp_path / "rm").values()} == {"local/test-set"}


@pytest.mark.parametrize(
    ("stem", "name"),
    [
        ("test_set-1.5", "test_set-1.5"), ("test set (2)", "test-set-2"), ("..hidden", "hidden"), ("a--b..c-.-d", "a-b.c.d"),
        ("\u0434\u0430\u043d\u043d\u044b\u0435", "rollouts"), ("\u00e9t\u00e9 <b>\n", "t-b"), ("x" * 200, "x" * 96),
        ("y" * 95 + ".z", "y" * 95), ("a.git.git", "a"), ("-", "rollouts"), ("a:b", "a-b"), ("z" * 92 + ".git.x", "z" * 92),
    ],
)  # fmt: skip
def test_a_file_has_a_name_that_the_hub_allows(stem, name):
    assert hub_name(stem) == name
    validate_repo_id(f"local/{name}")


def test_one_question_and_one_answer_are_not_plural(tmp_path):
    one = evaluation(questions=1, n=1, auroc_within={}, accuracy={"swift_best": figure(1.0, 1.0, 1.0)})
    reward_model().with_evaluation(one).save_pretrained(tmp_path)
    notes = "best of 1 answer of org/model, rule swift_best, 95 % interval [100.0, 100.0], 1 question"
    assert entries(tmp_path)["swift_best"].notes == notes
