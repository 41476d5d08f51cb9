import math

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, best_of_n, score
from swift_rm.decoding.pruning import Halving
from swift_rm.selection.rules import select as select_candidate
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


def test_the_default_resists_the_highest_reward_where_answers_agree(llama, tokenizer, rm):
    def parity(text):
        return str(sum(map(ord, text)) % 2)

    differ = 0
    for seed in range(3):
        for result in best_of_n(llama, tokenizer, rm, PROMPTS, n=9, seed=seed, answer=parity, **SETTINGS):
            rewards, answers = [c.reward for c in result.candidates], [c.answer for c in result.candidates]
            assert result.best is result.candidates[select_candidate("shrunk", rewards, answers).index]
            differ += result.best is not result.candidates[0]
    assert differ, "the highest reward won every time: nothing was tested"


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


def spoil(which):
    """Return a processor that breaks the second token's scores in the rows chosen by a slice."""
    lengths = []

    def processor(input_ids, scores):
        lengths.append(input_ids.shape[1])
        if input_ids.shape[1] == lengths[0] + 1:
            scores[which] = math.nan
        return scores

    return [processor]


def test_a_broken_candidate_is_ranked_last_and_never_chosen(llama, tokenizer, rm):
    settings = {"eos_token_id": None, "max_new_tokens": 6}
    for rule in ("best", "vote", "shrunk", "borda", "majority"):
        given = {"answer": lambda text: "same", "logits_processor": spoil(slice(0, None, 4)), **settings}
        results = best_of_n(llama, tokenizer, rm, PROMPTS, n=4, select=rule, **given)
        for result in results:
            assert [math.isnan(candidate.reward) for candidate in result.candidates] == [False, False, False, True]
            last = result.candidates[-1]
            assert (last.finish_reason, last.flag, last.answer, last.complete) == ("not_finite", "not_finite", None, False)
            assert math.isnan(last.probability)
            assert result.best is result.candidates[0]
            assert result.tokens_spent == 3 * 6 + 2
    with pytest.raises(ValueError, match=r"none of the 4 candidates of .* has a reward"):
        best_of_n(llama, tokenizer, rm, PROMPTS, n=4, logits_processor=spoil(slice(None)), **settings)


@pytest.mark.parametrize("settings", [{"stop_at": 0.99, "wave": 3}, {"budget": 200}, {"prune": Halving(min_tokens=2)}])
def test_results_say_what_was_spent_and_saved(llama, tokenizer, rm, settings):
    for result in best_of_n(llama, tokenizer, rm, PROMPTS, n=8, **settings, **SETTINGS):
        whole = [candidate for candidate in result.candidates if candidate.complete]
        assert result.tokens_spent == sum(len(candidate.token_ids) for candidate in result.candidates)
        mean = sum(len(candidate.token_ids) for candidate in whole) / len(whole)
        dropped = [candidate for candidate in result.candidates if not candidate.complete]
        short = sum(max(0, mean - len(candidate.token_ids)) for candidate in dropped)
        assert result.tokens_saved == round(short + mean * (8 - len(result.candidates)))
        assert result.candidates == whole + dropped
        assert result.best is whole[0], "pruned candidates should come after whole ones and never be chosen"
        assert result.ended in ("all", "probability", "gain", "budget")
    assert best_of_n(llama, tokenizer, rm, PROMPTS, n=8, **settings, **SETTINGS)[-1] == result


def test_pruning_saves_tokens_and_a_probability_ends_a_question(llama, tokenizer, rm):
    plain, pruned, stopped = (
        best_of_n(llama, tokenizer, rm, PROMPTS, n=8, eos_token_id=None, **settings, **SETTINGS)
        for settings in ({}, {"prune": Halving(min_tokens=4)}, {"stop_at": 1e-9, "wave": 2})
    )
    for whole, cut, early in zip(plain, pruned, stopped, strict=True):
        assert (whole.tokens_spent, whole.tokens_saved, whole.ended) == (80, 0, "all")
        assert (cut.tokens_spent, cut.tokens_saved) == (4 * 4 + 2 * 8 + 2 * 10, 4 * 6 + 2 * 2)
        assert (len(early.candidates), early.tokens_spent, early.tokens_saved, early.ended) == (2, 20, 60, "probability")


@pytest.mark.parametrize("rule", ["rank", "scale"])
def test_an_external_reward_joins_in(llama, tokenizer, rm, rule):
    asked = []

    def external(prompts, responses):
        asked.append((prompts, responses))
        return [opinion(response) for response in responses]

    def opinion(response):
        return sum(map(ord, response)) % 97 / 10

    rules = {"select": rule, "prune": Halving(min_tokens=2, least=5)}
    results = best_of_n(llama, tokenizer, rm, PROMPTS, n=9, external=external, **rules, **SETTINGS)
    for result, (prompts, responses) in zip(results, asked, strict=True):
        whole = [candidate for candidate in result.candidates if candidate.complete]
        assert prompts == [result.prompt] * len(whole)
        assert sorted(responses) == sorted(candidate.text for candidate in whole)
        assert [candidate.external for candidate in whole] == [opinion(candidate.text) for candidate in whole]
        assert all(candidate.external is None for candidate in result.candidates if not candidate.complete)
        whole.sort(key=lambda candidate: responses.index(candidate.text))  # of equals the first one sampled is chosen
        chosen = select_candidate(rule, [c.reward for c in whole], [c.answer for c in whole], [c.external for c in whole])
        assert result.best == whole[chosen.index]
    with pytest.raises(ValueError, match="gave 1 rewards for 9 responses"):
        best_of_n(llama, tokenizer, rm, PROMPTS, n=9, select=rule, external=lambda prompts, responses: [1.0], **SETTINGS)


def test_results_come_batch_by_batch_and_watchers_see_every_token(llama, tokenizer, rm):
    batches, seen = [], []
    results = best_of_n(
        llama, tokenizer, rm, PROMPTS, n=2, batch_size=2, on_results=batches.append,
        watch=lambda look: seen.append(look()), eos_token_id=None, **SETTINGS,
    )  # fmt: skip
    assert [len(batch) for batch in batches] == [2, 1]
    assert [result for batch in batches for result in batch] == results
    assert [len(step.candidates) for step in seen] == [4] * 9 + [2] * 9


@pytest.mark.parametrize(("call", "settings"), [(6, {}), (15, {"stop_at": 1.0, "wave": 1}), (15, {"budget": 999, "wave": 1})])
def test_after_an_interrupt_what_had_finished_comes_back(llama, tokenizer, rm, call, settings):
    calls = []

    def interrupt(input_ids, scores):
        calls.append(len(input_ids))
        if len(calls) == call:
            raise KeyboardInterrupt
        return scores

    given = {"n": 4, "batch_size": 2, "logits_processor": [interrupt], "on_results": (handed := []).append, **settings}
    with pytest.warns(UserWarning, match=r"stopped by Ctrl-C: \d of 3 questions have an answer"):
        results = best_of_n(llama, tokenizer, rm, PROMPTS, eos_token_id=list(range(20, 30)), max_new_tokens=14, **given)
    assert len(calls) == call
    assert 0 < len(results) <= 3
    assert [one for batch in handed for one in batch] == results
    assert results[-1].ended == "interrupted"
    for result in results:
        assert result.best.complete
        assert len(result.candidates) <= 4
        expected = score(llama, tokenizer, rm, [result.prompt] * len(result.candidates), [c.token_ids for c in result.candidates])
        assert [candidate.reward for candidate in result.candidates] == pytest.approx(expected, abs=1e-4)


def test_greedy_decoding_does_not_depend_on_the_batch(llama, tokenizer, rm):
    one, three = (best_of_n(llama, tokenizer, rm, PROMPTS, n=1, do_sample=False, batch_size=size, **SETTINGS) for size in (1, 3))
    assert [result.best.token_ids for result in one] == [result.best.token_ids for result in three]
    assert [result.best.reward for result in one] == pytest.approx([result.best.reward for result in three], abs=1e-5)


@pytest.mark.parametrize("n", [1, 3])
def test_without_an_end_of_sequence_all_go_to_the_length_limit(llama, tokenizer, rm, n):
    for result in best_of_n(llama, tokenizer, rm, PROMPTS, n=n, eos_token_id=None, **SETTINGS):
        assert [(len(c.token_ids), c.finish_reason) for c in result.candidates] == [(10, "length")] * n


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"n": 0}, "n and batch_size must be at least 1, got 0"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": [[]]}, "prompt 0 is empty"),
        ({"prompts": [[1] * 2048]}, "a prompt of 2048 tokens leaves no room"),
        ({"select": "worst"}, "unknown selection rule 'worst'"),
        ({"select": "rank"}, "the rules rank and scale fuse with an external reward"),
        ({"external": lambda prompts, responses: [0.0]}, "select='shrunk' and external=a function"),
        ({"stop_at": 1.5}, "stop_at is a probability above 0 and at most 1, got 1.5"),
        ({"budget": 0}, "budget must be at least 1 token, got 0"),
        ({"prune": "chopping"}, "prune must be one of"),
        ({"do_sample": False}, "do_sample=False gives 2 equal responses"),
        ({"num_beams": 2}, "num_beams=2 is not supported"),
        ({"use_cache": False}, "needs use_cache=True"),
        ({"prefix_allowed_tokens_fn": lambda row, ids: [3]}, "remembers which row is which"),
    ],
)
def test_what_cannot_be_answered_is_refused(llama, tokenizer, rm, change, message):
    arguments = {"prompts": PROMPTS, "n": 2, **SETTINGS, **change}
    with pytest.raises(ValueError, match=message):
        best_of_n(llama, tokenizer, rm, arguments.pop("prompts"), **arguments)


def test_another_base_model_is_refused(llama, tokenizer):
    with pytest.raises(ValueError, match="has hidden size 32"):
        best_of_n(llama, tokenizer, SwiftRewardModel(SwiftConfig(64, (1,))), PROMPTS, **SETTINGS)
