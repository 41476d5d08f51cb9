import gc

import pytest
import torch

from swift_rm import sample
from swift_rm.capture.final_token_pass import FinalTokenPass
from swift_rm.capture.state_recorder import RecordingSpec, StateRecorder
from swift_rm.reward.config import Position
from swift_rm.sampling.generation import generate_responses
from swift_rm.sampling.sample import SampledBatch, sample_batches
from swift_rm.scoring.teacher_forced_states import read_again
from swift_rm.tasks.homework import HomeworkTask
from tests.generate_calls import hooks
from tests.tiny_models import tiny_model

GENERATING, TOKEN, BOTH = ("generating",), ("token",), ("generating", "token")
POSITIONS: tuple[tuple[Position, ...], ...] = (GENERATING, TOKEN, BOTH)
LAYERS = (3, 0, -2)  # in no order, and one counted from the end
PROMPTS = [[1, 17, 11, 22, 5], [1, 9], [1, 20, 21]]  # of unequal length: padded on the left


class NoTokenizer:
    pad_token_id, eos_token_id = 0, 2

    def decode(self, ids, **kwargs):
        return " ".join(map(str, ids))


def questions(count):
    return list(HomeworkTask("test").questions(count))


def record(model, tokenizer, prompts, n, positions, layers=LAYERS, **settings):
    settings = {"do_sample": True, "max_new_tokens": 9, **settings}
    with StateRecorder(model, layers, positions) as recorder:
        rows = generate_responses(model, tokenizer, prompts, n, 0, settings, recorder)
    responses = [response.token_ids for row in rows for response in row]
    states, offsets = recorder.packed([len(ids) for ids in responses])
    return [prompt for prompt in prompts for _ in range(n)], responses, states, offsets


@torch.no_grad()
def rows_of(model, layers, positions, prompt, response):
    """The definition: one sequence, no padding, no cache, transformers' own tuple of hidden states."""
    hidden = model(torch.tensor([[*prompt, *response]]), output_hidden_states=True, use_cache=False).hidden_states
    first = len(prompt) - 1 + ("generating" not in positions)
    end = len(prompt) + len(response) - ("token" not in positions)
    return torch.cat([hidden[layer][0, first:end] for layer in layers], dim=-1)


def check(model, layers, positions, prompts, responses, states, offsets, tolerance=1e-5):
    assert offsets.dtype == torch.long and offsets[0] == 0 and offsets[-1] == len(states)
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        expected = rows_of(model, layers, positions, prompt, response)
        assert len(expected) == len(response) + len(positions) - 1
        torch.testing.assert_close(states[offsets[i] : offsets[i + 1]], expected, atol=tolerance, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gemma2", "gpt2", "qwen3_moe", "jamba", "lfm2", "opt-projected"])
@pytest.mark.parametrize("positions", POSITIONS, ids="+".join)
def test_states_are_those_of_the_model_on_each_sequence_alone(architecture, positions):
    model = tiny_model(architecture)
    # many ids end a response, so that rows end at different steps
    found = record(model, NoTokenizer(), PROMPTS, 3, positions, eos_token_id=list(range(2, 20)))
    assert len({len(response) for response in found[1]}) > 2, "rows should end at different steps"
    check(model, LAYERS, positions, *found, tolerance=2e-5)


@pytest.mark.parametrize("positions", POSITIONS, ids="+".join)
@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": 1},
        {"eos_token_id": -1},
        {"use_cache": False},
        {"cache_implementation": "static"},
        {"prefill_chunk_size": 2},
        {"do_sample": False},
        {"stopping_criteria": "third token"},
    ],
    ids=str,
)
def test_every_way_to_generate_and_to_end(llama, tokenizer, positions, settings):
    def third_token(input_ids, scores, **kwargs):
        return torch.arange(len(input_ids)) % 2 * (input_ids.shape[1] - 5) >= 3

    if "stopping_criteria" in settings:
        settings = {"stopping_criteria": [third_token], "eos_token_id": -1}
    n = 1 if "do_sample" in settings else 2
    found = record(llama, tokenizer, PROMPTS, n, positions, **settings)
    if "stopping_criteria" in settings:
        assert [len(response) for response in found[1]] == [9, 3] * 3
    check(llama, LAYERS, positions, *found)


def test_stop_strings_end_rows_within_the_batch(llama, tokenizer, monkeypatch):
    class EndsIn:
        def __init__(self, tokenizer, strings):
            self.tokenizer, self.strings = tokenizer, strings

        def __call__(self, input_ids, scores, **kwargs):
            texts = [self.tokenizer.decode(row[-1:]) for row in input_ids]
            return torch.tensor([text in self.strings for text in texts])

    monkeypatch.setattr("transformers.StopStringCriteria", EndsIn)  # transformers' own needs a tokenizer that knows "abcdef"
    found = record(llama, tokenizer, PROMPTS, 4, BOTH, stop_strings=list("0123456789"), max_new_tokens=12)
    assert len({len(response) for response in found[1]}) > 2
    check(llama, LAYERS, BOTH, *found)


@pytest.mark.parametrize("positions", POSITIONS, ids="+".join)
def test_reading_again_gives_the_same(llama, tokenizer, positions):
    prompts, responses, states, offsets = record(llama, tokenizer, PROMPTS, 3, positions)
    again, same = read_again(llama, RecordingSpec(LAYERS, positions), prompts, responses, batch_size=4)
    assert same.tolist() == offsets.tolist()
    torch.testing.assert_close(again, states, atol=1e-5, rtol=1e-4)
    with pytest.raises(ValueError, match="no responses"):
        read_again(llama, RecordingSpec(LAYERS, positions), [], [])


def test_in_bfloat16_states_are_bfloat16_and_close(tokenizer):
    model = tiny_model("llama", vocab_size=len(tokenizer)).bfloat16()
    prompts, responses, states, offsets = record(model, tokenizer, PROMPTS, 2, BOTH)
    assert states.dtype == torch.bfloat16
    check(model.float(), LAYERS, BOTH, prompts, responses, states.float(), offsets, tolerance=0.1)


def test_states_can_be_trained_on_and_what_is_sampled_does_not_change(llama, tokenizer):
    plain = generate_responses(llama, tokenizer, PROMPTS, 2, 0, {"do_sample": True, "max_new_tokens": 9})
    _, responses, states, _ = record(llama, tokenizer, PROMPTS, 2, BOTH)
    assert responses == [response.token_ids for row in plain for response in row]
    weight = torch.zeros(states.shape[1], requires_grad=True)
    (states @ weight).sum().backward()
    torch.testing.assert_close(weight.grad, states.sum(0))
    assert not states.requires_grad and not states.is_inference()


def test_no_more_is_held_than_steps_times_rows_times_width(llama, tokenizer):
    prompts = [[1, *[9] * 40]] * 2
    with StateRecorder(llama, (0, 3), BOTH) as recorder:
        generate_responses(llama, tokenizer, prompts, 3, 0, {"do_sample": True, "max_new_tokens": 6}, recorder)
        held = {part.data_ptr(): part.untyped_storage().nbytes() for step in recorder._steps for part in step}
    assert sum(held.values()) == 7 * 6 * 64 * 4
    recorder.packed([1] * 6)
    assert recorder._steps == []


def test_the_model_is_left_as_it_was_after_an_exception_too(llama, tokenizer):
    def interrupt(input_ids, scores, **kwargs):
        raise KeyboardInterrupt

    before = hooks(llama), set(vars(llama))
    with pytest.raises(KeyboardInterrupt):
        record(llama, tokenizer, PROMPTS, 2, BOTH, stopping_criteria=[interrupt])
    assert (hooks(llama), set(vars(llama))) == before


def test_wrong_lengths_and_a_second_reading_are_refused(llama, tokenizer):
    with StateRecorder(llama, (1,), GENERATING) as recorder:
        rows = generate_responses(llama, tokenizer, [[1, 3]] * 2, 1, 0, {"max_new_tokens": 4, "eos_token_id": -1}, recorder)
    assert [len(response.token_ids) for row in rows for response in row] == [4, 4]
    with pytest.raises(ValueError, match=r"expected 2 rows of up to 4 states, .* got 2 rows of up to 5"):
        recorder.packed([4, 5])
    with pytest.raises(ValueError, match="expected 2 rows"):
        recorder.packed([4])
    recorder.packed([4, 4])
    with pytest.raises(ValueError, match="expected 0 rows"):
        recorder.packed([4, 4])


def test_what_cannot_be_recorded_is_refused(llama, tokenizer):
    with pytest.raises(ValueError, match="has no layer 4"):
        StateRecorder(llama, (4,))
    for wrong, message in (((), "at least one layer"), ((0,), "positions must be some of")):
        with pytest.raises(ValueError, match=message):
            RecordingSpec(wrong, ("last",) if wrong else GENERATING)
    with pytest.raises(ValueError, match="custom_generate"):
        record(llama, tokenizer, PROMPTS, 1, GENERATING, custom_generate="org/loop")
    with pytest.raises(RuntimeError, match="hooks did not see"):
        StateRecorder(llama, (0,))(torch.ones(1, 3, dtype=torch.long), None)


def test_the_last_step_is_made_only_for_position_token(llama, tokenizer, monkeypatch):
    calls = []
    run = FinalTokenPass.run
    monkeypatch.setattr(FinalTokenPass, "run", lambda self, *args, **kwargs: (calls.append(1), run(self, *args, **kwargs)))
    for positions in POSITIONS:
        record(llama, tokenizer, PROMPTS, 1, positions)
    assert len(calls) == 2


RECORD = RecordingSpec((1, 3), BOTH)


def check_batches(model, batches):
    for batch in batches:
        prompts, responses = [r.prompt_ids for r in batch.rollouts], [r.response_ids for r in batch.rollouts]
        check(model, RECORD.layers, RECORD.positions, prompts, responses, batch.states, batch.offsets)


def test_batches_are_what_sample_returns_with_their_states(llama, tokenizer, tmp_path):
    arguments = {"batch_size": 2, "max_new_tokens": 12}
    expected = sample(llama, tokenizer, questions(5), 3, tmp_path / "a", **arguments)
    batches = list(sample_batches(llama, tokenizer, questions(5), 3, tmp_path / "b", record=RECORD, **arguments))
    assert [len(batch.rollouts) for batch in batches] == [6, 6, 3]
    assert [rollout for batch in batches for rollout in batch.rollouts] == expected
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert all(batch.fresh for batch in batches)
    check_batches(llama, batches)
    plain = next(sample_batches(llama, tokenizer, questions(5), 3, **arguments))
    assert plain == SampledBatch(expected[:6], None, None, True)


def test_a_resumed_run_sees_the_states_of_every_response(llama, tokenizer, tmp_path):
    out, settings = tmp_path / "r", {"record": RECORD, "max_new_tokens": 12}
    first = sample_batches(llama, tokenizer, questions(6), 3, out, batch_size=2, **settings)
    next(first)
    with pytest.raises(BlockingIOError):
        next(sample_batches(llama, tokenizer, questions(6), 3, out, **settings))
    assert out.read_bytes().count(b"\n") == 6  # in the file before it is handed out
    first.close()
    batches = list(sample_batches(llama, tokenizer, questions(6), 3, out, batch_size=3, **settings))  # 2nd: partly there
    assert [batch.fresh for batch in batches] == [False, True]
    check_batches(llama, batches)
    again = list(sample_batches(llama, tokenizer, questions(6), 3, out, batch_size=4, **settings))
    assert [r for batch in again for r in batch.rollouts] == [r for batch in batches for r in batch.rollouts]
    assert [batch.fresh for batch in again] == [False, False]
    check_batches(llama, again)


def test_batches_need_not_be_read_again(llama, tokenizer, tmp_path):
    out, settings = tmp_path / "r", {"record": RECORD, "max_new_tokens": 5, "batch_size": 1}
    sample(llama, tokenizer, questions(2), 2, out, max_new_tokens=5, batch_size=1)
    last = questions(3)[1].question_id
    batches = list(sample_batches(llama, tokenizer, questions(3), 2, out, reread=lambda r: r[0].question_id == last, **settings))
    assert [batch.states is None for batch in batches] == [True, False, False]
    assert [batch.fresh for batch in batches] == [False, False, True]
    never = sample_batches(llama, tokenizer, questions(4), 2, out, reread=False, **settings)
    assert [batch.states is None for batch in never] == [True] * 3 + [False]


class Writer:
    recording = RECORD

    def __init__(self):
        self.held = {}

    def holds(self, rollouts):
        return all((r.question_id, r.extra["sample"]) in self.held for r in rollouts)

    def add(self, rollouts, states, offsets):
        for i, r in enumerate(rollouts):
            self.held[r.question_id, r.extra["sample"]] = (r, states[offsets[i] : offsets[i + 1]])


def test_sample_gives_its_states_to_a_writer_which_misses_none(llama, tokenizer, tmp_path, monkeypatch):
    writer, settings = Writer(), {"max_new_tokens": 12, "batch_size": 2}
    sample(llama, tokenizer, questions(2), 2, tmp_path / "r", **settings)
    rollouts = sample(llama, tokenizer, questions(5), 2, tmp_path / "r", features=writer, **settings)
    assert [r for r, _ in writer.held.values()] == rollouts
    for rollout, states in writer.held.values():
        expected = rows_of(llama, RECORD.layers, BOTH, rollout.prompt_ids, rollout.response_ids)
        torch.testing.assert_close(states, expected, atol=1e-5, rtol=1e-4)
    monkeypatch.setattr(llama, "forward", None)  # all is there: the model does not run
    assert sample(llama, tokenizer, questions(5), 2, tmp_path / "r", features=writer, **settings) == rollouts


def test_a_writer_that_fails_lets_go_of_the_file(llama, tokenizer, tmp_path):
    class Full(Writer):
        def add(self, rollouts, states, offsets):
            raise OSError(28, "disk full")

    with pytest.raises(OSError, match="disk full") as caught:
        sample(llama, tokenizer, questions(2), 2, tmp_path / "r", features=Full(), max_new_tokens=4, batch_size=1)
    assert caught.value.__traceback__ is not None
    assert len(sample(llama, tokenizer, questions(2), 2, tmp_path / "r", max_new_tokens=4, batch_size=1)) == 4
    gc.collect()
