import asyncio
import importlib
import math
import sys

import pytest
import torch

from swift_rm import SwiftConfig, SwiftRewardModel, best_of_n, score
from swift_rm.models.load import load_language_model, resolve
from swift_rm.tasks.answers import find_answer
from swift_rm.tasks.homework import HomeworkTask

pytestmark = pytest.mark.adapters

QUESTIONS = [question.question_id for question in HomeworkTask("test").questions(4)]


@pytest.fixture(scope="module")
def hub():
    return importlib.import_module("swift_rm.integrations.its_hub")


@pytest.fixture(scope="module")
def loaded():
    return *load_language_model(progress=False), SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))


def asking(question):
    return [{"role": "user", "content": question}]


def answered(question, text):
    from its_hub.api import ChatMessage

    return [ChatMessage("user", question), ChatMessage("assistant", text)]


def direct(loaded, question, texts):
    return score(*loaded, [asking(question)] * len(texts), texts)


def best_of(hub, lm, orchestrator=True):
    from its_hub import BestOfN

    return BestOfN(hub.SwiftOutcomeRewardModel(lm), hub.SwiftOrchestrator() if orchestrator else None)


@pytest.mark.parametrize("orchestrator", [True, False])
def test_their_best_of_n_takes_the_response_with_the_highest_reward(hub, loaded, orchestrator, monkeypatch):
    lm = hub.SwiftLanguageModel(*loaded)
    monkeypatch.setattr(lm.sampler, "score", None)  # no reward may need a pass
    algorithm, budget = best_of(hub, lm, orchestrator), 8 if orchestrator else 3
    for question in QUESTIONS[: budget // 3]:
        result = algorithm.infer(lm, question, budget, return_response_only=False)
        texts = [response["content"] for response in result.responses]
        expected = direct(loaded, question, texts)
        assert result.scores == pytest.approx(expected, abs=1e-4)
        assert result.scores == [lm.rewards[(("user", question),), text] for text in texts]
        assert len(set(texts)) > 1, "all responses are equal: nothing was chosen"
        assert result.the_one["content"] == texts[max(range(budget), key=expected.__getitem__)]
        ends = [len(loaded[1](text, add_special_tokens=False)["input_ids"]) + 1 for text in texts]
        usage = result.usage
        assert (usage.num_calls, usage.completion_tokens) == (budget, sum(ends))
        assert usage.prompt_tokens == budget * len(lm.prompt_ids((("user", question),)))


def test_what_was_not_said_here_is_scored_by_a_pass(hub, loaded):
    from its_hub.api import ChatMessages

    lm = hub.SwiftLanguageModel(*loaded)
    rewards = hub.SwiftOutcomeRewardModel(lm)
    said = asyncio.run(lm.agenerate_single(ChatMessages(QUESTIONS[0])))["content"]
    texts = [said, "<think>82-51=31, </think><answer>31</answer>", said]
    expected = direct(loaded, QUESTIONS[0], texts)
    batch = [answered(QUESTIONS[0], text) for text in texts]
    assert rewards.score(batch) == pytest.approx(expected, abs=1e-4)
    assert asyncio.run(rewards.ascore(batch, orchestrator=None)) == rewards.score(batch)
    assert rewards.score(batch[1]) == rewards.score(ChatMessages(batch[1])) == pytest.approx(expected[1], abs=1e-4)
    other = rewards.score(answered(QUESTIONS[1], said))  # kept for one conversation, not for any
    assert other == pytest.approx(direct(loaded, QUESTIONS[1], [said])[0], abs=1e-4)
    assert abs(other - expected[0]) > 1e-3
    assert len(lm.rewards) == 1


def test_only_the_last_rewards_are_kept_and_the_others_are_found_again(hub, loaded):
    kept, all_kept = hub.SwiftLanguageModel(*loaded, keep=2), hub.SwiftLanguageModel(*loaded)
    few, many = (best_of(hub, lm).infer(lm, QUESTIONS[0], 6, return_response_only=False) for lm in (kept, all_kept))
    assert len(kept.rewards) == 2 < len(all_kept.rewards)
    assert list(kept.rewards) == list(all_kept.rewards)[-2:]
    assert few.responses == many.responses
    assert few.scores == pytest.approx(many.scores, abs=1e-4)


def test_what_is_said_again_is_kept_as_the_last_that_was_said(hub, loaded):
    lm = hub.SwiftLanguageModel(*loaded, keep=2)
    for question in (QUESTIONS[0], QUESTIONS[1], QUESTIONS[0], QUESTIONS[2]):
        asyncio.run(lm.agenerate_single(asking(question), temperature=0.0))
    assert [turns[0][1] for turns, _ in lm.rewards] == [QUESTIONS[0], QUESTIONS[2]]


def test_votes_of_theirs_work_with_the_same_language_model(hub, loaded):
    from its_hub import AdaptiveSelfConsistency, BetaSelfConsistency, SelfConsistency

    def answer(text):
        return find_answer(text) or ""

    lm = hub.SwiftLanguageModel(*loaded)
    for algorithm in (SelfConsistency, AdaptiveSelfConsistency, BetaSelfConsistency):
        vote = algorithm(consistency_space_projection_func=answer, orchestrator=hub.SwiftOrchestrator())
        result = vote.infer(lm, QUESTIONS[0], 5, return_response_only=False)
        answers = [answer(response["content"]) for response in result.responses]
        assert 2 <= len(answers) <= 5
        assert answers.count(answer(result.the_one["content"])) == max(map(answers.count, answers))


def test_a_seed_decides_and_the_same_question_is_drawn_anew(hub, loaded):
    def draw(seed):
        lm = hub.SwiftLanguageModel(*loaded, seed=seed)
        return [asyncio.run(hub.SwiftOrchestrator().agenerate(lm, [asking(QUESTIONS[0])] * 3)) for _ in range(2)]

    one, same, other = draw(1), draw(1), draw(2)
    assert one == same != other
    assert one[0] != one[1]


def test_many_conversations_at_once_keep_their_places(hub, loaded):
    lm, orchestrator = hub.SwiftLanguageModel(*loaded), hub.SwiftOrchestrator()
    asked = [QUESTIONS[0], QUESTIONS[1], QUESTIONS[0], QUESTIONS[2]]

    async def ask():
        conversations = [asking(question) for question in asked]
        warm = orchestrator.agenerate(lm, conversations)
        return await asyncio.gather(warm, orchestrator.agenerate(lm, conversations, temperature=[0.0, 0.0, 0.0, 1.0]))

    warm, own = asyncio.run(ask())
    for question, *responses in zip(asked, warm, own, strict=True):
        for text in (response["content"] for response in responses):
            assert lm.rewards[(("user", question),), text] == pytest.approx(direct(loaded, question, [text])[0], abs=1e-4)
    greedy = best_of_n(*loaded, [asking(question) for question in asked[:2]], n=1, do_sample=False)
    assert [response["content"] for response in own[:3]] == [greedy[i].best.text for i in (0, 1, 0)]
    assert asyncio.run(orchestrator.agenerate(lm, [])) == []


def test_a_stop_sequence_ends_a_response_before_it(hub, loaded):
    lm = hub.SwiftLanguageModel(*loaded, max_new_tokens=64)
    said = asyncio.run(lm.agenerate([asking(QUESTIONS[0])] * 3, stop="</think>"))
    assert all(text.startswith("<think>") and "</think>" not in text for text in (one["content"] for one in said))
    short = asyncio.run(lm.agenerate_single(asking(QUESTIONS[0]), max_completion_tokens=2, loop=None))
    assert len(loaded[1](short["content"], add_special_tokens=False)["input_ids"]) <= 2


def test_a_response_whose_states_broke_is_never_chosen(hub, loaded):
    calls = []

    def spoil(input_ids, scores):
        calls.append(len(scores))
        if len(calls) == 3:
            scores[1:] = torch.nan
        return scores

    lm = hub.SwiftLanguageModel(*loaded, logits_processor=[spoil])
    result = best_of(hub, lm).infer(lm, QUESTIONS[0], 4, return_response_only=False)
    assert result.selected_index == 0
    assert math.isfinite(result.scores[0])
    assert result.scores[1:] == [-math.inf] * 3


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda lm: lm.agenerate_single(asking("1"), tools=[{"name": "f"}]), "plain text, and cannot be asked with tools="),
        (lambda lm: lm.agenerate_single(asking("1"), response_format={"type": "json"}), "cannot be asked with response_format="),
        (lambda lm: lm.agenerate_single(answered("1", "2")), "must end with something to answer, got .*'assistant', '2'"),
        (lambda lm: lm.agenerate([]), r"must end with something to answer, got \(\)"),
        (lambda lm: lm.agenerate_single([{"role": "tool", "content": "4", "tool_call_id": "7"}]), "calls of tools"),
        (lambda lm: lm.agenerate_single(asking("1"), max_completion_tokens=10_000), "leaves no room for 10000 new tokens"),
        (lambda lm: lm.agenerate_single(asking("1"), num_beams=2), "cannot be asked with num_beams=2"),
    ],
)
def test_what_cannot_be_answered_is_refused(hub, loaded, ask, message):
    with pytest.raises(ValueError, match=message):
        asyncio.run(ask(hub.SwiftLanguageModel(*loaded)))


@pytest.mark.parametrize("messages", [[], [{"role": "user", "content": "1"}], [{"role": "assistant", "content": "1"}]])
def test_what_is_no_response_has_no_reward(hub, loaded, messages):
    with pytest.raises(ValueError, match="must end with the response to a message"):
        hub.SwiftOutcomeRewardModel(hub.SwiftLanguageModel(*loaded)).score(messages)


def test_an_empty_response_is_refused_as_score_does(hub, loaded):
    with pytest.raises(ValueError, match="response 0 is empty"):
        hub.SwiftOutcomeRewardModel(hub.SwiftLanguageModel(*loaded)).score(answered("1", ""))


def test_another_base_model_and_no_rewards_are_refused(hub, loaded):
    with pytest.raises(ValueError, match="has hidden size 96"):
        hub.SwiftLanguageModel(*loaded[:2], SwiftRewardModel(SwiftConfig(64, (1,))))
    with pytest.raises(ValueError, match="at least 1 reward must be kept, got keep=0"):
        hub.SwiftLanguageModel(*loaded, keep=0)


def test_without_the_library_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("swift_rm.integrations.its_hub")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "its_hub.api", None)
    with pytest.raises(ImportError, match=r'pip install "swift-rm\[adapters\]"'):
        importlib.import_module("swift_rm.integrations.its_hub")
