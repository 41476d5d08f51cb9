import copy
import string

import pytest
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import CompileConfig, GenerationConfig, PreTrainedTokenizerFast

from swift_rm import StreamingReward, score
from swift_rm.scoring.score import score_encoded
from swift_rm.scoring.teacher_forced_states import packed_states
from swift_rm.tokens.encoding import encode
from swift_rm.tokens.region import find_region
from tests.generate_calls import MARKER, SAMPLED, EndAfter, Script, cut_at_end, hooks, prompt_batch
from tests.reward_models import make_rm
from tests.tiny_models import ARCHITECTURES, tiny_model

STYLES = {
    "greedy": {"do_sample": False},
    "sampled": SAMPLED,
    "top_p": {"do_sample": True, "temperature": 0.7, "top_p": 0.9, "top_k": 12},
    "several": {**SAMPLED, "num_return_sequences": 3},
    "static cache": {**SAMPLED, "cache_implementation": "static"},
    "no cache": {**SAMPLED, "use_cache": False},
    "chunked prefill": {**SAMPLED, "prefill_chunk_size": 2},
    "eos of the call": {**SAMPLED, "num_return_sequences": 3, "eos_token_id": [7, 11, 13, 17, 19]},
    "penalties": {**SAMPLED, "repetition_penalty": 1.3, "min_new_tokens": 4},
}


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(3)


def check(model, tokenizer, rm, stream, inputs, out, ends, tolerance=1e-4):
    width = inputs["input_ids"].shape[1]
    copies = len(out) // len(inputs["input_ids"])
    prompts = [
        row[mask.bool()].tolist()
        for row, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
        for _ in range(copies)
    ]
    responses = [cut_at_end(row, ends) for row in out[:, width:].tolist()]
    expected = score(model, tokenizer if rm.config.marker else None, rm, prompts, responses)
    assert stream.rewards.tolist() == pytest.approx(expected, abs=tolerance)
    return responses


@pytest.mark.parametrize("position", ["generating", "token"])
@pytest.mark.parametrize("style", STYLES)
def test_rewards_are_those_of_score(llama, tokenizer, style, position):
    rm = make_rm(position=position)
    inputs, settings = prompt_batch(llama, tokenizer), STYLES[style]
    with StreamingReward(llama, rm) as stream:
        out = llama.generate(**inputs, max_new_tokens=24, stopping_criteria=[stream], **settings)
    ends = settings.get("eos_token_id", [tokenizer.eos_token_id])
    responses = check(llama, tokenizer, rm, stream, inputs, out, ends)
    assert stream.partial_rewards.tolist() == stream.rewards.tolist()
    if style in ("several", "eos of the call"):
        assert len({len(response) for response in responses}) > 1, "rows should end at different steps"


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("position", ["generating", "token"])
def test_every_architecture(architecture, position):
    model = tiny_model(architecture)
    rm = make_rm(32, (1, 2), position=position)  # not the last: opt-projected is narrower there
    ids = torch.randint(3, 100, (2, 6), generator=torch.Generator().manual_seed(0))
    with StreamingReward(model, rm) as stream:
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=9, **SAMPLED, eos_token_id=2)
    responses = [cut_at_end(row, [2]) for row in out[:, 6:].tolist()]
    assert stream.rewards.tolist() == pytest.approx(score(model, None, rm, ids.tolist(), responses), abs=1e-4)


@pytest.mark.parametrize("position", ["generating", "token"])
def test_regions_after_a_marker_of_several_tokens(llama, tokenizer, position):
    def ids(text):
        return tokenizer(text, add_special_tokens=False)["input_ids"]

    texts = ["<think>27+15=42, </think><answer>42</answer><eos>", "<think>27<eos>", "<think>27+15=42, </think>", "42, </think>1"]
    scripts = [ids(text) for text in texts]
    assert len(ids(MARKER)) > 2
    rm, inputs = make_rm(position=position, region=f"after:{MARKER}"), prompt_batch(llama, tokenizer, (5, 3, 4, 2))
    with StreamingReward(llama, rm, tokenizer) as stream:
        out = llama.generate(
            **inputs, max_new_tokens=24, do_sample=False, logits_processor=[Script(5, *scripts)],
            stopping_criteria=[EndAfter(5, *map(len, scripts))],
        )  # fmt: skip
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    assert [row[: len(script)] for row, script in zip(out[:, 5:].tolist(), scripts, strict=True)] == scripts
    encoded = encode(llama, tokenizer, prompts, scripts, rm.config.region)
    assert stream.flags == [find_region(script, rm.config.region, tokenizer).flag for script in scripts]
    assert stream.flags == [None, "marker_missing", "region_empty", None]
    assert stream.rewards.tolist() == pytest.approx(score_encoded(llama, rm, encoded), abs=1e-4)


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of single letters: stop strings can be cut into its tokens."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", *string.ascii_lowercase])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Split(Regex("."), "isolated"), decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")


@pytest.mark.parametrize("pad", [0, 1])
@pytest.mark.parametrize("way", ["keyword", "config", "positional config", "model's config", "criterion"])
def test_rows_that_something_else_ends(llama, letters, monkeypatch, way, pad):
    rm, inputs = make_rm(position="token"), prompt_batch(llama, letters)
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    scripts = letters("ostopstop")["input_ids"], letters("sto")["input_ids"] * 2 + [1]
    settings = {"pad_token_id": pad, "eos_token_id": 1, "max_new_tokens": 9, "do_sample": False}
    call, args = {"logits_processor": [Script(5, *scripts)], "tokenizer": letters}, ()
    if way == "keyword":
        call.update(settings, stop_strings=["stop"])
    elif way == "config":
        call["generation_config"] = GenerationConfig(**settings, stop_strings=["stop"])
    elif way == "positional config":
        args = (inputs.pop("input_ids"), GenerationConfig(**settings, stop_strings=["stop"]))
    elif way == "model's config":
        monkeypatch.setattr(llama.generation_config, "stop_strings", ["stop"])
        call.update(settings)
    else:
        call.update(settings, stopping_criteria=[EndAfter(5, 5, 99)])
    with StreamingReward(llama, rm) as stream:
        out = llama.generate(*args, **inputs, **call)
    assert out[:, 5:].tolist() == [[*scripts[0][:5], pad, pad], scripts[1]]
    expected = score(llama, None, rm, prompts, [scripts[0][:5], scripts[1]])
    assert stream.rewards.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("position", ["generating", "token"])
def test_without_an_end_of_sequence_all_rows_go_to_the_length_limit(llama, tokenizer, position):
    rm, inputs = make_rm(position=position), prompt_batch(llama, tokenizer)
    scripts = [[tokenizer.eos_token_id, 20, 21, 22], [23, 24, 25, 26]]
    with StreamingReward(llama, rm) as stream:
        llama.generate(**inputs, eos_token_id=None, max_new_tokens=4, do_sample=False, logits_processor=[Script(5, *scripts)])
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    assert stream.rewards.tolist() == pytest.approx(score(llama, None, rm, prompts, scripts), abs=1e-4)


@pytest.mark.parametrize("gate", [True, False])
@pytest.mark.parametrize("position", ["generating", "token"])
def test_token_scores_are_those_of_the_states(llama, tokenizer, position, gate):
    rm, inputs = make_rm(position=position, gate=gate), prompt_batch(llama, tokenizer)
    scripts = [[20, 21, tokenizer.eos_token_id], [23, 24, 25, 26, 27]]
    with StreamingReward(llama, rm, tokens=True) as stream:
        llama.generate(**inputs, max_new_tokens=5, do_sample=False, logits_processor=[Script(5, *scripts)])
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    for prompt, script, scores in zip(prompts, scripts, stream.token_scores, strict=True):
        (packed,) = packed_states(llama, rm.config.layers, position, encode(llama, None, [prompt], [script], "response"))
        expected = rm.token_scores(packed.layers)
        assert scores.gate.tolist() == pytest.approx(expected.gate.tolist(), abs=1e-5)
        assert scores.reward.tolist() == pytest.approx(expected.reward.tolist(), abs=1e-4)
    with StreamingReward(llama, rm) as stream:
        llama.generate(**inputs, max_new_tokens=1)
        with pytest.raises(RuntimeError, match="kept only by StreamingReward"):
            _ = stream.token_scores


def test_partial_rewards_are_those_of_the_tokens_so_far(llama, tokenizer):
    rm, inputs, seen = make_rm(), prompt_batch(llama, tokenizer), []
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]

    def watch(input_ids, scores, **kwargs):
        seen.append((input_ids[:, 5:].tolist(), stream.partial_rewards.tolist()))
        return torch.zeros(len(input_ids), dtype=torch.bool)

    with StreamingReward(llama, rm) as stream:
        llama.generate(**inputs, max_new_tokens=6, **SAMPLED, eos_token_id=None, stopping_criteria=[watch, stream])
    assert [len(tokens[0]) for tokens, _ in seen] == [1, 2, 3, 4, 5, 6]
    for tokens, rewards in seen:
        assert rewards == pytest.approx(score(llama, None, rm, prompts, tokens), abs=1e-4)


@pytest.mark.parametrize("region", ["response", f"after:{MARKER}"])
def test_what_is_kept_of_a_row_does_not_depend_on_its_length(llama, tokenizer, region):
    rm, sizes = make_rm(region=region), []
    for length in (4, 40):
        with StreamingReward(llama, rm, tokenizer) as stream:
            llama.generate(**prompt_batch(llama, tokenizer), max_new_tokens=length, **SAMPLED, eos_token_id=None)
        sizes.append(stream.state_bytes)
    window = 8 * (len(MARKER) + 4)  # token ids in which the marker may be
    assert sizes == [12 if region == "response" else 24 + window] * 2, "three floats a mean"


def test_the_error_in_bfloat16_is_that_of_a_pass_over_the_text(tokenizer):
    torch.manual_seed(1)
    exact = tiny_model("llama", vocab_size=len(tokenizer))
    rough, rm, inputs = copy.deepcopy(exact).to(torch.bfloat16), make_rm(), prompt_batch(exact, tokenizer, (5, 3) * 16)
    with StreamingReward(rough, rm) as stream:
        out = rough.generate(**inputs, max_new_tokens=24, **SAMPLED, eos_token_id=None, pad_token_id=0)
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    truth, again = (torch.tensor(score(model, None, rm, prompts, out[:, 5:].tolist())) for model in (exact, rough))
    streamed, passed = (stream.rewards - truth).square().mean().sqrt(), (again - truth).square().mean().sqrt()
    assert 0 < streamed < 1.2 * passed
    assert 0 < (stream.rewards - again).abs().max() < 0.02 * truth.std()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_beams": 2}, "num_beams='2' is not supported: beam search"),
        ({"prompt_lookup_num_tokens": 3}, "prompt_lookup_num_tokens='3' is not supported: assisted decoding"),
        ({"assistant_model": "itself"}, "assistant_model=.* is not supported: assisted decoding"),
        ({"generation_config": GenerationConfig(num_beams=2)}, "beam search"),
        ({"custom_generate": lambda *args, **kwargs: None}, "custom_generate=.* its decoding loop is unknown"),
        ({"cache_implementation": "paged"}, "continuous batching"),
        ({"stop_strings": ["a"]}, "stop_strings need the tokenizer"),
    ],
)
def test_decoding_that_mixes_rows_is_refused(llama, tokenizer, settings, message):
    if settings.get("assistant_model"):
        settings = {"assistant_model": llama}
    with StreamingReward(llama, make_rm()) as stream:
        with pytest.raises(ValueError, match=message) as caught:
            llama.generate(**prompt_batch(llama, tokenizer), max_new_tokens=2, **settings)
        with pytest.raises(RuntimeError, match="no generate call was seen yet"):
            _ = stream.rewards
    assert "\n" not in str(caught.value)
    assert hooks(llama) == 0
    assert "generate" not in vars(llama)


@pytest.mark.parametrize("position", ["generating", "token"])
def test_the_model_is_left_as_it_was_found(llama, tokenizer, position):
    def broken(input_ids, scores, **kwargs):
        raise KeyboardInterrupt

    before = dict(vars(llama))
    with pytest.raises(KeyboardInterrupt), StreamingReward(llama, make_rm(position=position)) as stream:
        assert hooks(llama) > 0
        llama.generate(**prompt_batch(llama, tokenizer), max_new_tokens=4, stopping_criteria=[broken])
    assert hooks(llama) == 0
    assert dict(vars(llama)) == before
    with pytest.raises(RuntimeError, match="inside its with block"):
        llama.generate(**prompt_batch(llama, tokenizer), max_new_tokens=4, stopping_criteria=[stream])
    with stream, pytest.raises(RuntimeError, match="attached already"), stream:
        pass
    assert dict(vars(llama)) == before


@pytest.mark.parametrize("inner", ["generating", "token"])
@pytest.mark.parametrize("outer", ["generating", "token"])
def test_one_block_within_another_and_several_calls_in_one(llama, tokenizer, outer, inner):
    rms, inputs = (make_rm(position=outer), make_rm(layers=(1,), position=inner)), prompt_batch(llama, tokenizer)
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    with StreamingReward(llama, rms[0]) as first:
        with StreamingReward(llama, rms[1]) as second:
            for length in (7, 3):
                criteria = [EndAfter(5, 9, 2)]
                out = llama.generate(**inputs, max_new_tokens=length, **SAMPLED, eos_token_id=None, stopping_criteria=criteria)
                responses = [out[0, 5:].tolist(), out[1, 5:7].tolist()]
                for rm, stream in zip(rms, (first, second), strict=True):
                    assert stream.rewards.tolist() == pytest.approx(score(llama, None, rm, prompts, responses), abs=1e-4)
        out = llama.generate(**inputs, max_new_tokens=2, **SAMPLED, eos_token_id=None)
        expected = score(llama, None, rms[0], prompts, out[:, 5:].tolist())
        assert first.rewards.tolist() == pytest.approx(expected, abs=1e-4)
    assert hooks(llama) == 0


@pytest.mark.parametrize("position", ["generating", "token"])
def test_going_on_from_the_cache_that_a_call_returned(llama, tokenizer, position):
    rm = make_rm(position=position)
    ids = torch.tensor([[20, 21, 22]])
    with StreamingReward(llama, rm) as stream:
        first = llama.generate(ids, max_new_tokens=4, **SAMPLED, eos_token_id=None, return_dict_in_generate=True)
        assert first.past_key_values.get_seq_length() == 6
        out = llama.generate(
            first.sequences, past_key_values=first.past_key_values, max_new_tokens=3, **SAMPLED, eos_token_id=None
        )
    expected = score(llama, None, rm, [first.sequences[0].tolist()], [out[0, 7:].tolist()])
    assert stream.rewards.tolist() == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("case", ["static window", "static window never full", "positions without a cache", "embeddings"])
def test_the_last_step_of_padded_prompts(tokenizer, case):
    model = tiny_model("gpt2" if "positions" in case else "mistral", **({"sliding_window": 32} if "never" in case else {}))
    rm, inputs = make_rm(32, (1, 3), position="token"), prompt_batch(model, tokenizer)
    settings = {"use_cache": False} if "positions" in case else {"cache_implementation": "static"} if "static" in case else {}
    asked = dict(inputs)
    if case == "embeddings":
        asked["inputs_embeds"] = model.get_input_embeddings()(asked.pop("input_ids"))
    with StreamingReward(model, rm) as stream:
        out = model.generate(**asked, max_new_tokens=6, **SAMPLED, eos_token_id=None, pad_token_id=0, **settings)
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    expected = score(model, None, rm, prompts, out[:, -6:].tolist())
    assert stream.rewards.tolist() == pytest.approx(expected, abs=1e-4)


def test_embeddings_that_a_full_static_cache_cannot_hold_are_refused():
    model = tiny_model("llama")
    embeddings = model.get_input_embeddings()(torch.tensor([[5, 6, 7]])).detach()
    settings = {"inputs_embeds": embeddings, "max_new_tokens": 3, "eos_token_id": None, "cache_implementation": "static"}
    with StreamingReward(model, make_rm(32, (1, 3))) as stream:
        model.generate(**settings, **SAMPLED)
    assert stream.rewards.isfinite().all()
    with (
        StreamingReward(model, make_rm(32, (1, 3), position="token")),
        pytest.raises(ValueError, match="the static cache is full, and a prompt given as embeddings"),
    ):
        model.generate(**settings, **SAMPLED)


@pytest.mark.skipif(torch.__version__.startswith("2.6."), reason="transformers' models do not compile with torch 2.6")
@pytest.mark.parametrize(("part", "backend"), [("whole", "aot_eager"), ("decoder", "eager")])
def test_a_model_compiled_inside_the_block(tokenizer, backend, part):
    torch._dynamo.reset()
    model, plain = tiny_model("llama", num_hidden_layers=1), tiny_model("llama", num_hidden_layers=1)
    rm, inputs = make_rm(32, (0, 1), position="token"), prompt_batch(model, tokenizer)
    with StreamingReward(model, rm) as stream:
        if part == "whole":
            model.compile(backend=backend)
        else:
            model.model.forward = torch.compile(model.model.forward, backend=backend)
        out = model.generate(**inputs, max_new_tokens=2, do_sample=False, eos_token_id=None, pad_token_id=0)
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    assert torch._dynamo.utils.counters["frames"]["ok"] > 0
    assert stream.rewards.tolist() == pytest.approx(score(plain, None, rm, prompts, out[:, 5:].tolist()), abs=1e-4)


@pytest.mark.parametrize("position", ["generating", "token"])
def test_a_forward_call_that_the_hooks_do_not_see_is_an_error(llama, tokenizer, position):
    def lose_the_hooks(input_ids, scores):
        if input_ids.shape[1] == 7:
            stream._running.tap._detach()
        return scores

    stream, unseen = StreamingReward(llama, make_rm(position=position)), "a forward call that the hooks did not see"
    with pytest.raises(RuntimeError, match=unseen), stream:
        llama.generate(**prompt_batch(llama, tokenizer), max_new_tokens=6, eos_token_id=None, logits_processor=[lose_the_hooks])
    everywhere = CompileConfig(backend="eager", mode=None)
    everywhere._compile_all_devices = True  # as on an accelerator
    with pytest.raises(RuntimeError, match="compiles its steps"), StreamingReward(llama, make_rm(position=position)):
        llama.generate(
            **prompt_batch(llama, tokenizer), max_new_tokens=3, cache_implementation="static", compile_config=everywhere
        )
    del llama._compiled_call
