"""Streams, faults and the reload of a model here."""

import asyncio
import logging

import pytest
import torch

from swift_rm.gateway.request.completion_request import CompletionRequest
from swift_rm.gateway.request.errors import GatewayError
from swift_rm.models.load import resolve
from swift_rm.reward.reward_model import SwiftRewardModel
from tests.decoding.engines import Forwards
from tests.gateway.local_gateway import answers, ask, refusal, serving
from tests.generate_calls import END
from tests.reward_models import LOGPROB_CONFIGS, make_reader


async def heard(backend, asking):
    return [delta async for delta in backend.live(asking)]


def joined(deltas):
    """Return each choice's text, and its candidate."""
    told = {}
    for delta in deltas:
        text, end = told.get(delta.index, ("", None))
        assert end is None, "nothing comes after a choice's end"
        told[delta.index] = text + delta.text, delta.candidate
    return told


def stream(loaded, asking, **settings):
    async def run():
        async with serving(loaded, **settings) as backend:
            return await heard(backend, asking)

    return asyncio.run(run())


@pytest.mark.parametrize("stop", [(), ("</think>",), ("=4", "wait ")])
def test_a_stream_is_the_answer_in_pieces(tiny, stop):
    asking = ask(n=3, seed=4, stop=stop)
    deltas, ((answer,),) = stream(tiny, asking), answers(tiny, asking)
    told = joined(deltas)
    assert sorted(told) == [0, 1, 2]
    assert {delta.prompt_tokens for delta in deltas} == {answer.prompt_tokens}
    assert all(text == candidate.text for text, candidate in told.values())
    assert sorted(text for text, _ in told.values()) == sorted(one.text for one in answer.candidates)
    assert {one.reward for _, one in told.values()} == {one.reward for one in answer.candidates}
    assert len(deltas) > 8 or stop


def test_choices_are_numbered_across_prompts(tiny):
    texts = ["<bos><question>1+1<student>", "<bos><question>27+2<student>"]
    deltas = stream(tiny, CompletionRequest(False, "m", texts, None, 2, 2))
    lengths = {delta.index: delta.prompt_tokens for delta in deltas}
    assert lengths == {0: 6, 1: 6, 2: 7, 3: 7}
    assert all(text == candidate.text for text, candidate in joined(deltas).values())


def test_text_comes_while_the_model_writes(endless):
    async def run():
        async with serving(endless) as backend:
            with Forwards(endless[0]) as forwards:
                pieces = backend.live(ask(max_tokens=1200))
                await anext(pieces)
                first = len(forwards.calls)
                await anext(pieces)
                await pieces.aclose()
                (answer,) = await backend.answer(ask(max_tokens=2))
                return first, len(forwards.calls), answer

    first, end, answer = asyncio.run(run())
    assert first < 300 and end < 900, "who stops listening cancels"
    assert len(answer.candidates[0].token_ids) == 2


def test_several_streams_and_an_answer_share_a_batch(tiny):
    async def run(batches):
        async with serving(tiny, batches, batch_wait_ms=300, batch_rows=7) as backend:
            return await asyncio.gather(
                heard(backend, ask("27+15", n=2)), heard(backend, ask("5+5")), backend.answer(ask("1+2+3", "vote", 4))
            )

    batches = []
    first, second, _ = asyncio.run(run(batches))
    assert [batch[:2] for batch in batches] == [(7, 3)]
    assert all(text == candidate.text for told in (first, second) for text, candidate in joined(told).values())
    assert [len({delta.prompt_tokens for delta in told}) for told in (first, second)] == [1, 1]
    assert first[0].prompt_tokens > second[0].prompt_tokens


def out_of_memory(above, from_call=0):
    calls = []

    def scarce(rows, width):
        calls.append(rows)
        if rows > above and len(calls) > from_call and width == 1:
            raise torch.OutOfMemoryError("CUDA out of memory")

    return scarce


def test_memory_that_does_not_suffice_is_429_and_the_next_request_works(tiny):
    async def run():
        async with serving(tiny) as backend:
            with Forwards(tiny[0], out_of_memory(3)):
                with pytest.warns(UserWarning, match="out of memory"), pytest.raises(GatewayError) as caught:
                    await backend.answer(ask(rule="best", n=16))
                assert caught.value.status == 429 and "out of memory" in caught.value.message
                return await backend.answer(ask(rule="best", n=3))

    assert asyncio.run(run())[0].drawn == 3


def test_memory_that_suffices_for_half_of_the_rows_is_not_noticed(tiny):
    with Forwards(tiny[0], out_of_memory(8)), pytest.warns(UserWarning, match="half of them"):
        ((answer,),) = answers(tiny, ask(rule="best", n=16))
    assert answer.drawn == 16


def test_a_stream_that_would_go_on_in_another_way_fails(endless):
    with (
        Forwards(endless[0], out_of_memory(2, from_call=6)),
        pytest.warns(UserWarning, match="half of them"),
        pytest.raises(GatewayError, match="ran out of memory while") as caught,
    ):
        stream(endless, ask(n=4, max_tokens=60))
    assert caught.value.status == 429


def test_a_stream_that_would_end_in_another_way_fails(endless, monkeypatch):
    """In the second try the first token is the end: there is no later step in which to see that the text is another."""
    tokens = iter([20, 21, 22])
    monkeypatch.setattr(torch, "multinomial", lambda chances, num_samples: torch.full((len(chances), 1), next(tokens, END)))
    monkeypatch.setattr(endless[0].generation_config, "eos_token_id", END)
    with (
        Forwards(endless[0], out_of_memory(1, from_call=3)),
        pytest.warns(UserWarning, match="half of them"),
        pytest.raises(GatewayError, match="ran out of memory while"),
    ):
        stream(endless, ask(n=2, max_tokens=60))


def test_a_failure_tells_nobody_anothers_text_and_the_thread_lives_on(tiny, caplog):
    def fail(rows, width):
        if width == 1 and rows == 2:
            raise ZeroDivisionError("the prompt was: secret 27+15")

    async def run():
        async with serving(tiny) as backend:
            with Forwards(tiny[0], fail), caplog.at_level(logging.ERROR, "swift_rm.gateway"):
                both = await asyncio.gather(backend.answer(ask(n=2)), heard(backend, ask(n=2, seed=1)), return_exceptions=True)
            return both, await backend.answer(ask(n=3))

    failed, (answer,) = asyncio.run(run())
    assert [(one.status, one.message) for one in failed] == [(500, "the model here failed: ZeroDivisionError")] * 2
    told = [str(vars(record)) for record in caplog.records]
    assert all("ZeroDivisionError" in one and "secret" not in one for one in told) and len(told) == 2
    assert answer.drawn == 3


def test_states_that_are_not_finite_are_the_models_fault(tiny):
    handle = tiny[0].model.norm.register_forward_hook(lambda module, args, out: out * torch.nan)
    try:
        for asking in (ask(n=2), ask(rule="best", n=2)):
            error = refusal(tiny, asking)
            assert (error.status, error.body()["error"]["type"]) == (500, "server_error")
            assert "their states are NaN or Inf" in error.message
        with pytest.raises(GatewayError, match="NaN or Inf"):
            stream(tiny, ask(n=2))
    finally:
        handle.remove()


def test_an_empty_response_is_an_answer_without_a_reward(llama, tokenizer):
    """A reward model of log-probabilities does not read the end token."""

    def only_end(module, args, logits):
        changed = logits.clone()
        changed[:, -1] = -1e4
        changed[:, -1, END] = 0.0
        return changed

    handle = llama.lm_head.register_forward_hook(only_end)
    try:
        loaded = llama, tokenizer, make_reader(LOGPROB_CONFIGS["top 3"])
        got = answers(loaded, ask(n=2), ask(rule="best", n=2))
        told = joined(stream(loaded, ask()))
    finally:
        handle.remove()
    candidates = [one for (answer,) in got for one in answer.candidates] + [told[0][1]]
    assert len(candidates) == 5
    assert {(one.text, one.finish_reason, one.flag, repr(one.reward)) for one in candidates} == {
        ("", "stop", "region_empty", "nan")
    }


def test_a_reward_model_of_log_probabilities_works_here_too(llama, tokenizer):
    ((answer,),) = answers(
        (llama, tokenizer, make_reader(LOGPROB_CONFIGS["top 3"])), ask(rule="best", n=4, max_tokens=9), views=True
    )
    assert answer.views[0].reward == pytest.approx(answer.candidates[0].reward, abs=1e-4)


def test_the_reward_model_is_loaded_anew_and_one_that_does_not_fit_is_not(tiny, tmp_path):
    saved = SwiftRewardModel.from_pretrained(resolve("tiny-reasoner-reward"))
    saved.save_pretrained(tmp_path)

    async def run():
        async with serving(None, reward_model=str(tmp_path)) as backend:
            same = ask(rule="best", n=4, seed=3)
            before = (await backend.answer(same))[0]
            with torch.no_grad():
                saved.head.bias[1] += 2.0
            saved.save_pretrained(tmp_path)
            pieces = backend.live(ask("27+15", n=1, seed=3))
            await anext(pieces)
            assert await asyncio.to_thread(backend.reload) == tmp_path.name
            rest = [delta async for delta in pieces]
            after = (await backend.answer(same))[0]
            (tmp_path / "model.safetensors").write_bytes(b"broken")
            with pytest.raises(ValueError, match="not a readable reward model"):
                await asyncio.to_thread(backend.reload)
            return before, rest[-1].candidate, after, (await backend.answer(same))[0]

    before, streamed, after, still = asyncio.run(run())
    assert [one.token_ids for one in before.candidates] == [one.token_ids for one in after.candidates]
    shift = [new.reward - old.reward for new, old in zip(after.candidates, before.candidates, strict=True)]
    assert shift == pytest.approx([2.0] * 4, abs=1e-3)
    assert still == after
    lone = answers(tiny, ask(n=1, seed=3))[0][0].candidates[0]
    assert streamed.reward == pytest.approx(lone.reward, abs=1e-4), "what had begun is read by the model of its beginning"
