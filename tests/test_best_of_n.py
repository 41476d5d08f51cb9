import math
import sys

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, best_of_n, score
from swift_rm.scoring import score_encoded
from swift_rm.tasks.homework import HomeworkTask

SETTINGS = {"max_new_tokens": 10}
PROMPTS = [question.prompt for question in HomeworkTask("test").questions(3)]


@pytest.fixture(scope="module")
def rm():
    model = SwiftRewardModel(SwiftConfig(32, (0, 2, 3)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return model


def test_candidates_are_ranked_by_the_reward_that_score_gives(llama, tokenizer, rm):
    results = best_of_n(llama, tokenizer, rm, PROMPTS, n=5, batch_size=2, **SETTINGS)
    assert [result.prompt for result in results] == PROMPTS
    for result in results:
        rewards = [candidate.reward for candidate in result.candidates]
        assert len(rewards) == 5
        assert rewards == sorted(rewards, reverse=True)
        assert result.best is result.candidates[0]
        expected = score(llama, tokenizer, rm, [result.prompt] * 5, [c.token_ids for c in result.candidates])
        assert rewards == pytest.approx(expected, abs=1e-5)
        assert result.best.probability == pytest.approx(1 / (1 + math.exp(-result.best.reward)))


def test_votes_use_the_answer_function(llama, tokenizer, rm):
    def first_letter(text):
        return text[:1]

    for result in best_of_n(llama, tokenizer, rm, PROMPTS, n=7, select="majority", answer=first_letter, **SETTINGS):
        votes = [candidate.answer for candidate in result.candidates]
        assert votes == [candidate.text[:1] for candidate in result.candidates]
        assert votes.count(result.best.answer) == max(votes.count(vote) for vote in votes)


def test_the_same_seed_gives_the_same_candidates(llama, tokenizer, rm):
    one, two, other = (best_of_n(llama, tokenizer, rm, PROMPTS, n=3, seed=seed, **SETTINGS) for seed in (3, 3, 4))
    assert one == two != other


def test_n_of_one_and_regions_that_never_come(llama, tokenizer):
    rm = SwiftRewardModel(SwiftConfig(32, (1,), region="after:</judge>"))
    result = best_of_n(llama, tokenizer, rm, PROMPTS[:1], n=1, **SETTINGS)[0]
    assert result.candidates == [result.best]
    assert result.best.flag == "marker_missing"


def test_a_nan_candidate_is_ranked_last_and_never_chosen(llama, tokenizer, rm, monkeypatch):
    def spoil_the_best(*args, **kwargs):
        rewards = score_encoded(*args, **kwargs)
        rewards[rewards.index(max(rewards))] = math.nan
        return rewards

    monkeypatch.setattr(sys.modules["swift_rm.best_of_n"], "score_encoded", spoil_the_best)
    for rule in ("best", "vote", "borda", "majority"):
        for result in best_of_n(llama, tokenizer, rm, PROMPTS, n=4, select=rule, answer=lambda text: "same", **SETTINGS):
            assert [math.isnan(candidate.reward) for candidate in result.candidates] == [False, False, False, True]
            assert result.best is result.candidates[0]
    monkeypatch.setattr(sys.modules["swift_rm.best_of_n"], "score_encoded", lambda model, rm, encoded: [math.nan] * len(encoded))
    with pytest.raises(ValueError, match=r"none of the 4 candidates of .* has a reward"):
        best_of_n(llama, tokenizer, rm, PROMPTS, n=4, **SETTINGS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n and batch_size must be at least 1, got 0"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [[]]}, "prompt 0 is empty"),
        ({"prompts": [[1] * 2048]}, "a prompt of 2048 tokens leaves no room"),
        ({"select": "worst"}, "unknown selection rule 'worst'"),
        ({"select": "rank"}, "fuses with an external reward"),
        ({"stop_at": 0.9}, "one-pass generation"),
    ],
)
def test_what_cannot_be_answered_is_refused(llama, tokenizer, rm, change, message):
    arguments = {"prompts": PROMPTS, "n": 2, **SETTINGS, **change}
    with pytest.raises(ValueError, match=message):
        best_of_n(llama, tokenizer, rm, arguments.pop("prompts"), **arguments)


def test_another_base_model_is_refused(llama, tokenizer):
    with pytest.raises(ValueError, match="has hidden size 32"):
        best_of_n(llama, tokenizer, SwiftRewardModel(SwiftConfig(64, (1,))), PROMPTS, **SETTINGS)
