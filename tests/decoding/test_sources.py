"""Output logits and log-probabilities instead of hidden states: a local model gives the same rewards whichever way it is read."""

import copy
import math

import pytest
import torch

from swift_rm import BestOfNDecoding, StreamingReward, SwiftConfig, SwiftRewardModel, best_of_n, score
from swift_rm.decoding.pruning import Halving, get_prune
from swift_rm.features.read_states import extract_features
from swift_rm.reward.identity import describe_base
from swift_rm.reward.logprob_features import LogprobFeatures, feature_names, response_features
from swift_rm.reward.logprobs import logprobs_of
from swift_rm.scoring.score import score_encoded, score_rollouts
from swift_rm.scoring.teacher_forced_states import drop_end_tokens, packed_features
from swift_rm.scoring.token_scoring import score_tokens
from swift_rm.tokens.encoding import encode
from tests.decoding.prompt_batches import LENGTHS, OFTEN_ENDS, IdTokenizer, prompts_of, read_prompts
from tests.generate_calls import END, MARKER, EndAfter, Script, cut_at_end, prompt_batch
from tests.reward_models import LOGPROB_CONFIGS, make_reader, make_rm
from tests.tiny_models import HIDDEN, LAYERS, VOCAB, tiny_model


@pytest.fixture(scope="module")
def model():
    return tiny_model("llama", vocab_size=VOCAB)


def logits_by_hand(model, prompt, response):
    """The logits that produced each token of a response, ``[R, V]``."""
    with torch.no_grad():
        return model(torch.tensor([[*prompt, *response]])).logits[0, len(prompt) - 1 : -1]


def features_by_hand(model, config, prompt, response):
    logits = logits_by_hand(model, prompt, response)
    if config.source == "logits":
        return logits
    read = len(response) - (response[-1] == END)
    found = logprobs_of(logits[:read], torch.tensor(response[:read]), config.top_logprobs)
    return response_features(*found, torch.tensor([0, read]))


PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13]]
RESPONSES = [[20, 21, END], [22], [23, 24, 25, 26, 27]]


def test_two_logits_by_hand():
    model = tiny_model("llama", vocab_size=2, bos_token_id=0, eos_token_id=None, pad_token_id=0)
    rm = SwiftRewardModel(SwiftConfig.of_logits(2, gate=False))
    with torch.no_grad():
        rm.head.weight.copy_(torch.tensor([[1.0, -1.0]]))  # the reward of a token is the log-odds of token 0
        (first, second) = logits_by_hand(model, [1, 0], [1, 0])
    expected = float(first[0] - first[1] + second[0] - second[1]) / 2
    assert score(model, None, rm, [[1, 0]], [[1, 0]]) == pytest.approx([expected], abs=1e-6)
    with StreamingReward(model, rm) as stream:
        model.generate(
            torch.tensor([[1, 0]]), attention_mask=torch.ones(1, 2), max_new_tokens=2, do_sample=False, eos_token_id=None,
            logits_processor=[Script(2, [1, 0])],
        )  # fmt: skip
    assert stream.rewards.tolist() == pytest.approx([expected], abs=1e-6)
    rm = SwiftRewardModel(SwiftConfig.of_top_logprobs(0, gate=False))
    with torch.no_grad():
        rm.head.weight[0, feature_names(0).index("logprob")] = 1.0
    odds = [float(first[1] - first[0]), float(second[0] - second[1])]
    mean = sum(-math.log1p(math.exp(-one)) for one in odds) / 2
    assert score(model, None, rm, [[1, 0]], [[1, 0]]) == pytest.approx([mean], abs=1e-6)


@pytest.mark.parametrize("config", LOGPROB_CONFIGS.values(), ids=LOGPROB_CONFIGS)
def test_a_pass_over_text_makes_the_features_made_by_hand(model, config, make_rollout, monkeypatch):
    monkeypatch.setattr(
        "swift_rm.scoring.teacher_forced_states.LOGITS_BYTES", 4 * VOCAB * 9
    )  # one response of the longest at a time
    kinds = zip(PROMPTS, RESPONSES, strict=True)
    rollouts = [make_rollout(f"q{i}", i % 2, prompt_ids=p, response_ids=r) for i, (p, r) in enumerate(kinds)]
    features = extract_features(model, None, rollouts, config)
    expected = [features_by_hand(model, config, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert features.offsets.tolist() == [0, *torch.tensor([len(one) for one in expected]).cumsum(0).tolist()]
    assert features.states.dtype == torch.float32
    torch.testing.assert_close(features.states, torch.cat(expected), atol=1e-5, rtol=1e-5)
    rm = make_reader(config)
    by_hand = [rm(one, torch.tensor([0, len(one)])).item() for one in expected]
    assert score(model, None, rm, PROMPTS, RESPONSES) == pytest.approx(by_hand, abs=1e-4)
    assert [one.reward for one in score_rollouts(model, None, rm, rollouts)] == pytest.approx(by_hand, abs=1e-4)
    tokens = score_tokens(model, None, rm, PROMPTS, RESPONSES)
    assert [len(one.read) for one in tokens] == [len(one) for one in expected]
    assert [one.response_reward for one in tokens] == pytest.approx(by_hand, abs=1e-4)
    with torch.no_grad():
        assert tokens[2].reward == pytest.approx(rm.token_scores(expected[2]).reward.tolist(), abs=1e-4)


def test_log_probabilities_are_made_of_some_tokens_at_a_time(model, monkeypatch):
    """Those of a long response at once would be copies of all of its logits."""
    monkeypatch.setattr("swift_rm.scoring.teacher_forced_states.TOKENS", 2)
    sizes = []
    monkeypatch.setattr(
        "swift_rm.scoring.teacher_forced_states.logprobs_of",
        lambda logits, *rest: sizes.append(len(logits)) or logprobs_of(logits, *rest),
    )
    config = LOGPROB_CONFIGS["top 3"]
    encoded = drop_end_tokens(model, config.source, encode(model, None, [*PROMPTS, [5]], [*RESPONSES, [END]], "response"))
    (packed,) = packed_features(model, config, encoded)
    assert packed.offsets.tolist() == [0, 5, 7, 8, 8] and sizes == [2, 2, 2, 2]
    torch.testing.assert_close(packed.layers[0][5:7], features_by_hand(model, config, PROMPTS[0], RESPONSES[0]))


def test_logits_come_in_parts_that_fit_and_of_the_responses_only(model, monkeypatch):
    rows = []
    hook = model.register_forward_hook(lambda module, args, output: rows.append(tuple(output.logits.shape[:2])))
    encoded = encode(model, None, [[5] * 30] * 6, [[6] * length for length in (3, 4, 5, 6, 7, 8)], "response")
    for limit in (1, 3 * 4 * VOCAB * 9, 1 << 30):
        monkeypatch.setattr("swift_rm.scoring.teacher_forced_states.LOGITS_BYTES", limit)
        list(packed_features(model, LOGPROB_CONFIGS["logits"], encoded))
    hook.remove()
    assert rows == [*[(1, length + 1) for length in (8, 7, 6, 5, 4, 3)], (3, 9), (3, 6), (6, 9)]


@pytest.mark.parametrize("config", LOGPROB_CONFIGS.values(), ids=LOGPROB_CONFIGS)
@pytest.mark.parametrize(
    "settings", [{}, {"repetition_penalty": 1.3, "temperature": 0.5, "top_k": 5}], ids=["plain", "penalties"]
)
def test_streaming_equals_score_on_the_same_tokens(model, config, settings):
    rm, inputs = make_reader(config), prompt_batch(model, IdTokenizer(), LENGTHS)
    with StreamingReward(model, rm, tokens=True) as stream:
        for seed in range(3):
            torch.manual_seed(seed)
            out = model.generate(
                **inputs, do_sample=True, max_new_tokens=12, num_return_sequences=4, pad_token_id=0, eos_token_id=OFTEN_ENDS,
                stopping_criteria=[EndAfter(7, *[12, 5] * 6)], **{"top_k": 0, **settings},
            )  # fmt: skip
            responses = [cut_at_end(row[: 5 if i % 2 else 12], OFTEN_ENDS) for i, row in enumerate(out[:, 7:].tolist())]
            prompts = [prompt for prompt in prompts_of(model) for _ in range(4)]
            spoken = [i for i, response in enumerate(responses) if config.source == "logits" or response != [END]]
            expected = score(model, None, rm, [prompts[i] for i in spoken], [responses[i] for i in spoken])
            assert stream.rewards[spoken].tolist() == pytest.approx(expected, abs=2e-4)
            assert len({len(one) for one in responses}) > 3
    for i in spoken:
        read = len(responses[i]) - (config.source == "top_logprobs" and responses[i][-1] == END)
        assert len(stream.token_scores[i].reward) == read


def test_a_response_of_its_end_token_alone_has_no_reward(model, make_rollout):
    rm = make_reader(LOGPROB_CONFIGS["top 3"])
    scripts = [[END], [20, END], [20, 21, 22]]
    with StreamingReward(model, rm) as stream:
        model.generate(
            torch.tensor([[5, 6]] * 3), max_new_tokens=3, do_sample=False, logits_processor=[Script(2, *scripts)], pad_token_id=0
        )
    assert stream.flags == ["region_empty", None, None]
    expected = score_encoded(model, rm, encode(model, None, [[5, 6]] * 3, scripts, "response"))
    assert math.isnan(expected[0])
    assert stream.rewards.tolist() == pytest.approx(expected, abs=1e-4, nan_ok=True)
    assert score(model, None, rm, [[5, 6]] * 2, [[20], [20, 21, 22]]) == pytest.approx(expected[1:], abs=1e-4)
    with pytest.raises(ValueError, match="response 0 has no token before its end token, which is not read"):
        score(model, None, rm, [[5, 6]], [[END]])
    tokens = score_tokens(model, None, rm, [[5, 6]], [[END]])[0]
    assert (tokens.flag, list(tokens.read), tokens.reward) == ("region_empty", [], [])
    with pytest.raises(ValueError, match=r"rollout 0 \(question 'q'\) has no token before its end token"):
        extract_features(model, None, [make_rollout(response_ids=[END])], rm.config)


@pytest.mark.parametrize("region", ["response", f"after:{MARKER}"])
def test_logits_of_a_region_after_a_marker(llama, tokenizer, region):
    scripts = [
        tokenizer(text, add_special_tokens=False)["input_ids"]
        for text in ("<think>27+15=42, </think><answer>42</answer><eos>", "<think>27<eos>")
    ]
    rm, inputs = make_reader(SwiftConfig.of_logits(len(tokenizer)), region=region), prompt_batch(llama, tokenizer)
    with StreamingReward(llama, rm, tokenizer) as stream:
        llama.generate(
            **inputs, max_new_tokens=24, do_sample=False, logits_processor=[Script(5, *scripts)],
            stopping_criteria=[EndAfter(5, *map(len, scripts))],
        )  # fmt: skip
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    assert stream.rewards.tolist() == pytest.approx(score(llama, tokenizer, rm, prompts, scripts), abs=1e-4)
    assert stream.flags == [None, None if region == "response" else "marker_missing"]


@pytest.mark.parametrize("config", LOGPROB_CONFIGS.values(), ids=LOGPROB_CONFIGS)
def test_rows_that_leave_and_are_repeated_take_their_features_along(model, config):
    rm = make_reader(config)
    made = read_prompts(model, rm)
    for asked in ([0, 1, 2], [2, 2, 0, 1, 1, 0, 2, 2]):
        torch.manual_seed(7)
        decoding = made.decode(asked)
        assert len({len(one.token_ids) for one in decoding.candidates}) > 1
        spoken = [one for one in decoding.candidates if config.source == "logits" or one.token_ids != [END]]
        prompts = prompts_of(model)
        expected = score(model, None, rm, [prompts[one.prompt] for one in spoken], [one.token_ids for one in spoken])
        assert [one.reward for one in spoken] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("config", LOGPROB_CONFIGS.values(), ids=LOGPROB_CONFIGS)
def test_best_of_n_with_pruning_gives_the_rewards_of_score(llama, tokenizer, config):
    config = SwiftConfig.of_logits(len(tokenizer)) if config.source == "logits" else config
    rm, guide = make_reader(config), make_reader(config)
    prompts = ["12+34", "56+07"]
    found = best_of_n(
        llama, tokenizer, rm, prompts, 8, "best", Halving(min_tokens=3, guide=guide), max_new_tokens=12, repetition_penalty=1.2
    )
    candidates = [(prompt, one) for prompt, result in zip(prompts, found, strict=True) for one in result.candidates]
    assert {one.finish_reason for _, one in candidates} > {"pruned"}
    scored = [(prompt, one) for prompt, one in candidates if one.reward == one.reward]
    expected = score(llama, tokenizer, rm, [prompt for prompt, _ in scored], [one.token_ids for _, one in scored])
    assert [one.reward for _, one in scored] == pytest.approx(expected, abs=2e-4)


class OnlyEnd:
    """A logits processor with which these rows say their end token at once."""

    def __init__(self, rows):
        self.rows = rows

    def __call__(self, ids, scores):
        scores = scores.clone()
        scores[self.rows] = -1e9
        scores[self.rows, END] = 0
        return scores


def test_best_of_n_says_why_a_candidate_has_no_reward(llama, tokenizer):
    rm = make_reader(LOGPROB_CONFIGS["top 3"])
    (found,) = best_of_n(llama, tokenizer, rm, ["12+34"], 3, "best", max_new_tokens=9, logits_processor=[OnlyEnd([1])])
    said = [(one.token_ids == [END], one.complete, one.flag) for one in found.candidates]
    assert said == [(False, True, None), (False, True, None), (True, False, "region_empty")]
    with pytest.raises(ValueError, match=r"none of the 2 candidates .* some said nothing but their end token, which is not read"):
        best_of_n(llama, tokenizer, rm, ["12+34"], 2, "best", logits_processor=[OnlyEnd([0, 1])])
    with pytest.raises(ValueError, match=r"none of the 2 candidates of prompt 0 .* nothing but their end token"):
        llama.generate(
            torch.tensor([[5, 6]]), do_sample=True, max_new_tokens=9, pad_token_id=0, logits_processor=[OnlyEnd([0, 1])],
            custom_generate=BestOfNDecoding(rm, 2),
        )  # fmt: skip


@pytest.mark.parametrize("top", [0, 3])
def test_what_is_kept_of_a_row_does_not_depend_on_its_length(model, top):
    floats = LogprobFeatures(top)
    floats.begin(1)
    for length in (3, 20):
        with StreamingReward(model, make_reader(SwiftConfig.of_top_logprobs(top))) as stream:
            model.generate(torch.tensor([[5, 6]] * 2), max_new_tokens=length, do_sample=True, eos_token_id=None)
        assert stream.state_bytes == 12 + 4 * floats._kept.shape[1] == {0: 36, 3: 72}[top]
    with StreamingReward(model, make_reader(LOGPROB_CONFIGS["logits"])) as stream:
        model.generate(torch.tensor([[5, 6]] * 2), max_new_tokens=5, do_sample=True)
    assert stream.state_bytes == 12


def test_a_head_of_one_source_meets_only_what_it_reads(model):
    other = tiny_model("llama", vocab_size=VOCAB + 3)
    logits = describe_base(LOGPROB_CONFIGS["logits"], model, None)
    assert (logits.layers, logits.base_layers, logits.hidden_size) == ((LAYERS,), LAYERS, VOCAB)
    assert describe_base(LOGPROB_CONFIGS["top 3"], model, None).layers == (LAYERS,)
    with pytest.raises(
        ValueError, match=rf"expected {VOCAB} output logits \(.* trained on LlamaForCausalLM\), but .* has {VOCAB + 3}"
    ):
        StreamingReward(other, make_reader(logits))
    describe_base(LOGPROB_CONFIGS["top 3"], other, None)  # has no width of its own
    deeper = tiny_model("llama", num_hidden_layers=4)
    with pytest.raises(ValueError, match=r"with 3 layers, but .* has 4"):
        describe_base(logits, deeper, None)
    hidden = make_rm(HIDDEN, (LAYERS,))
    for rm in (make_reader(LOGPROB_CONFIGS["logits"]), make_reader(LOGPROB_CONFIGS["top 3"])):
        with pytest.raises(ValueError, match=f"the guide .* its source is 'hidden', the reward model's {rm.config.source!r}"):
            get_prune(Halving(guide=hidden), rm)
    of_records, of_passes = (
        make_reader(LOGPROB_CONFIGS["top 3"]),
        make_reader(describe_base(LOGPROB_CONFIGS["top 3"], model, None)),
    )
    assert get_prune(Halving(guide=of_records), of_passes) is not None, "both read after the last layer"
    with pytest.raises(ValueError, match="its top_logprobs is 0, the reward model's 3"):
        get_prune(Halving(guide=make_reader(LOGPROB_CONFIGS["chosen"])), make_reader(LOGPROB_CONFIGS["top 3"]))


@pytest.mark.parametrize(("name", "where"), [("logits", "its output logits"), ("top 3", "the features of its log-probabilities")])
def test_logits_that_are_not_finite_are_said_to_be(model, name, where, make_rollout):
    broken, rm = copy.deepcopy(model), make_reader(LOGPROB_CONFIGS[name])
    with torch.no_grad():
        broken.lm_head.weight[7] = torch.nan
    with pytest.raises(ValueError, match=f"response 0 has NaN or Inf in {where}"):
        score(broken, None, rm, [[5, 6]], [[8, 9]])
    with pytest.raises(ValueError, match=rf"response 0 \(question 'q'\) has NaN or Inf in {where}"):
        extract_features(broken, None, [make_rollout()], rm.config)
    with pytest.raises(
        ValueError, match=r"more than max_bytes = 0.0 GiB: read (hidden states.*--online|fewer alternatives \(now 3)"
    ):
        extract_features(model, None, [make_rollout()], rm.config, max_bytes=10)
