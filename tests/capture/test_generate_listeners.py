"""Listening to `generate` leaves the model as it was found, in whatever order those who listen stop."""

import copy
import gc
import itertools
import weakref

import pytest
import torch

from swift_rm import HiddenStateTap, StreamingReward
from swift_rm.capture.generate_listeners import GenerateListener, named
from tests.reward_models import make_rm
from tests.tiny_models import tiny_model

IDS = torch.tensor([[5, 6, 7], [8, 9, 10]])
SETTINGS = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}


class Model:
    def generate(self, inputs=None, *rest, steps=1, **kwargs):
        return inputs, rest, steps, kwargs


def listener(calls, name):
    def around(generate, args, settings):
        calls.append((name, settings))
        return generate(*args, **settings)

    return around


def test_who_came_last_is_the_outermost_and_who_asks_for_it_the_innermost():
    model, calls = Model(), []
    for name, inner in (("a", False), ("b", False), ("c", True)):
        GenerateListener(model, listener(calls, name), innermost=inner)
    assert model.generate(5, steps=2, more=3) == (5, (), 2, {"more": 3})
    assert [name for name, _ in calls] == ["b", "a", "c"]
    assert all(settings == {"inputs": 5, "steps": 2, "more": 3} for _, settings in calls)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("own", [None, lambda inputs: ("own", inputs)])
def test_stopped_in_any_order_the_model_is_as_it_was(order, own):
    model, calls = Model(), []
    if own is not None:
        model.generate = own
    before = dict(vars(model))
    listening = [GenerateListener(model, listener(calls, name)) for name in "abc"]
    for number, place in enumerate(order):
        model.generate(1)
        assert len(calls) == 3 - number
        calls.clear()
        listening[place].stop()
    assert vars(model) == before
    for one in listening:
        one.stop()  # once more does no harm
    assert vars(model) == before


def test_what_somebody_else_put_there_meanwhile_stays():
    model = Model()
    one = GenerateListener(model, listener([], "a"))
    model.generate = print
    one.stop()
    assert model.generate is print


def test_a_model_that_cannot_generate_is_left_alone():
    model = torch.nn.Linear(2, 2)
    GenerateListener(model, listener([], "a")).stop()
    assert "generate" not in vars(model)


def test_arguments_get_the_names_of_the_signature():
    assert named(Model().generate, (1,), {"steps": 3}) == ((), {"inputs": 1, "steps": 3})
    assert named(lambda a, b=2: None, (1, 5, 7), {}) == ((7,), {"a": 1, "b": 5})


def test_a_copy_of_the_model_made_inside_the_block_is_listened_to_by_nobody():
    model = tiny_model("llama")
    with HiddenStateTap(model), StreamingReward(model, make_rm()) as stream:
        model.generate(IDS, **SETTINGS)
        rewards, other = stream.rewards.clone(), copy.deepcopy(model)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.mul_(1.5)
        out = other.generate(IDS, **SETTINGS)
        assert torch.equal(stream.rewards, rewards)
        assert not torch.equal(out, model.generate(IDS, **SETTINGS)), "the copy generated with the other model's weights"
    assert "generate" not in vars(model)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_taps_and_streams_closed_in_any_order_leave_nothing(order):
    model = tiny_model("llama")
    opened = [HiddenStateTap(model), StreamingReward(model, make_rm())]
    for one in opened:
        one.__enter__()
    for place in order:
        opened[place].__exit__(None, None, None)
        model.generate(IDS, **SETTINGS)
    assert "generate" not in vars(model) and not any(module._forward_hooks for module in model.modules())


def test_a_tap_that_is_closed_is_freed_with_its_states_without_waiting_for_the_garbage_collector():
    gc.collect()
    gc.disable()
    try:
        model = tiny_model("llama")
        with HiddenStateTap(model) as tap:
            model.generate(IDS, **SETTINGS)
        seen, states = weakref.ref(tap), weakref.ref(tap.states[-1])
        del tap
        assert seen() is None and states() is None
    finally:
        gc.enable()
