"""Whoever reads states while something else generates raises where states and tokens do not go together."""

from importlib.metadata import version

import pytest
import torch

from swift_rm import BestOfNDecoding, HiddenStateTap, StreamingReward
from swift_rm.capture.logits_tap import LogitsTap
from swift_rm.capture.state_recorder import StateRecorder
from swift_rm.capture.token_statistics import StatisticsRecorder
from swift_rm.models import transformers_internals as internals
from swift_rm.sampling.generation import NEUTRAL
from tests.decoding.planted_generate import FAULTS, Planted
from tests.reward_models import make_rm
from tests.tiny_models import tiny_model

ROWS, WIDTH, NEW = 3, 5, 7
STATISTICS = {  # those of the faults that a logits processor can see: it is shown tokens and logits, never forward calls
    "reorders rows": "not those that were chosen",
    "reorders what comes out": "not those that were chosen",
    "drops a token": "there are tokens .3, 11., where .3, 12. belong",
    "drops a row": "there are tokens .2, 12., where .3, 12. belong",
}


@pytest.fixture
def ids():
    return torch.randint(3, 101, (ROWS, WIDTH), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def planted():
    """A function that gives a model whose `generate` has a fault."""

    def plant(fault):
        model = tiny_model("llama", seed=1)
        model.generate = Planted(model, fault, other=tiny_model("llama", seed=2))
        return model

    return plant


def stream(position):
    def read(model, ids):
        with StreamingReward(model, make_rm(position=position)) as stream:
            try:
                model.generate(ids, max_new_tokens=NEW)
            finally:
                read.stream = stream

    return read


def record(*positions):
    def read(model, ids):
        with StateRecorder(model, (0, 3), positions) as recorder:
            model.generate(ids, max_new_tokens=NEW, stopping_criteria=[recorder])
            recorder.finish([True] * ROWS)

    return read


COUNTING = {
    "stream": stream("generating"), "stream, token": stream("token"),
    "recorder": record("generating"), "recorder, token": record("token"), "recorder, both": record("generating", "token"),
}  # fmt: skip


@pytest.mark.parametrize("reader", COUNTING)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_reader_that_counts_tokens_raises(planted, ids, fault, reader):
    with pytest.raises(RuntimeError, match=FAULTS[fault][0]) as error:
        COUNTING[reader](planted(fault), ids)
    if "cut back" not in str(error.value):
        assert f"the generation of transformers {version('transformers')}" in str(error.value)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("tap", [HiddenStateTap, LogitsTap])
def test_a_tap_raises_unless_its_states_are_still_those_of_the_tokens(planted, ids, tap, fault):
    said = FAULTS[fault][1]
    model = planted(fault)
    if said is None:
        with tap(model, (-1,)) as seen:
            out = model.generate(ids, max_new_tokens=NEW)
        with tap(model, (-1,)) as expected, torch.no_grad():
            model(out[:, :-1])
        torch.testing.assert_close(seen.states[-1], expected.states[-1], rtol=1e-4, atol=1e-5)
        return
    with pytest.raises(RuntimeError, match=said), tap(model, (-1,)) as seen:
        model.generate(ids, max_new_tokens=NEW)
    with pytest.raises(RuntimeError, match=said):
        _ = seen.states


@pytest.mark.parametrize("fault", STATISTICS)
def test_token_statistics_raise(planted, ids, fault):
    recorder = StatisticsRecorder()
    with pytest.raises(RuntimeError, match=f"token statistics lost step .* {STATISTICS[fault]}"):
        recorder.finish(planted(fault).generate(ids, max_new_tokens=NEW, logits_processor=[recorder]))


def test_without_a_fault_nothing_is_raised_and_the_rewards_are_those_of_the_tokens(planted, ids):
    model = planted(None)
    for read in COUNTING.values():
        read(model, ids)
    recorder = StatisticsRecorder()
    recorder.finish(model.generate(ids, max_new_tokens=NEW, logits_processor=[recorder]))
    out = model.generate(ids, max_new_tokens=NEW)
    rm = make_rm()
    with torch.no_grad():
        states = model(out, output_hidden_states=True).hidden_states
        features = torch.cat([states[layer] for layer in rm.config.layers], dim=-1)[:, WIDTH - 1 : -1].flatten(0, 1)
        expected = rm(features, torch.arange(ROWS + 1) * NEW)
    stream("generating")(model, ids)
    torch.testing.assert_close(COUNTING["stream"].stream.rewards, expected, rtol=1e-4, atol=1e-5)


def test_after_a_fault_there_is_no_reward_and_the_next_call_is_read_as_ever(planted, ids):
    model = planted("repeats a step")
    with StreamingReward(model, make_rm()) as reading:
        with pytest.raises(RuntimeError, match="two forward calls"):
            model.generate(ids, max_new_tokens=NEW)
        with pytest.raises(RuntimeError, match="no generate call was seen"):
            _ = reading.rewards
    del model.generate
    with StreamingReward(model, make_rm()) as reading:
        model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
    assert reading.rewards.isfinite().all()


LOOP = {
    "another token": "a row was fed a token that was not chosen for it",
    "two tokens": "2 tokens were fed at once",
    "no cache": "had read 1 tokens of each row",
    "other rows": "rows were fed after token|was not chosen for it",
    "twice": "two forward calls were made",
}


@pytest.mark.parametrize("fault", LOOP)
@pytest.mark.parametrize("position", ["generating", "token"])
def test_the_loop_of_ones_own_counts_what_transformers_prepares(ids, fault, position):
    model = tiny_model("llama", seed=1)
    prepare, calls = model.prepare_inputs_for_generation, []

    def faulty(*args, **kwargs):
        inputs = prepare(*args, **kwargs)
        calls.append(inputs)
        if len(calls) == 4:
            step = inputs["input_ids"]
            if fault == "another token":
                inputs["input_ids"] = (step + 1) % 101
            elif fault == "two tokens":
                inputs |= {"input_ids": step.repeat(1, 2), "position_ids": None, "attention_mask": None}
            elif fault == "no cache":
                inputs = {"input_ids": step}
            elif fault == "other rows":
                inputs["input_ids"] = step.flip(0)
            else:
                model(**inputs)
        return inputs

    model.prepare_inputs_for_generation = faulty
    decode = BestOfNDecoding(make_rm(position=position), n=4)
    settings = {**NEUTRAL, "do_sample": True, "top_k": 0, "max_new_tokens": NEW, "eos_token_id": None, "pad_token_id": 0}
    torch.manual_seed(0)
    with pytest.raises(RuntimeError, match=LOOP[fault]):
        model.generate(ids, custom_generate=decode, **settings)


def test_after_an_interruption_the_rewards_are_those_of_the_tokens_so_far(ids):
    def interrupt(input_ids, scores):
        if input_ids.shape[1] == WIDTH + 3:
            raise KeyboardInterrupt
        return scores

    model = tiny_model("llama", seed=1)
    settings = {"max_new_tokens": NEW, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    with StreamingReward(model, make_rm()) as reading:
        model.generate(ids, **{**settings, "max_new_tokens": 3})
        expected = reading.rewards.clone()
        with pytest.raises(KeyboardInterrupt):
            model.generate(ids, logits_processor=[interrupt], **settings)
        assert torch.equal(reading.partial_rewards, expected)


def test_forward_calls_of_ones_own_after_the_generation_are_none_of_its_steps(ids):
    model = tiny_model("llama", seed=1)
    with StreamingReward(model, make_rm()) as reading, torch.no_grad():
        model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
        rewards = reading.rewards.clone()
        model(ids[:, :3])
        model(ids[:1])
        assert torch.equal(reading.rewards, rewards)


def test_forward_calls_after_the_last_token_are_no_fault_where_processes_wait_for_others(ids, monkeypatch):
    model = tiny_model("llama", seed=1)
    plain = Planted(model, None)

    def waiting(input_ids, **settings):
        out = plain(input_ids, **settings)
        for _ in range(3):
            model(out[:, -1:], **{internals.cache_name(type(model)): plain.cache})
        return out

    model.generate = waiting
    with torch.no_grad(), StreamingReward(model, make_rm()) as reading:
        with pytest.raises(RuntimeError, match="states of 14 tokens a row were seen where 11 belong"):
            model.generate(ids, max_new_tokens=NEW)
        monkeypatch.setattr(internals, "_distributed", lambda: True)
        model.generate(ids, max_new_tokens=NEW)
    model.generate = plain
    with StreamingReward(model, make_rm()) as expected:
        model.generate(ids, max_new_tokens=NEW)
    assert torch.equal(reading.rewards, expected.rewards)


def test_a_prompt_that_is_read_twice_is_noticed(ids):
    model = tiny_model("llama", seed=1)
    read = model._prefill

    def twice(*args, **kwargs):
        model(args[0])
        return read(*args, **kwargs)

    model._prefill = twice
    with pytest.raises(RuntimeError, match="two forward calls were made for the prompts"), StreamingReward(model, make_rm()):
        model.generate(ids, max_new_tokens=NEW, do_sample=False, pad_token_id=0)
