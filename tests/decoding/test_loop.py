import math
from itertools import pairwise

import pytest
import torch
from transformers import DynamicCache, LogitsProcessorList, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import DynamicLayer

from swift_rm import score
from swift_rm.decoding.decoding_limits import DecodingLimits
from tests.decoding.prompt_batches import LENGTHS, OFTEN_ENDS, WIDTH, IdTokenizer, prompts_of, read_prompts
from tests.generate_calls import hooks, prompt_batch
from tests.reward_models import make_rm
from tests.tiny_models import ARCHITECTURES, older_than, tiny_model

STATIC = ("llama", "mistral", "gemma3_text", "gpt_oss", "lfm2", "jamba", "qwen3_next")


def check_rewards(model, rm, candidates):
    prompts = prompts_of(model)
    expected = score(model, None, rm, [prompts[one.prompt] for one in candidates], [one.token_ids for one in candidates])
    assert [one.reward for one in candidates] == pytest.approx(expected, abs=1e-4)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.mark.parametrize("architecture", [one for one in ARCHITECTURES if one != "openai-gpt"])
def test_sampled_candidates_have_the_rewards_that_score_gives(architecture):
    model = tiny_model(architecture)
    for position in ("generating", "token"):
        rm = make_rm(32, (1, 2), position=position)
        decoding = read_prompts(model, rm, use_cache=True).decode([0, 1, 2] * 4)
        assert [one.prompt for one in decoding.candidates] == [0, 1, 2] * 4
        assert len({len(one.token_ids) for one in decoding.candidates}) > 3, "rows should leave at different steps"
        assert decoding.tokens == sum(len(one.token_ids) for one in decoding.candidates)
        for one in decoding.candidates:
            ended = one.token_ids[-1] in OFTEN_ENDS
            assert not any(token in OFTEN_ENDS for token in one.token_ids[:-1])
            assert one.finish_reason == ("stop" if ended else "length")
            assert ended or len(one.token_ids) == 12
        check_rewards(model, rm, decoding.candidates)


@pytest.mark.parametrize("position", ["generating", "token"])
@pytest.mark.parametrize("architecture", STATIC)
def test_static_caches_and_windows_shorter_than_the_text(architecture, position):
    if architecture in ("lfm2", "jamba", "qwen3_next") and older_than("5.14"):
        pytest.skip("transformers' own generate makes no static cache for models with linear attention before 5.14")
    model, rm = tiny_model(architecture), make_rm(32, (1, 2), position=position)
    decoding = read_prompts(model, rm, cache_implementation="static").decode(
        [0, 1, 2] * 8
    )  # so many that one is long, whatever the seed
    assert any(one.finish_reason == "length" for one in decoding.candidates), "the cache should be filled"
    check_rewards(model, rm, decoding.candidates)


@pytest.mark.parametrize("settings", [{"prefill_chunk_size": 2}, {"repetition_penalty": 1.5}])
def test_greedy_candidates_do_not_depend_on_their_company(llama, settings):
    settings = {"do_sample": False, **settings}
    company = read_prompts(llama, make_rm(), **settings).decode([2, 0, 1, 0])
    for one in company.candidates:
        (alone,) = read_prompts(llama, make_rm(), **settings).decode([one.prompt]).candidates
        assert (one.token_ids, one.finish_reason) == (alone.token_ids, alone.finish_reason)
        assert one.reward == pytest.approx(alone.reward, abs=1e-5)
    check_rewards(llama, make_rm(), company.candidates)
    assert [len(one.token_ids) for one in company.candidates].count(12) < 4, "some row should leave before the others"


def p_value(counts, chances):
    """Return Pearson's chi-square test's p of counts, those of rare events taken together."""
    expected = chances * counts.sum()
    rare = expected < 5
    parts = [torch.cat([part[~rare], part[rare].sum()[None]]) for part in (counts.double(), expected.double())]
    statistic = ((parts[0] - parts[1]).square() / parts[1].clamp_min(1e-9)).sum()
    return float(torch.special.gammaincc(torch.tensor((len(parts[0]) - 1) / 2, dtype=torch.float64), statistic / 2))


def test_samples_are_distributed_as_those_of_generate():
    model = tiny_model("llama", vocab_size=12)
    with torch.no_grad():
        model.lm_head.weight.mul_(40)  # a distribution far from uniform
    ends, prompt = [2, 3], torch.tensor([[5, 6, 7], [0, 8, 9]])
    inputs = {"input_ids": prompt, "attention_mask": (prompt != 0).long()}
    warp = LogitsProcessorList([TemperatureLogitsWarper(1.7), TopKLogitsWarper(9), TopPLogitsWarper(0.95)])
    settings = {"temperature": 1.7, "top_k": 9, "top_p": 0.95, "max_new_tokens": 2, "eos_token_id": ends}
    decoded = read_prompts(model, make_rm(), inputs, **settings).decode([0, 1] * 3000).candidates

    def chances(tokens, warped):
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[:, -1]
        return torch.softmax(warp(None, logits) if warped else logits / 1.7, dim=-1)[0]

    for number, tokens in enumerate(([5, 6, 7], [8, 9])):
        for warped in (True, False):
            first = chances(tokens, warped)
            pairs = torch.stack([first[i] * chances([*tokens, i], warped) for i in range(12)])  # [first token, second]
            for end in ends:
                pairs[end] = torch.zeros(12).index_fill(0, torch.tensor(0), float(first[end]))
            counts = torch.zeros(12, 12)
            for one in decoded:
                if one.prompt == number:
                    counts[one.token_ids[0], one.token_ids[1] if len(one.token_ids) > 1 else 0] += 1
            p = p_value(counts.flatten(), pairs.flatten())
            assert p > 1e-3 if warped else p < 1e-6, (number, warped, p)


def test_logprobs_are_the_models_own_whatever_the_processors_do(llama):
    def spoil(input_ids, scores):
        return scores.mul_(0.01).add_(3)  # in place

    for one in read_prompts(llama, make_rm(), temperature=3.0, logits_processor=[spoil]).decode([0, 0, 1]).candidates:
        prompt = prompts_of(llama)[one.prompt]
        with torch.no_grad():
            logprobs = llama(torch.tensor([[*prompt, *one.token_ids]])).logits[0].log_softmax(-1)
        own = [float(logprobs[len(prompt) - 1 + i, token]) for i, token in enumerate(one.token_ids)]
        assert one.logprob == pytest.approx(sum(own) / len(own), abs=1e-5)


@pytest.mark.parametrize("position", ["generating", "token"])
def test_prompts_are_read_once_and_rows_leave_as_they_end(llama, position):
    calls = []
    handle = llama.model.embed_tokens.register_forward_hook(lambda module, args, output: calls.append(tuple(args[0].shape)))
    try:
        prompts = read_prompts(llama, make_rm(position=position))
        assert calls == [(len(LENGTHS), WIDTH)]
        for wave in ([0, 1, 2] * 4, [1] * 5, [2]):
            calls.clear()
            decoding = prompts.decode(wave)
            assert all(width == 1 for _, width in calls)
            rows = [count for count, _ in calls]
            assert all(after <= before for before, after in pairwise(rows))
            # A token is fed once, except a row's last, which only position "token" reads.
            assert sum(rows) == decoding.tokens - (len(wave) if position == "generating" else 0)
    finally:
        handle.remove()


def quantised_cache(layers):
    class HandMadeQuantizedLayer(DynamicLayer):
        pass

    cache = DynamicCache()
    cache.layers = [HandMadeQuantizedLayer() for _ in range(layers)]
    return cache


@pytest.mark.parametrize(
    ("architecture", "settings", "message"),
    [
        ("llama", {"past_key_values": quantised_cache(3)}, "quantised cache .HandMadeQuantizedLayer. cannot be repeated"),
        ("llama", {"use_cache": False}, "needs use_cache=True"),
        ("openai-gpt", {}, "but this model made NoneType"),
        ("llama", {"prefix_allowed_tokens_fn": lambda row, ids: [3]}, "PrefixConstrainedLogitsProcessor remembers which row"),
        ("llama", {"guidance_scale": 2.0}, "UnbatchedClassifierFreeGuidanceLogitsProcessor remembers which row"),
        ("llama", {"encoder_repetition_penalty": 1.2}, "EncoderRepetitionPenaltyLogitsProcessor remembers which row"),
    ],
)
def test_what_rows_cannot_leave_is_refused(architecture, settings, message):
    model = tiny_model(architecture)
    with pytest.raises(ValueError, match=message):
        read_prompts(model, make_rm(), **settings)
    assert hooks(model) == 0


def spoil_at(step, value, prompt):
    """Return a processor that puts ``value`` among the scores of that prompt's rows at that step."""

    def processor(input_ids, scores):
        if input_ids.shape[1] == WIDTH + step:
            scores[(input_ids[:, :WIDTH] == prompt).all(dim=1), 50] = value
        return scores

    return processor


@pytest.mark.parametrize("do_sample", [False, True])
@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("position", ["generating", "token"])
def test_broken_logits_of_one_row(llama, position, value, do_sample):
    rm, settings = make_rm(position=position), {"do_sample": do_sample, "eos_token_id": 2}
    spoil = spoil_at(2, value, prompt_batch(llama, IdTokenizer(), LENGTHS)["input_ids"][1])
    clean, hurt = [
        read_prompts(llama, rm, logits_processor=processors, **settings).decode([0, 1, 2]) for processors in ([], [spoil])
    ]  # fmt: skip
    broken = hurt.candidates[1]
    assert (broken.finish_reason, broken.flag, broken.complete) == ("not_finite", "not_finite", False)
    assert math.isnan(broken.reward)
    assert math.isnan(broken.partial), "a pruning rule must not go by it"
    assert len(broken.token_ids) == 3
    others = [hurt.candidates[0], hurt.candidates[2]]
    assert all(one.complete for one in others)
    check_rewards(llama, rm, others)
    if not do_sample:
        assert [one.token_ids for one in others] == [clean.candidates[i].token_ids for i in (0, 2)]


@pytest.mark.parametrize("position", ["generating", "token"])
def test_broken_states_of_one_row(llama, position):
    def spoil(module, args, output):
        if output.shape[1] == WIDTH:
            output = output.clone()
            output[1, -1] = math.nan
        return output

    handle = llama.model.layers[0].register_forward_hook(spoil)
    try:
        rm = make_rm(position=position)
        found = read_prompts(llama, rm, remove_invalid_values=True).decode([0, 1, 2, 1]).candidates
    finally:
        handle.remove()
    assert [one.finish_reason == "not_finite" for one in found] == [False, True, False, True]
    assert all(math.isnan(found[i].reward) and found[i].flag == "not_finite" for i in (1, 3))
    check_rewards(llama, rm, [found[0], found[2]])


@pytest.mark.parametrize("position", ["generating", "token"])
@pytest.mark.parametrize("where", ["processor", "keep_rows", "model"])
def test_an_interrupt_leaves_what_had_finished(llama, monkeypatch, where, position):
    rm, before, now = make_rm(position=position), dict(vars(llama)), []

    def raise_at(limit):
        now.append(1)
        if len(now) == limit:
            raise KeyboardInterrupt

    def processor(input_ids, scores):
        if where == "processor" and input_ids.shape[1] > WIDTH + 5:
            raise KeyboardInterrupt
        return scores

    prompts = read_prompts(llama, rm, logits_processor=[processor])
    handle = llama.model.norm.register_forward_hook(lambda *args: raise_at(7) if where == "model" else None)
    if where == "keep_rows":
        monkeypatch.setattr("swift_rm.decoding.loop.keep_rows", lambda *args: raise_at(1))
    try:
        decoding = prompts.decode([0, 1, 2] * 5)
    finally:
        handle.remove()
    assert decoding.interrupted
    assert 0 < len(decoding.candidates) < 15
    assert all(one.finish_reason == "stop" for one in decoding.candidates)
    check_rewards(llama, rm, decoding.candidates)
    assert hooks(llama) == 0
    assert dict(vars(llama)) == before


@pytest.mark.parametrize("position", ["generating", "token"])
def test_a_limit_of_tokens_drops_what_is_unfinished(llama, position):
    prompts = read_prompts(llama, make_rm(position=position), eos_token_id=None)
    decoding = prompts.decode([0, 1, 2], DecodingLimits(tokens=7))
    assert decoding.tokens == 9
    assert [one.finish_reason for one in decoding.candidates] == ["budget"] * 3
    assert all(math.isfinite(one.reward) and one.flag is None and not one.complete for one in decoding.candidates)
    at_once = prompts.decode([0, 1], DecodingLimits(tokens=1)).candidates
    assert [(one.finish_reason, one.flag, len(one.token_ids)) for one in at_once] == [("budget", None, 1)] * 2
    assert all(math.isnan(one.reward) == (position == "token") for one in at_once), "its only state was not read"


class Asking:
    """A pruning rule that writes down what it is asked, and drops the rows it was told to at that length."""

    guide = None

    def __init__(self, at, drop=()):
        self.at, self.drop, self.asked = at, drop, []

    def checks(self, tokens):
        return tokens == self.at

    def hopeless(self, tokens, rewards, finished, pruned):
        self.asked.append((tokens, list(rewards), list(finished), pruned))
        return [i in self.drop for i in range(len(rewards))]


@pytest.mark.parametrize("position", ["generating", "token"])
def test_pruning_rules_are_asked_with_the_rewards_so_far(llama, position):
    rm, rule = make_rm(position=position), Asking(4, drop=(0,))
    spoil = spoil_at(1, math.nan, prompt_batch(llama, IdTokenizer(), LENGTHS)["input_ids"][1])
    prompts = read_prompts(llama, rm, eos_token_id=None, max_new_tokens=8, logits_processor=[spoil])
    decoding = prompts.decode([0, 0, 1, 0], DecodingLimits(prune=rule, earlier={0: [1.5]}))
    assert [one.finish_reason for one in decoding.candidates] == ["pruned", "length", "not_finite", "length"]
    ((tokens, rewards, finished, pruned),) = rule.asked
    assert (tokens, finished, pruned) == (4, [1.5], 0)
    so_far = [decoding.candidates[i].token_ids[:4] for i in (0, 1, 3)]
    prompt = prompts_of(llama)[0]
    assert rewards == pytest.approx(score(llama, None, rm, [prompt] * 3, so_far), abs=1e-4)
    check_rewards(llama, rm, [decoding.candidates[1], decoding.candidates[3]])
    assert decoding.candidates[0].reward == pytest.approx(rewards[0], abs=1e-6)


@pytest.mark.parametrize("position", ["generating", "token"])
def test_a_row_whose_logits_break_weighs_nothing_with_its_siblings(llama, position):
    rule = Asking(3 if position == "generating" else 2)
    last = []

    def spoil_the_first(input_ids, scores):
        if input_ids.shape[1] == WIDTH + 2:
            last.append(len(input_ids))
            scores[0] = math.nan
        return scores

    prompts = read_prompts(
        llama, make_rm(position=position), eos_token_id=None, max_new_tokens=5, logits_processor=[spoil_the_first]
    )
    decoding = prompts.decode([0, 0, 0], DecodingLimits(prune=rule))
    assert last == [3]
    assert [one.finish_reason for one in decoding.candidates] == ["not_finite", "length", "length"]
    ((_, rewards, finished, pruned),) = rule.asked
    assert (len(rewards), len(finished), pruned) == (2, 1, 0)
    assert math.isnan(finished[0])


def test_time_that_runs_out_is_an_end_of_the_room(llama):
    decoding = read_prompts(llama, make_rm(), max_time=1e-6, eos_token_id=None).decode([0, 1])
    assert [(one.finish_reason, len(one.token_ids)) for one in decoding.candidates] == [("length", 1)] * 2


def test_criteria_of_the_user_end_single_rows(llama):
    def after(input_ids, scores, **kwargs):
        return input_ids[:, WIDTH:].float().mean(dim=1) > 55

    rm = make_rm()
    candidates = read_prompts(llama, rm, eos_token_id=None, stopping_criteria=[after]).decode([0, 1, 2] * 4).candidates
    for one in candidates:
        means = [sum(one.token_ids[:end]) / end > 55 for end in range(1, len(one.token_ids) + 1)]
        assert not any(means[:-1])
        assert one.finish_reason == ("stop" if means[-1] else "length")
    assert {one.finish_reason for one in candidates} == {"stop", "length"}
    check_rewards(llama, rm, candidates)


def test_watchers_see_the_rows_after_each_token(llama):
    seen = []
    decoding = read_prompts(llama, make_rm()).decode([2, 0, 2], on_step=lambda look: seen.append(look()))
    lengths = [len(one.token_ids) for one in decoding.candidates]
    assert len(seen) == max(lengths) - 1, "nothing is there to see once the last row has left"
    for number, step in enumerate(seen, start=1):
        assert sorted(step.candidates) == [i for i, length in enumerate(lengths) if length > number]
        assert step.prompts == [[2, 0, 2][i] for i in step.candidates]
        assert step.token_ids == [decoding.candidates[i].token_ids[:number] for i in step.candidates]
