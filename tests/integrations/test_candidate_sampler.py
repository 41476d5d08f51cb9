import threading

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, best_of_n, score
from swift_rm.integrations.candidate_sampler import CandidateSampler
from swift_rm.integrations.scored_text import ScoredText
from swift_rm.tasks.homework import HomeworkTask
from swift_rm.tokens.encoding import encode_prompt

QUESTIONS = [question.prompt for question in HomeworkTask("test").questions(3)]


@pytest.fixture(scope="module")
def rm():
    model = SwiftRewardModel(SwiftConfig(32, (0, 2, 3)))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    return model


@pytest.fixture(scope="module")
def prompts(tokenizer):
    return [encode_prompt(tokenizer, question) for question in QUESTIONS]


def test_candidates_come_as_drawn_with_the_rewards_of_score(llama, tokenizer, rm, prompts):
    drawn = CandidateSampler(llama, tokenizer, rm).draw(prompts, [6, 1, 3], max_new_tokens=10, batch_size=2)
    assert [len(candidates) for candidates in drawn] == [6, 1, 3]
    for prompt, candidates in zip(prompts, drawn, strict=True):
        rewards = [one.reward for one in candidates]
        expected = score(llama, tokenizer, rm, [prompt] * len(candidates), [one.token_ids for one in candidates])
        assert rewards == pytest.approx(expected, abs=1e-5)
    assert [one.reward for one in drawn[0]] != sorted((one.reward for one in drawn[0]), reverse=True)


def test_the_seed_and_how_often_it_was_asked_decide_from_any_thread(llama, tokenizer, rm, prompts):
    def draw(seed, times=2):
        sampler, found = CandidateSampler(llama, tokenizer, rm, seed=seed), []
        threads = [
            threading.Thread(target=lambda: found.append(sampler.draw(prompts, [2] * 3, max_new_tokens=8))) for _ in range(times)
        ]
        state = torch.get_rng_state()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert torch.equal(torch.get_rng_state(), state)
        return found

    one, again, other = draw(1), draw(1), draw(2)
    assert one == again != other
    assert one[0] != one[1]
    assert CandidateSampler(llama, tokenizer, rm).draw(prompts, [2] * 3, max_new_tokens=8, seed=1) == one[0]


def test_greedy_decoding_and_stop_strings(llama, tokenizer, rm, prompts):
    sampler = CandidateSampler(llama, tokenizer, rm)
    greedy = best_of_n(llama, tokenizer, rm, prompts, n=1, do_sample=False, max_new_tokens=10)
    drawn = sampler.draw(prompts, [1, 1, 1], temperature=0.0, max_new_tokens=10, top_p=None)
    assert [own[0].token_ids for own in drawn] == [result.best.token_ids for result in greedy]
    stop = drawn[0][0].text[2]
    cut = sampler.draw(prompts[:1], [1], temperature=0, max_new_tokens=10, stop_strings=stop)[0][0]
    assert cut.text == drawn[0][0].text.partition(stop)[0]
    assert len(cut.token_ids) < 10, "nothing was stopped"


def test_texts_are_scored_as_by_score(llama, tokenizer, rm, prompts):
    texts = ["12+03=15", "07"]
    expected = score(llama, tokenizer, rm, prompts[:2], texts)
    assert CandidateSampler(llama, tokenizer, rm).score(prompts[:2], texts) == expected


@pytest.mark.parametrize(
    ("prompts", "counts", "settings", "message"),
    [
        ([], [], {}, r"a count of at least 1 for each prompt, got 0 prompts and \[\]"),
        ([[3]], [1, 2], {}, r"got 1 prompts and \[1, 2\]"),
        ([[3], [4]], [1, 0], {}, r"got 2 prompts and \[1, 0\]"),
        ([[3], []], [1, 1], {}, "prompt 1 is empty"),
        ([[3], [4]], [1, 2], {"temperature": 0}, "do_sample=False gives 2 equal responses"),
        ([[3]], [1], {"max_new_tokens": 5000}, "leaves no room for 5000 new tokens"),
    ],
)
def test_what_cannot_be_drawn_is_refused(llama, tokenizer, rm, prompts, counts, settings, message):
    with pytest.raises(ValueError, match=message):
        CandidateSampler(llama, tokenizer, rm).draw(prompts, counts, **settings)


def test_ctrl_c_is_passed_on(llama, tokenizer, rm, prompts):
    def interrupt(input_ids, scores):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        CandidateSampler(llama, tokenizer, rm).draw(prompts, [1] * 3, max_new_tokens=4, logits_processor=[interrupt])


def test_another_base_model_is_refused(llama, tokenizer):
    with pytest.raises(ValueError, match="has hidden size 32"):
        CandidateSampler(llama, tokenizer, SwiftRewardModel(SwiftConfig(64, (1,))))


def test_a_scored_text_is_a_text():
    text = ScoredText("a4", 1.5)
    assert (text, text.reward, {text: 1}["a4"]) == ("a4", 1.5, 1)
    assert type(text[:1]) is type(str(text)) is str
    assert ScoredText("a4").reward != ScoredText("a4").reward, "a text that was not generated has the reward NaN"
