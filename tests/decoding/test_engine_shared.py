"""One batch for several users: numbers and limits of their own, cancelling, and who is told what."""

import math

import pytest
import torch

from swift_rm import best_of_n
from swift_rm.cli.candidate_table import LiveTable
from swift_rm.decoding.candidate_budget import CandidatePlan, QuestionProgress
from swift_rm.decoding.decoded_candidate import Step
from swift_rm.decoding.engine import OutOfMemory, PromptState
from tests.decoding.engines import ENDLESS, PROMPTS, Forwards, answer, check_rewards, make_engine
from tests.reward_models import make_rm

GREEDY = {"do_sample": False, "eos_token_id": None, "max_new_tokens": 8}


def run(engine, asked, **settings):
    assert engine.answer(asked, 0, **settings)
    return asked


@pytest.mark.parametrize("plan", [CandidatePlan(4, 4), CandidatePlan(4, 2, stop_at=1.0), CandidatePlan(4, 2, budget=100_000)])
def test_every_prompt_has_its_own_number_of_candidates(llama, tokenizer, plan):
    asked = run(
        make_engine(llama, tokenizer, plan=plan),
        [PromptState(PROMPTS[0], n=1), PromptState(PROMPTS[1]), PromptState(PROMPTS[2], n=7)],
    )
    assert [(len(one.candidates), one.started, one.ended) for one in asked] == [(1, 1, "all"), (4, 4, "all"), (7, 7, "all")]
    check_rewards(llama, make_rm(), asked)


def test_a_plan_hands_out_what_a_question_asked_for():
    plan = CandidatePlan(4, 2, stop_at=0.9)
    sampled = [
        QuestionProgress([], 0, 0, n=1),
        QuestionProgress([], 0, 0),
        QuestionProgress([0.1, 0.2], 2, 9, n=3),
        QuestionProgress([0.95], 1, 5, cancelled=True),
    ]
    assert plan.next_wave(sampled) == ([1, 2, 1, 0], [None, None, None, "cancelled"])
    assert CandidatePlan(4, 4).next_wave(sampled) == ([1, 4, 1, 0], [None, None, None, "cancelled"])


@pytest.mark.parametrize("position", ["generating", "token"])
def test_a_limit_of_ones_own_ends_only_ones_own_rows(llama, tokenizer, position):
    rm = make_rm(position=position)
    engine = make_engine(llama, tokenizer, rm, n=1, **GREEDY)
    whole = run(engine, [PromptState(prompt) for prompt in PROMPTS])
    limits = [1, 3, None, 8, 5]
    with Forwards(llama) as forwards:
        asked = run(engine, [PromptState(prompt, max_new_tokens=limit) for prompt, limit in zip(PROMPTS, limits, strict=True)])
    for one, all_of_it, limit in zip(asked, whole, limits, strict=True):
        (candidate,) = one.candidates
        assert candidate.token_ids == all_of_it.candidates[0].token_ids[:limit]
        assert (candidate.finish_reason, one.tokens) == ("length", limit or 8)
    check_rewards(llama, rm, asked)
    extra = position == "token"  # the step that reads the last token's state
    fed = [rows for rows, width in forwards.calls if width == 1]
    assert fed == [sum((limit or 8) > step - extra for limit in limits) for step in range(1, 8 + extra)]


def test_an_end_token_at_the_limit_is_a_stop(llama, tokenizer):
    (one,) = run(make_engine(llama, tokenizer, n=1, **GREEDY), [PromptState(PROMPTS[0])])
    engine = make_engine(llama, tokenizer, n=1, do_sample=False, eos_token_id=one.candidates[0].token_ids[0])
    (one,) = run(engine, [PromptState(PROMPTS[0], max_new_tokens=1)])
    assert (one.candidates[0].finish_reason, len(one.candidates[0].token_ids)) == ("stop", 1)


@pytest.mark.parametrize("position", ["generating", "token"])
def test_rows_that_are_cancelled_leave_at_the_next_token(llama, tokenizer, position):
    rm = make_rm(position=position)
    engine = make_engine(llama, tokenizer, rm, n=2, eos_token_id=None)
    undisturbed = run(engine, [PromptState(prompt) for prompt in PROMPTS])
    asked, steps = [PromptState(prompt) for prompt in PROMPTS], []

    def watch(look):
        steps.append(look())
        asked[1].cancelled = asked[1].cancelled or len(steps) == 3

    with Forwards(llama) as forwards:
        run(engine, asked, on_step=watch)
    assert [(one.finish_reason, len(one.token_ids)) for one in asked[1].candidates] == [("cancelled", 4)] * 2
    assert (asked[1].ended, asked[1].tokens) == ("cancelled", 8)
    assert not any(one.complete for one in asked[1].candidates)
    assert [rows for rows, width in forwards.calls if width == 1][:5] == [10, 10, 10, 8, 8]
    others = [one for i, one in enumerate(asked) if i != 1]
    assert all(one.ended == "all" and len(one.candidates) == 2 for one in others)
    check_rewards(llama, rm, others)
    same = [one.candidates[0].token_ids[:4] for one in asked]
    assert same == [one.candidates[0].token_ids[:4] for one in undisturbed], "until a row leaves, chance is the same for all"


def test_decoding_ends_at_once_when_nobody_waits(llama, tokenizer):
    asked = [PromptState(prompt) for prompt in PROMPTS]

    def cancel(look):
        for one in asked:
            one.cancelled = True

    with Forwards(llama) as forwards:
        run(make_engine(llama, tokenizer, **ENDLESS), asked, on_step=cancel, batch_size=3)
    assert len([1 for _, width in forwards.calls if width == 1]) == 1, "and the second batch is not begun"
    assert {one.ended for one in asked} == {"cancelled"}
    assert [len(one.candidates) for one in asked] == [4, 4, 4, 0, 0]


def test_a_wave_that_nobody_waits_for_is_not_begun(llama, tokenizer):
    asked = [PromptState(prompt) for prompt in PROMPTS[:2]]

    def watch(look):
        asked[0].cancelled = True

    run(make_engine(llama, tokenizer, plan=CandidatePlan(6, 2, stop_at=1.0), **ENDLESS), asked, on_step=watch)
    assert [(one.started, one.ended) for one in asked] == [(2, "cancelled"), (6, "all")]


def test_a_cancelled_candidate_without_a_reward_is_no_broken_one(llama, tokenizer):
    asked = [PromptState(PROMPTS[0])]

    def cancel(input_ids, scores):
        asked[0].cancelled = True
        return scores

    run(make_engine(llama, tokenizer, make_rm(position="token"), n=2, logits_processor=[cancel], **ENDLESS), asked)
    first = asked[0].candidates[0]
    assert (first.finish_reason, first.flag, len(first.token_ids)) == ("cancelled", None, 1)
    assert math.isnan(first.reward)


@pytest.mark.parametrize("most", [99, 3])
def test_watchers_and_listeners_know_prompts_by_their_numbers(llama, tokenizer, most):
    """Also in the second batch, and where memory ran out so that candidates were decoded in halves."""

    def scarce(rows, width):
        if width == 1 and rows > most:
            raise torch.OutOfMemoryError("CUDA out of memory")

    engine, seen, left = make_engine(llama, tokenizer, n=2, **ENDLESS), [], []
    asked = [PromptState(prompt) for prompt in PROMPTS[:4]]
    with Forwards(llama, scarce):
        if most == 3:
            with pytest.warns(UserWarning, match="out of memory with 4 candidates"):
                run(engine, asked, on_step=lambda look: seen.append(look()), batch_size=2, on_done=lambda *one: left.append(one))
        else:
            run(engine, asked, on_step=lambda look: seen.append(look()), batch_size=2, on_done=lambda *one: left.append(one))
    last = [step for step in seen if len(step.token_ids[0]) == 7]
    rows = [(number, candidate) for step in last for number, candidate in zip(step.prompts, step.candidates, strict=True)]
    assert rows == [(0, 0), (0, 1), (1, 2), (1, 3), (2, 0), (2, 1), (3, 2), (3, 3)]
    assert [(number, candidate) for number, candidate, _ in left] == rows
    for number, one in enumerate(asked):
        assert [decoded for its, _, decoded in left if its == number] == one.candidates


def test_the_live_table_knows_the_questions_of_every_batch(llama, tokenizer):
    seen = []

    class Table(LiveTable):
        def see(self, step: Step):
            super().see(step)
            seen.extend((row.place, row.token_ids) for row in self.rows.values())

    table = Table(list("abcde"), tokenizer.decode, lambda rewards: [0.5] * len(rewards), interval=0.0)
    results = best_of_n(
        llama, tokenizer, make_rm(), PROMPTS, n=2, wave=2, budget=10_000, batch_size=2, watch=table.watch, **ENDLESS
    )  # fmt: skip
    for place, result in enumerate(results):
        shown = [ids for its, ids in seen if its == place]
        assert all(one.token_ids[:7] in shown for one in result.candidates)


def test_memory_that_does_not_suffice_has_a_name(llama, tokenizer):
    def scarce(rows, width):
        if width == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    with Forwards(llama, scarce), pytest.warns(UserWarning), pytest.raises(OutOfMemory, match="out of memory with 10 candidates"):
        answer(make_engine(llama, tokenizer, n=4))
