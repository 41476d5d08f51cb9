import weakref

import pytest
import torch
from swift_rm_kernels import gated_step

import swift_rm.capture.running_mean
from swift_rm import StreamingReward
from swift_rm.capture.running_reward import RunningRewards
from tests.decoding.prompt_batches import read_prompts
from tests.generate_calls import SAMPLED, prompt_batch
from tests.reward_models import make_rm
from tests.tiny_models import tiny_model


@pytest.fixture
def steps(monkeypatch):
    """How many rows each ``gated_step`` of the package was given, call by call."""
    rows = []

    def counted(states, *args, **kwargs):
        rows.append(len(states[0]))
        gated_step(states, *args, **kwargs)

    monkeypatch.setattr(swift_rm.capture.running_mean, "gated_step", counted)
    return rows


@pytest.mark.parametrize("position", ["generating", "token"])
def test_a_token_of_all_rows_is_one_gated_step(llama, tokenizer, steps, position):
    rm = make_rm(position=position)
    with StreamingReward(llama, rm, tokens=True) as stream:
        llama.generate(**prompt_batch(llama, tokenizer), max_new_tokens=9, **SAMPLED, eos_token_id=None)
    assert steps == [2] * 9
    assert [len(one.gate) for one in stream.token_scores] == [9, 9]
    steps.clear()
    prompts = read_prompts(tiny_model("llama"), rm, max_new_tokens=20)
    candidates = prompts.decode([0, 1, 2] * 4).candidates
    lengths = [len(one.token_ids) for one in candidates]
    in_batch = [sum(length > step for length in lengths) for step in range(max(lengths))]
    assert in_batch[-1] < 12, "rows should leave the batch"
    assert steps == in_batch


def test_a_guide_and_a_region_that_has_begun_are_one_step_more(steps, letters_tokenizer):
    model, states = tiny_model("llama"), {layer: torch.randn(2, 1, 32) for layer in (0, 2, 3)}
    running = RunningRewards(model, make_rm(region="after:b"), letters_tokenizer, guide=make_rm(region="after:b"))
    for token, calls in ((0, 2), (1, 2), (0, 3)):  # a, b, a: the first after the marker
        steps.clear()
        running._see(states)
        running.count(torch.tensor([token, 0]), torch.tensor([True, True]))
        assert len(steps) == calls
    assert running.flags() == [None, "marker_missing"]


@pytest.fixture
def letters_tokenizer():
    class Letters:
        def decode(self, ids, **settings):
            return "".join("ab"[i] for i in ids)

    return Letters()


@pytest.mark.parametrize("position", ["generating", "token"])
def test_states_are_let_go_when_their_token_is_counted(position):
    running = RunningRewards(tiny_model("llama"), make_rm(layers=(0,), position=position))
    prompt, step = torch.randn(2, 7, 32), torch.randn(2, 1, 32)
    seen, active = [weakref.ref(prompt), weakref.ref(step)], torch.tensor([True, True])
    running._see({0: prompt})
    del prompt
    assert seen[0]() is None, "a whole prompt's states were held"
    running.count(torch.tensor([5, 6]), active)
    running._see({0: step})
    del step
    if position == "generating":
        assert seen[1]() is not None
        running.count(torch.tensor([7, 8]), active)
    assert seen[1]() is None
    assert running.latest() is None
    assert running.rewards().isfinite().all()
    assert running.state_bytes() == 12


def test_responses_go_on_from_prompts_that_were_read_once():
    rm, running = make_rm(layers=(0,)), RunningRewards(tiny_model("llama"), make_rm(layers=(0,)))
    prompts, active = torch.randn(3, 4, 32), torch.ones(4, dtype=torch.bool)
    running._see({0: prompts})
    read, rows = running.latest(), torch.tensor([2, 0, 0, 1])
    for _ in range(2):
        running.resume(read, rows)
        running.count(rows, active)
        expected = rm.token_scores(prompts[rows, -1]).reward
        assert torch.allclose(running.rewards(), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_head_of_another_precision_is_summed_in_float32_or_more(llama, tokenizer, dtype):
    rm = make_rm().to(dtype)
    torch.manual_seed(0)
    with StreamingReward(llama, rm) as stream, StreamingReward(llama, make_rm().to(dtype).float()) as expected:
        llama.generate(**prompt_batch(llama, tokenizer), max_new_tokens=9, **SAMPLED, eos_token_id=None)
    assert stream.rewards.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert stream.rewards.tolist() == pytest.approx(expected.rewards.tolist(), abs=1e-5)


def test_rows_that_leave_between_a_step_and_its_token_take_their_states_along(llama):
    rm, running = make_rm(layers=(0,)), RunningRewards(llama, make_rm(layers=(0,)))
    states, kept = torch.randn(3, 1, 32), torch.tensor([2, 0])
    running._see({0: states})
    running.select(kept)
    running.count(torch.tensor([5, 6]), torch.tensor([True, True]))
    assert torch.allclose(running.rewards(), rm.token_scores(states[kept, 0]).reward, atol=1e-5)


def test_the_kept_tokens_go_where_their_rows_go(llama):
    running = RunningRewards(llama, make_rm(layers=(0,)), keep_tokens=True)
    for rows, kept in ((3, [2, 0]), (2, [1])):
        running._see({0: torch.randn(rows, 1, 32)})
        running.count(torch.arange(rows), torch.ones(rows, 2, dtype=torch.bool)[:, 0])
        running.select(torch.tensor(kept))
    (tokens,) = running.token_scores()
    assert len(tokens.reward) == 2
    assert float(running.rewards()) == pytest.approx(float((tokens.gate * tokens.reward).sum() / tokens.gate.sum()), abs=1e-5)
