from __future__ import annotations

import copy
from dataclasses import replace

import pytest

from swift_rm.hipo.cold_start.judge_text import RuleExplainer
from swift_rm.hipo.cold_start.mode_sampling import sample_modes
from swift_rm.hipo.cold_start.pipeline import build
from swift_rm.models.load import TINY_REWARD, load_language_model, resolve
from swift_rm.records.rollouts import read_rollouts
from swift_rm.reward.reward_model import SwiftConfig, SwiftRewardModel
from swift_rm.scoring.score import score
from swift_rm.tasks.homework import HomeworkTask

TASK = HomeworkTask()


@pytest.fixture(scope="module")
def reasoner():
    return load_language_model(progress=False)


@pytest.fixture(scope="module")
def questions():
    return list(TASK.questions(6, seed=5))


@pytest.fixture(scope="module")
def rm():
    return SwiftRewardModel.from_pretrained(resolve(TINY_REWARD))


def test_each_mode_is_sampled_with_its_own_prompt_and_with_rewards(reasoner, questions, rm, tmp_path):
    model, tokenizer = reasoner
    options = {"grade": TASK.grade, "batch_size": 4, "max_new_tokens": 48, "rm": rm}
    sampled = sample_modes(model, tokenizer, questions, 3, tmp_path / "new", **options)
    for mode, tag in (("on", "<think_on>"), ("off", "<think_off>")):
        rollouts = sampled[mode]
        assert [one.question_id for one in rollouts] == [q.question_id for q in questions for _ in range(3)]
        assert all(tokenizer.decode(one.prompt_ids).endswith(tag) for one in rollouts)
        second_pass = score(model, tokenizer, rm, [r.prompt_ids for r in rollouts], [r.response_ids for r in rollouts])
        assert [one.reward for one in rollouts] == pytest.approx(second_pass, abs=1e-4)
        assert [one.extra["probability"] for one in rollouts] == pytest.approx(rm.probability(second_pass), abs=1e-4)
        kept = read_rollouts(tmp_path / "new" / f"{mode}.jsonl")
        assert [one.response_ids for one in kept] == [one.response_ids for one in rollouts]
    again = sample_modes(model, tokenizer, questions, 3, tmp_path / "new", **options)
    for mode, rollouts in sampled.items():
        assert [one.response_ids for one in again[mode]] == [one.response_ids for one in rollouts]
        assert [one.reward for one in again[mode]] == pytest.approx([one.reward for one in rollouts], abs=1e-4)

    cold = build(sampled, tokenizer, explain=RuleExplainer("terse"), source="swift")
    assert cold.counts["questions"] == 6 and cold.counts["responses"] == 36
    assert cold.counts["kept"] + cold.counts["dropped"] == 6 and len(cold.rows) == cold.counts["kept"] > 0
    assert {row.difficulty for row in cold.rows} <= {"1 step", "2 steps", "3 steps", "4 steps"}
    assert all(row.reference == {q.question_id: q.reference for q in questions}[row.question_id] for row in cold.rows)


def test_a_region_is_scored_as_by_a_second_pass(reasoner, questions, rm):
    model, tokenizer = reasoner
    after = SwiftRewardModel(replace(rm.config, region="after:</think>"))
    after.load_state_dict(rm.state_dict())
    rollouts = sample_modes(model, tokenizer, questions[:2], 2, rm=after, modes=["on"], max_new_tokens=64)["on"]
    whole = [one for one in rollouts if one.finish_reason == "stop"]
    expected = score(model, tokenizer, after, [r.prompt_ids for r in whole], [r.response_ids for r in whole])
    assert whole and [one.reward for one in whole] == pytest.approx(expected, abs=1e-4)


def test_what_has_no_modes_is_refused(reasoner, questions):
    model, tokenizer = reasoner
    deaf = copy.deepcopy(tokenizer)
    deaf.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match=r"the chat template makes the same prompt with \{'enable_thinking': True\} and"):
        sample_modes(model, deaf, questions, 1)
    with pytest.raises(ValueError, match="the question '27\\+15' is plain text, which has no modes"):
        sample_modes(model, tokenizer, ["27+15"])
    with pytest.raises(ValueError, match="'on' and 'off', got \\('up',\\)"):
        sample_modes(model, tokenizer, ["27+15"], modes=["up"])
    with pytest.raises(ValueError, match="5"):
        sample_modes(model, tokenizer, ["27+15"], modes=["on"], rm=SwiftRewardModel(SwiftConfig(5, (-1,))))
