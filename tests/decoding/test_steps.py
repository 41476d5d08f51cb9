"""The region of step boundaries, ``steps:<marker>``, wherever rewards are made."""

import pytest
import torch

from swift_rm import StreamingReward, best_of_n, score
from swift_rm.report.token_view_data import view_candidate
from swift_rm.scoring.score import score_encoded
from swift_rm.scoring.teacher_forced_states import packed_states
from swift_rm.scoring.token_scoring import score_tokens
from swift_rm.tokens.encoding import Encoded, encode
from swift_rm.tokens.region import Region, find_region
from tests.generate_calls import EndAfter, Script, prompt_batch
from tests.reward_models import make_rm
from tests.tiny_models import tiny_model

MARKER, SPANNING = ", ", "=4"  # one token, and two
TEXTS = (
    "<think>27+15=42, so 42+1=43, </think><answer>43</answer><eos>",  # several
    "27+15<eos>",  # none
    ", =42<eos>",  # at the first token
    "<think>27+15=4, ",  # in the last token
)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


@torch.no_grad()
def by_the_formula(model, rm, tokenizer, prompt, response):
    """The gated mean over the states of the tokens at which the text so far holds another marker than before."""
    marker = rm.config.marker
    counts = [tokenizer.decode(response[:end]).count(marker) for end in range(len(response) + 1)]
    read = [i for i in range(len(response)) if counts[i + 1] > counts[i]] or list(range(len(response)))
    hidden = model(torch.tensor([prompt + response]), output_hidden_states=True).hidden_states
    rows = torch.tensor(read) + (len(prompt) - (rm.config.position == "generating"))
    h = torch.cat([hidden[layer][0, rows] for layer in rm.config.layers], dim=-1)
    gates, rewards = (h @ rm.head.weight.T + rm.head.bias).unbind(-1)
    return float((gates.sigmoid() * rewards).sum() / gates.sigmoid().sum())


@pytest.mark.parametrize("position", ["generating", "token"])
@pytest.mark.parametrize("marker", [MARKER, SPANNING])
def test_score_and_streaming_read_the_tokens_that_end_a_step(llama, tokenizer, position, marker):
    scripts = [ids(tokenizer, text) for text in TEXTS]
    rm, inputs = make_rm(position=position, region=f"steps:{marker}"), prompt_batch(llama, tokenizer, (5, 3, 4, 2))
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    expected = [by_the_formula(llama, rm, tokenizer, p, r) for p, r in zip(prompts, scripts, strict=True)]
    assert score(llama, tokenizer, rm, prompts, scripts) == pytest.approx(expected, abs=1e-4)
    with StreamingReward(llama, rm, tokenizer) as stream:
        llama.generate(
            **inputs, max_new_tokens=30, do_sample=False, logits_processor=[Script(5, *scripts)],
            stopping_criteria=[EndAfter(5, *map(len, scripts))],
        )  # fmt: skip
    assert stream.rewards.tolist() == pytest.approx(expected, abs=1e-4)
    assert stream.flags == [find_region(script, rm.config.region, tokenizer).flag for script in scripts]
    assert stream.flags == [None, "marker_missing", None, None]


@pytest.mark.parametrize("position", ["generating", "token"])
def test_partial_rewards_are_those_of_the_steps_so_far(llama, tokenizer, position):
    rm, inputs, seen = make_rm(position=position, region=f"steps:{SPANNING}"), prompt_batch(llama, tokenizer, (4,)), []
    script = ids(tokenizer, "1=4, 3=44=4")

    def watch(input_ids, scores, **kwargs):
        seen.append((input_ids[:, 4:].tolist(), stream.partial_rewards.tolist()))
        return torch.zeros(len(input_ids), dtype=torch.bool)

    with StreamingReward(llama, rm, tokenizer) as stream:
        llama.generate(
            **inputs, max_new_tokens=len(script), do_sample=False, eos_token_id=None,
            logits_processor=[Script(4, script)], stopping_criteria=[watch, stream],
        )  # fmt: skip
    late = position == "token"  # the state of the latest token is not there yet
    for tokens, rewards in seen[late:]:
        so_far = tokens[0][: len(tokens[0]) - late]
        assert rewards == pytest.approx(score(llama, tokenizer, rm, inputs["input_ids"].tolist(), [so_far]), abs=1e-4)


@pytest.mark.parametrize("position", ["generating", "token"])
def test_best_of_n_reads_steps(llama, tokenizer, position):
    rm = make_rm(position=position, region="steps:1")
    (result,) = best_of_n(llama, tokenizer, rm, ["27+15"], n=12, max_new_tokens=16, prune="halving")
    whole = [one for one in result.candidates if one.complete]
    assert {one.flag for one in whole} >= {None}
    expected = score(llama, tokenizer, rm, ["27+15"] * len(whole), [one.token_ids for one in whole])
    assert [one.reward for one in whole] == pytest.approx(expected, abs=1e-4)


def test_only_steps_have_numbers_and_colours(llama, tokenizer):
    rm, prompt, response = make_rm(region=f"steps:{MARKER}"), [20, 21], ids(tokenizer, TEXTS[0])
    (one,) = score_tokens(llama, tokenizer, rm, [prompt], [response])
    (whole,) = score_tokens(llama, tokenizer, make_rm(), [prompt], [response])
    steps = [i for i, token in enumerate(response) if tokenizer.decode([token]) == MARKER]
    assert (list(one.read), len(steps), one.flag) == (steps, 2, None)
    assert one.reward == pytest.approx([whole.reward[i] for i in steps], abs=1e-5)
    assert one.gate == pytest.approx([whole.gate[i] for i in steps], abs=1e-5)
    assert one.response_reward == pytest.approx(score(llama, tokenizer, rm, [prompt], [response])[0], abs=1e-5)
    view = view_candidate(tokenizer, prompt, one, 0.5, {})
    assert "".join(token.text for token in view.tokens) == TEXTS[0]
    assert [i for i, token in enumerate(view.tokens) if token.gate is not None] == steps
    assert [view.tokens[i].reward for i in steps] == one.reward


def test_the_tokenizer_is_needed(llama):
    with pytest.raises(ValueError, match="region 'steps:, ' needs the tokenizer"):
        score(llama, None, make_rm(region="steps:, "), [[1]], [[2]])


def test_rows_of_both_positions_in_one_pass():
    model = tiny_model("llama")
    responses = [[5, 6, 7], [8]]
    both = [Encoded([9, 10], response, Region(range(len(response) + 1))) for response in responses]
    parts = {
        position: [
            packed_states(model, (1, 3), position, [one]) for one in encode(model, None, [[9, 10]] * 2, responses, "response")
        ]
        for position in ("generating", "token")
    }
    (packed,) = packed_states(model, (1, 3), "generating", both)
    assert packed.offsets.tolist() == [0, 4, 6]
    for row, index in enumerate(packed.indices):
        here = slice(packed.offsets[row], packed.offsets[row + 1])
        (before,), (at,) = (list(parts[position][index]) for position in ("generating", "token"))
        for layer in range(2):
            assert torch.allclose(packed.layers[layer][here][:-1], before.layers[layer], atol=1e-6)
            assert torch.allclose(packed.layers[layer][here][1:], at.layers[layer], atol=1e-6)
    with pytest.raises(ValueError, match="there is no state at token 3 of 3 of a response"):
        list(packed_states(model, (1,), "token", both[:1]))


def test_steps_of_an_ensemble_of_encoded_responses(llama, tokenizer):
    """The region and the heads do not know of each other."""
    rm = make_rm(region=f"steps:{MARKER}", heads=3, pessimism=0.5)
    encoded = encode(llama, tokenizer, [[20, 21]], [ids(tokenizer, TEXTS[0])], rm.config.region)
    with StreamingReward(llama, rm, tokenizer) as stream:
        script = encoded[0].response_ids
        llama.generate(
            torch.tensor([[20, 21]]), max_new_tokens=len(script), do_sample=False, logits_processor=[Script(2, script)]
        )
    assert stream.rewards.tolist() == pytest.approx(score_encoded(llama, rm, encoded), abs=1e-4)
