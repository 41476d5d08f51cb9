import math
import warnings
from dataclasses import dataclass

import pytest
import torch

from swift_rm import score
from swift_rm.decoding.candidate_budget import CandidatePlan
from swift_rm.decoding.pruning import Halving
from tests.decoding.engines import ENDLESS, PROMPTS, Forwards, answer, check_rewards, make_engine
from tests.generate_calls import hooks
from tests.reward_models import make_rm


@pytest.mark.parametrize("position", ["generating", "token"])
@pytest.mark.parametrize("plan", [CandidatePlan(4, 4), CandidatePlan(4, 1, stop_at=1.0), CandidatePlan(4, 2, budget=10_000)])
def test_every_prompt_gets_n_candidates_and_is_read_once(llama, tokenizer, plan, position):
    rm, before = make_rm(position=position), dict(vars(llama))
    with Forwards(llama) as forwards:
        done, asked = answer(make_engine(llama, tokenizer, rm, plan), batch_size=2)
    assert done
    for one in asked:
        assert (len(one.candidates), one.started, one.ended) == (4, 4, "all")
        assert one.tokens == sum(len(candidate.token_ids) for candidate in one.candidates)
    assert [call for call in forwards.calls if call[1] > 1] == [(2, 4), (2, 3), (1, 3)]
    fed = sum(rows for rows, width in forwards.calls if width == 1)
    assert fed == sum(one.tokens for one in asked) - (20 if position == "generating" else 0)
    check_rewards(llama, rm, asked)
    assert hooks(llama) == 0
    assert dict(vars(llama)) == before


def test_the_models_own_settings_do_not_get_in_the_way(llama, tokenizer, monkeypatch):
    for name, value in {"num_return_sequences": 3, "return_dict_in_generate": True, "num_beams": 4}.items():
        monkeypatch.setattr(llama.generation_config, name, value)
    done, asked = answer(make_engine(llama, tokenizer, n=2))
    assert done
    assert [len(one.candidates) for one in asked] == [2] * 5
    check_rewards(llama, make_rm(), asked)


def test_greedy_candidates_do_not_depend_on_the_batch(llama, tokenizer):
    engine = make_engine(llama, tokenizer, n=1, do_sample=False, repetition_penalty=1.2)
    answers = [answer(engine, batch_size=size)[1] for size in (1, 2, 5)]
    assert len({len(one.candidates[0].token_ids) for one in answers[0]}) > 1
    for other in answers[1:]:
        for one, same in zip(answers[0], other, strict=True):
            assert one.candidates[0].token_ids == same.candidates[0].token_ids
            assert one.candidates[0].reward == pytest.approx(same.candidates[0].reward, abs=1e-5)


def test_the_random_state_and_the_training_mode_are_left_alone(llama, tokenizer):
    llama.train()
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    _, first = answer(make_engine(llama, tokenizer), seed=1)
    assert torch.rand(3).tolist() == expected
    assert llama.training
    llama.eval()
    _, again = answer(make_engine(llama, tokenizer), seed=1)
    assert first == again
    assert first != answer(make_engine(llama, tokenizer), seed=2)[1]


def test_a_question_stops_when_its_best_is_good_enough(llama, tokenizer):
    rm = make_rm()
    _, everything = answer(make_engine(llama, tokenizer, rm, n=12))
    best = sorted(max(rm.probability([c.reward for c in one.candidates]).tolist()) for one in everything)
    plan = CandidatePlan(12, 2, stop_at=best[1])
    done, asked = answer(make_engine(llama, tokenizer, rm, plan))
    assert done
    for one in asked:
        reached = [p >= best[1] for p in rm.probability([c.reward for c in one.candidates]).tolist()]
        assert one.ended == ("probability" if any(reached) else "all")
        assert not any(reached[:-2]), "waves should end once one of their candidates is good enough"
        assert len(one.candidates) % 2 == 0
    assert "probability" in {one.ended for one in asked}


def test_a_budget_is_spent_and_passed_by_no_more_than_a_step(llama, tokenizer):
    done, asked = answer(make_engine(llama, tokenizer, plan=CandidatePlan(16, 2, budget=150), **ENDLESS))
    assert done
    assert sum(one.tokens for one in asked) == 144, "no more waves of eight tokens a candidate fit in"
    assert all(len(one.candidates) >= 2 for one in asked)
    assert {one.ended for one in asked} == {"budget"}


@pytest.mark.parametrize("position", ["generating", "token"])
def test_pruned_candidates_leave_the_batch_and_cost_no_more(llama, tokenizer, position):
    rm = make_rm(position=position)
    engine = make_engine(llama, tokenizer, rm, prune=Halving(min_tokens=2), n=8, **ENDLESS)
    with Forwards(llama) as forwards:
        _, asked = answer(engine, PROMPTS[:2])
    late = position == "token"  # the rule is asked at lengths that are scored, which the last token is not yet
    for one in asked:
        assert sorted(len(candidate.token_ids) for candidate in one.candidates) == [2 + late] * 4 + [4 + late] * 2 + [8] * 2
        assert one.tokens == sum(len(candidate.token_ids) for candidate in one.candidates)
        reasons = [(len(candidate.token_ids) == 8, candidate.finish_reason) for candidate in one.candidates]
        assert set(reasons) == {(True, "length"), (False, "pruned")}
        assert all(math.isfinite(candidate.reward) for candidate in one.candidates)
    fed = sum(rows for rows, width in forwards.calls if width == 1)
    assert fed <= sum(one.tokens for one in asked)
    check_rewards(llama, rm, asked)


def test_a_guide_says_who_is_pruned_and_the_reward_model_who_wins(llama, tokenizer):
    rm, guide = make_rm(), make_rm()
    with torch.no_grad():
        guide.head.weight.neg_()
        guide.head.bias.neg_()
    engine = make_engine(llama, tokenizer, rm, prune=Halving(min_tokens=7, guide=guide), n=8, **ENDLESS)
    _, asked = answer(engine)
    for one in asked:
        for candidate in one.candidates:
            expected = score(llama, None, guide, [one.prompt_ids], [candidate.token_ids])
            assert candidate.partial == pytest.approx(expected[0], abs=1e-4)
        kept = [candidate.token_ids[:7] for candidate in one.candidates if candidate.complete]
        lost = [candidate.token_ids for candidate in one.candidates if not candidate.complete]
        assert (len(kept), len(lost)) == (4, 4)
        said = score(llama, None, guide, [one.prompt_ids] * 8, kept + lost)
        assert min(said[:4]) >= max(said[4:])
    check_rewards(llama, rm, asked)


@pytest.mark.parametrize("width", ["prompts", "candidates"])
def test_memory_that_runs_out_is_tried_again_with_half(llama, tokenizer, width):
    rm = make_rm()

    def fail(rows, tokens):
        if (tokens > 1) == (width == "prompts") and rows > (3 if width == "prompts" else 10):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with Forwards(llama, fail), pytest.warns(UserWarning, match=f"out of memory with .* {width} at once") as caught:
        done, asked = answer(make_engine(llama, tokenizer, rm))
    assert len(caught) == 1
    assert done
    assert [len(one.candidates) for one in asked] == [4] * 5
    check_rewards(llama, rm, asked)
    assert hooks(llama) == 0


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_memory_that_runs_out_again_is_an_error_that_tells_what_to_do(llama, tokenizer, error):
    def fail(rows, tokens):
        if tokens == 1 and rows > 2:
            raise error

    with (
        Forwards(llama, fail),
        pytest.warns(UserWarning, match="out of memory with 20 candidates at once: trying again with half"),
        pytest.raises(RuntimeError, match=r"out of memory with 10 candidates at once, after one retry.*smaller batch_size"),
    ):
        answer(make_engine(llama, tokenizer))
    assert hooks(llama) == 0


def test_other_errors_go_through_at_once(llama, tokenizer):
    def fail(rows, tokens):
        raise RuntimeError("something else")

    with warnings.catch_warnings(), Forwards(llama, fail), pytest.raises(RuntimeError, match="something else"):
        warnings.simplefilter("error")
        answer(make_engine(llama, tokenizer))


@pytest.mark.parametrize("call", [1, 2, 4, 9, 12, 20, 26])
def test_an_interrupt_at_any_time_keeps_what_had_finished(llama, tokenizer, call):
    rm, before = make_rm(), dict(vars(llama))

    def fail(rows, tokens):
        if len(forwards.calls) == call:
            raise KeyboardInterrupt

    plan = CandidatePlan(4, 2, stop_at=1.0)
    with Forwards(llama, fail) as forwards:
        done, asked = answer(make_engine(llama, tokenizer, rm, plan), batch_size=3)
    assert not done
    for one in asked:
        assert one.ended == "interrupted"
        assert len(one.candidates) <= one.started
        assert one.tokens == sum(len(candidate.token_ids) for candidate in one.candidates)
    if call > 20:
        assert any(one.candidates for one in asked)
    check_rewards(llama, rm, asked)
    assert hooks(llama) == 0
    assert dict(vars(llama)) == before
    assert answer(make_engine(llama, tokenizer, rm, plan))[0], "the next call works as if nothing had happened"


def test_broken_candidates_neither_prune_nor_end_a_question(llama, tokenizer):
    def processor(input_ids, scores):
        if input_ids.shape[1] == 4 + 2:
            scores[(input_ids[:, :4] == torch.tensor(PROMPTS[0])).all(dim=1)] = math.nan
        return scores

    plan = CandidatePlan(4, 2, stop_at=0.5)
    _, asked = answer(
        make_engine(llama, tokenizer, plan=plan, prune=Halving(min_tokens=4), logits_processor=[processor], **ENDLESS)
    )
    assert {candidate.finish_reason for candidate in asked[0].candidates} == {"not_finite"}
    assert (len(asked[0].candidates), asked[0].ended) == (4, "all")
    assert all(any(candidate.complete for candidate in one.candidates) for one in asked[1:])


def test_watchers_see_every_wave(llama, tokenizer):
    seen = []
    answer(
        make_engine(llama, tokenizer, plan=CandidatePlan(4, 2, stop_at=1.0), **ENDLESS), on_step=lambda look: seen.append(look())
    )
    assert [len(step.token_ids[0]) for step in seen] == [*range(1, 8)] * 2
    assert all(step.prompts == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4] for step in seen)


def test_stop_strings_of_the_model_and_of_the_call(llama, tokenizer, monkeypatch):
    def check(stop, **settings):
        _, asked = answer(make_engine(llama, tokenizer, **settings, **ENDLESS))
        for one in (candidate for each in asked for candidate in each.candidates):
            texts = [tokenizer.decode(one.token_ids[:end]) for end in range(1, len(one.token_ids) + 1)]
            assert not any(stop in text for text in texts[:-1])
            assert one.finish_reason == ("stop" if stop in texts[-1] else "length")
        assert {c.finish_reason for one in asked for c in one.candidates} == {"stop", "length"}

    check("7", stop_strings=["7"])
    _, asked = answer(make_engine(llama, tokenizer, stop_strings=[], **ENDLESS))
    assert {c.finish_reason for one in asked for c in one.candidates} == {"length"}
    monkeypatch.setattr(llama.generation_config, "stop_strings", "wait ")
    check("wait ")


def test_candidates_that_are_unfinished_when_the_budget_is_spent_are_dropped(llama, tokenizer):
    @dataclass(frozen=True)
    class Careless(CandidatePlan):
        """Hand out two candidates a question, and then far more than the budget has room for."""

        def next_wave(self, sampled):
            counts = {0: 2, 2: 10}.get(sampled[0].started, 0)
            return [counts] * len(sampled), [None if counts else "budget"] * len(sampled)

    done, asked = answer(make_engine(llama, tokenizer, plan=Careless(16, 2, budget=90), **ENDLESS))
    assert done
    rows, first = 10 * len(asked), sum(len(c.token_ids) for one in asked for c in one.candidates[:2])
    assert first < 90 <= sum(one.tokens for one in asked) < 90 + rows, "the budget may be passed by one step of all rows"
    assert {c.finish_reason for one in asked for c in one.candidates[2:]} == {"budget"}
    assert all(c.complete for one in asked for c in one.candidates[:2])
