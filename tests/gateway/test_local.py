import asyncio
from dataclasses import replace

import pytest
import torch

from swift_rm import best_of_n, score
from swift_rm.gateway.local.backend import LocalBackend
from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import GatewayError
from tests.decoding.engines import Forwards
from tests.gateway.local_gateway import SETTINGS, answers, ask, message, refusal, serving
from tests.reward_models import make_rm

QUESTIONS = ["27+15", "31-14+22", "5+5", "90+80-3", "1+2+3+4"]


@pytest.mark.parametrize("rule", ["shrunk", "best", "vote"])
def test_a_seed_gives_what_best_of_n_gives(tiny, rule):
    ((answer,),) = answers(tiny, ask(rule=rule, n=8, seed=5, temperature=0.8, top_p=0.9, max_tokens=24))
    drawn = {"seed": 5, "temperature": 0.8, "top_p": 0.9, "max_new_tokens": 24}
    (expected,) = best_of_n(*tiny, [message("27+15")], n=8, select=rule, **drawn)
    assert answer.candidates[0] == expected.best
    assert list(answer.candidates[1:]) == [one for one in expected.candidates if one is not expected.best]
    assert (answer.completion_tokens, answer.drawn, answer.ended) == (expected.tokens_spent, 8, "all")
    assert answer.prompt_tokens == len(tiny[1].apply_chat_template(message("27+15"), add_generation_prompt=True)["input_ids"])


def test_prompts_of_a_request_with_a_seed_are_drawn_one_by_one(tiny):
    texts = ["<bos><question>1+1<student>", "<bos><question>2+2<student>"]
    (drawn,) = answers(tiny, CompletionRequest(False, "m", texts, "best", 4, 1, seed=-3))
    expected = best_of_n(*tiny, texts, n=4, select="best", seed=-3, batch_size=1)
    assert [one.candidates[0] for one in drawn] == [one.best for one in expected]


def test_users_who_share_a_batch_get_what_they_get_alone(tiny):
    """Greedy candidates, token by token, with limits and prompts of their own."""
    askings = [ask(text, temperature=0, max_tokens=limit) for text, limit in zip(QUESTIONS, [None, 7, 30, None, 1], strict=True)]
    batches = []
    together = answers(tiny, *askings, batches=batches, batch_wait_ms=500, batch_rows=5)
    assert [batch[:2] for batch in batches] == [(5, 5)]
    for asking, (answer,) in zip(askings, together, strict=True):
        (((alone,),),) = ([one.candidates for one in got] for got in answers(tiny, asking))
        (shared,) = answer.candidates
        assert (shared.token_ids, shared.text, shared.finish_reason) == (alone.token_ids, alone.text, alone.finish_reason)
        assert shared.reward == pytest.approx(alone.reward, abs=1e-4)
        limit = asking.max_tokens
        assert (shared.finish_reason == "length") == (limit in (1, 7)) and len(shared.token_ids) <= (limit or 99)


def test_candidates_of_several_numbers_share_a_batch_and_rewards_are_those_of_score(tiny):
    batches = []
    askings = [ask("27+15", "shrunk", 6), ask("5+5", n=3), ask("90+80-3", "vote", 7, returned=2), ask("1+2")]
    got = answers(tiny, *askings, batches=batches, batch_wait_ms=500, batch_rows=17)
    assert [batch[:2] for batch in batches] == [(17, 4)]
    for asking, (answer,) in zip(askings, got, strict=True):
        candidates = list(answer.candidates)
        assert len(candidates) == answer.drawn == asking.drawn
        assert answer.completion_tokens == sum(len(one.token_ids) for one in candidates)
        prompts = list(asking.prompts) * len(candidates)
        assert [one.reward for one in candidates] == pytest.approx(
            score(*tiny, prompts, [one.token_ids for one in candidates]), abs=1e-4
        )
        others = [one.reward for one in candidates[1:]]
        assert asking.rule is None or others == sorted(others, reverse=True)


def test_stop_strings_are_cut_off(tiny):
    ((answer,),) = answers(tiny, ask(n=12, stop=("</think>", "wait ")))
    assert all(one.finish_reason == "stop" for one in answer.candidates)
    assert not any(stop in one.text for one in answer.candidates for stop in ("</think>", "wait "))
    decoded = [tiny[1].decode(one.token_ids, skip_special_tokens=True) for one in answer.candidates]
    assert all(
        whole in (one.text + "</think>", one.text + "wait ") for whole, one in zip(decoded, answer.candidates, strict=True)
    )


def test_views_show_gate_and_reward_of_each_token_in_the_order_of_the_candidates(tiny):
    ((answer,),) = answers(tiny, ask(rule="best", n=5), views=True)
    assert len(answer.views) == 5
    for candidate, view in zip(answer.candidates, answer.views, strict=True):
        assert [token.token_id for token in view.tokens] == candidate.token_ids
        weights = [token.gate for token in view.tokens]
        mean = sum(token.gate * token.reward for token in view.tokens) / sum(weights)
        assert mean == pytest.approx(candidate.reward, abs=1e-3)
        assert (view.probability, view.answer) == (candidate.probability, candidate.answer)


def test_a_request_that_ends_early_does_not_wait_for_its_batch(endless):
    """Its answer is there while the others' rows are still decoded; so are its errors, which are its own."""

    async def run():
        async with serving(endless, batch_wait_ms=300, batch_rows=3) as backend:
            with Forwards(endless[0]) as forwards:
                slow = asyncio.create_task(backend.answer(ask(max_tokens=400)))
                quick = asyncio.create_task(backend.answer(ask(max_tokens=3, n=2)))
                await quick
                at = len(forwards.calls)
                assert not slow.done()
                (answer,) = await slow
                return at, len(forwards.calls), answer

    at, end, answer = asyncio.run(run())
    assert at < 200 and end == 400
    assert len(answer.candidates[0].token_ids) == 400


def test_a_cancelled_request_leaves_the_batch(endless):
    async def run():
        async with serving(endless, batch_wait_ms=300, batch_rows=6) as backend:
            with Forwards(endless[0]) as forwards:
                gone = asyncio.create_task(backend.answer(ask("27", n=5, max_tokens=1500)))
                stays = asyncio.create_task(backend.answer(ask("5+5", n=1, max_tokens=1500)))
                while len(forwards.calls) < 10:
                    await asyncio.sleep(0.001)
                gone.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await gone
                at = len(forwards.calls)
                while len(forwards.calls) < at + 10:
                    await asyncio.sleep(0.001)
                stays.cancel()
                await asyncio.gather(stays, return_exceptions=True)
                (answer,) = await backend.answer(ask(max_tokens=2))
                return at, forwards.calls, answer

    at, calls, answer = asyncio.run(run())
    rows = [rows for rows, width in calls if width == 1]
    assert rows[:8] == [6] * 8 and 1 in rows and rows.index(1) <= at + 2
    assert len(rows) < 1000, "decoding ended before its time, and the next request was answered"
    assert len(answer.candidates[0].token_ids) == 2


def test_more_candidates_than_a_batch_holds_are_decoded_alone(tiny):
    batches = []
    got = answers(tiny, ask("27+15", "best", 9), ask("5+5", "best", 2), batches=batches, batch_rows=4)
    assert [answer.drawn for (answer,) in got] == [9, 2]
    assert sorted(batch[:2] for batch in batches) == [(2, 1), (9, 1)]


def test_two_settings_never_share_a_batch(tiny):
    batches = []
    fields = [{}, {"temperature": 0.5}, {"top_p": 0.9}, {"top_k": 3}, {"stop": ("x",)}, {"seed": 1}, {}]
    answers(tiny, *(ask(**one) for one in fields), batches=batches, batch_wait_ms=100)
    assert sorted(batch[:2] for batch in batches) == [(1, 1)] * 5 + [(2, 2)]
    assert all(seconds > 0 for _, _, seconds in batches)


def test_temperature_zero_and_next_to_zero(tiny):
    (zero,), (near,), (tiniest,) = answers(
        tiny, ask(temperature=0), ask(temperature=1e-4), ask(temperature=5e-324, top_p=5e-324, top_k=2**31 - 1)
    )  # fmt: skip
    assert zero.candidates[0].token_ids == near.candidates[0].token_ids == tiniest.candidates[0].token_ids


def test_what_is_refused(tiny):
    assert refusal(tiny, ask(others={"logprobs": True})).param == "logprobs"
    assert refusal(tiny, ask(max_tokens=511)).code == "context_length_exceeded"
    assert refusal(tiny, CompletionRequest(False, "m", [[77]])).status == 400
    assert refusal(tiny, CompletionRequest(False, "m", ["27", [77]], "best", 2)).status == 400, "before anything is decoded"


def test_it_has_a_name_and_says_when_it_is_not_ready(tiny):
    async def run():
        backend = LocalBackend(SETTINGS, tiny)
        assert (backend.name, backend.forwards, backend.rewards) == ("tiny-reasoner", False, True)
        assert LocalBackend(replace(SETTINGS, name="mine"), tiny).name == "mine"
        assert await backend.health() == "the model is being loaded"
        with pytest.raises(GatewayError, match="being loaded") as caught:
            await backend.answer(ask())
        assert caught.value.status == 503
        await asyncio.to_thread(backend.start)
        assert await backend.health() is None
        assert len(await backend.answer(ask())) == 1
        await backend.close()
        assert await backend.health() == "the server is ending"
        with pytest.raises(GatewayError, match="about to end"):
            await backend.answer(ask())

    asyncio.run(run())


def test_models_are_loaded_by_their_names_and_must_fit(tiny):
    async def run(**settings):
        async with serving(None, **settings) as backend:
            return await backend.answer(ask(n=2))

    assert asyncio.run(run(device="cpu"))[0].drawn == 2
    with pytest.raises(ValueError, match="the reward model was trained on"):
        asyncio.run(run(model="tiny-reasoner-2"))
    with pytest.raises(OSError, match="no reward model folder at nowhere"):
        asyncio.run(run(reward_model="./nowhere"))
    with pytest.raises(ValueError, match="expected hidden states of width"):
        LocalBackend(SETTINGS, (*tiny[:2], make_rm(hidden=7))).start()


def test_the_largest_temperature_is_no_failure(tiny):
    ((answer,),) = answers(tiny, ask(temperature=100.0, n=3, max_tokens=5))
    assert all(torch.isfinite(torch.tensor(one.reward)) for one in answer.candidates)
