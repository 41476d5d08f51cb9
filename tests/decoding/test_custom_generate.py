import math

import pytest
import torch

from swift_rm import score
from swift_rm.decoding.custom_generate import BestOfNDecoding, BestOfNOutput
from swift_rm.scoring.score import score_encoded
from swift_rm.selection.rules import select
from swift_rm.tokens.encoding import encode
from tests.decoding.prompt_batches import LENGTHS, OFTEN_ENDS, WIDTH, IdTokenizer, prompts_of
from tests.generate_calls import hooks, prompt_batch
from tests.reward_models import make_rm
from tests.tiny_models import ARCHITECTURES, tiny_model

PROCESSED = {
    "repetition_penalty": 1.5, "no_repeat_ngram_size": 2, "min_new_tokens": 3, "bad_words_ids": [[5, 6], [9]],
    "suppress_tokens": [11], "sequence_bias": {(7,): 2.0, (3, 4): 1.5}, "forced_eos_token_id": 2,
}  # fmt: skip


def generate(model, decoding, **settings):
    given = {"do_sample": True, "top_k": 0, "max_new_tokens": 10, "eos_token_id": OFTEN_ENDS, "pad_token_id": 0, **settings}
    inputs = {} if "inputs_embeds" in settings else prompt_batch(model, IdTokenizer(), LENGTHS)
    torch.manual_seed(0)
    return model.generate(**inputs, custom_generate=decoding, **given)


@pytest.fixture(scope="module")
def llama():
    return tiny_model("llama")


@pytest.mark.parametrize("architecture", [one for one in ARCHITECTURES if one != "openai-gpt"])
def test_greedy_decoding_is_that_of_generate(architecture):
    model = tiny_model(architecture)
    fixed = {"do_sample": False, "use_cache": True}
    said = generate(model, None, **fixed, eos_token_id=None)[0, WIDTH:].tolist()
    for settings in ({"eos_token_id": None}, {"eos_token_id": said[3]}, PROCESSED):
        decoding = BestOfNDecoding(make_rm(32, (1, 2)), 1)
        expected = generate(model, None, **fixed, **settings)
        found = generate(model, decoding, **fixed, **settings)
        assert found.tolist() == expected.tolist()
        if settings.get("eos_token_id"):
            assert decoding.candidates[0][0].token_ids == said[: said.index(said[3]) + 1], "the first row should end early"


@pytest.mark.parametrize("position", ["generating", "token"])
@pytest.mark.parametrize("settings", [{}, {"repetition_penalty": 1.3, "pad_token_id": 1}])
def test_the_k_best_come_back(llama, settings, position):
    rm = make_rm(position=position)
    decoding = BestOfNDecoding(rm, 6)
    out = generate(llama, decoding, num_return_sequences=2, return_dict_in_generate=True, **settings)
    assert isinstance(out, BestOfNOutput)
    assert out.candidates is decoding.candidates
    inputs = prompt_batch(llama, IdTokenizer(), LENGTHS)["input_ids"]
    assert out.sequences.dtype == torch.long
    for number, (prompt, group) in enumerate(zip(prompts_of(llama), decoding.candidates, strict=True)):
        expected = score(llama, None, rm, [prompt] * 6, [one.token_ids for one in group])
        assert [one.reward for one in group] == pytest.approx(expected, abs=1e-4)
        assert expected == sorted(expected, reverse=True)
        for place, one in enumerate(group[:2]):
            row = out.sequences[2 * number + place].tolist()
            assert row[:WIDTH] == inputs[number].tolist()
            ids = one.token_ids
            assert row[WIDTH:] == ids + [settings.get("pad_token_id", 0)] * (len(row) - WIDTH - len(ids))
            assert float(out.rewards[2 * number + place]) == pytest.approx(one.reward)
    best = generate(llama, BestOfNDecoding(rm, 6), **settings)
    assert best[:, WIDTH:].tolist() == [row[: best.shape[1] - WIDTH] for row in out.sequences[::2, WIDTH:].tolist()]


def test_prompts_that_are_embeddings(llama):
    ids = torch.tensor([[5, 6, 7]])
    rm, decoding = make_rm(position="token"), BestOfNDecoding(make_rm(position="token"), 4)
    out = generate(llama, decoding, inputs_embeds=llama.get_input_embeddings()(ids).detach())
    (group,) = decoding.candidates
    assert out.tolist() == [group[0].token_ids]
    expected = score(llama, None, rm, ids.tolist() * 4, [one.token_ids for one in group])
    assert [one.reward for one in group] == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize(
    ("n", "settings", "message"),
    [
        (0, {}, "n must be at least 1, got 0"),
        (2, {"do_sample": False}, "greedy decoding gives 2 equal responses"),
        (2, {"num_return_sequences": 3}, "num_return_sequences=3 of n=2 candidates cannot be returned"),
        (2, {"num_beams": 2}, "num_beams='2' is not supported: beam search"),
        (2, {"prompt_lookup_num_tokens": 2}, "prompt_lookup_num_tokens='2' is not supported: assisted decoding"),
        (2, {"use_cache": False}, "needs use_cache=True"),
        (2, {"prefix_allowed_tokens_fn": lambda row, ids: [3]}, "remembers which row is which"),
    ],
)
def test_what_cannot_be_done_is_refused(llama, n, settings, message):
    before = dict(vars(llama))
    with pytest.raises(ValueError, match=message):
        generate(llama, BestOfNDecoding(make_rm(), n), **settings)
    assert hooks(llama) == 0
    assert dict(vars(llama)) == before


def test_another_base_model_is_refused(llama):
    with pytest.raises(ValueError, match="has hidden size 32"):
        generate(llama, BestOfNDecoding(make_rm(64), 2))


def test_pruned_candidates_are_returned_after_whole_ones(llama):
    decoding = BestOfNDecoding(make_rm(), 8, prune="halving")
    out = generate(llama, decoding, max_new_tokens=20, eos_token_id=None, num_return_sequences=3, return_dict_in_generate=True)
    for group in decoding.candidates:
        reasons = [one.finish_reason for one in group]
        assert reasons == ["length"] * 4 + ["pruned"] * 4
        assert all(len(one.token_ids) == (20 if one.complete else 16) for one in group)
    assert out.sequences.shape == (9, WIDTH + 20)


def test_regions_need_the_tokenizer(llama, tokenizer):
    model, rm = tiny_model("llama", vocab_size=len(tokenizer)), make_rm(region="after:=")
    with pytest.raises(ValueError, match="region 'after:=' needs the tokenizer"):
        generate(model, BestOfNDecoding(rm, 2), eos_token_id=2)
    decoding, inputs = BestOfNDecoding(rm, 16, tokenizer=tokenizer), prompt_batch(model, tokenizer)
    torch.manual_seed(0)
    model.generate(**inputs, max_new_tokens=12, do_sample=True, pad_token_id=0, eos_token_id=None, custom_generate=decoding)
    candidates = [one for group in decoding.candidates for one in group]
    assert {one.flag for one in candidates} >= {None, "marker_missing"}
    prompts = [row[mask.bool()].tolist() for row, mask in zip(*inputs.values(), strict=True)]
    encoded = encode(
        model, tokenizer, [prompts[one.prompt] for one in candidates], [one.token_ids for one in candidates], rm.config.region
    )
    assert [one.flag for one in candidates] == [one.region.flag for one in encoded]
    assert [one.reward for one in candidates] == pytest.approx(score_encoded(model, rm, encoded), abs=1e-4)


def test_a_rule_that_elects_an_answer_puts_its_choice_first(tokenizer):
    def parity(text):
        return str(sum(map(ord, text)) % 2)

    model, rm = tiny_model("llama", vocab_size=len(tokenizer)), make_rm()
    best, shrunk = (
        BestOfNDecoding(rm, 12, select=rule, answer=parity, tokenizer=tokenizer, prune="halving") for rule in ("best", "shrunk")
    )
    settings = {"max_new_tokens": 20, "eos_token_id": None, "num_return_sequences": 2, "return_dict_in_generate": True}
    differ = 0
    for seed in range(4):
        for decoding in (best, shrunk):
            torch.manual_seed(seed)
            out = model.generate(
                **prompt_batch(model, tokenizer), do_sample=True, pad_token_id=0, custom_generate=decoding, **settings
            )  # fmt: skip
        for number, (ranked, group) in enumerate(zip(best.candidates, shrunk.candidates, strict=True)):
            whole = [one for one in ranked if one.complete]
            answers = [parity(tokenizer.decode(one.token_ids, skip_special_tokens=True)) for one in whole]
            first = whole[select("shrunk", [one.reward for one in whole], answers).index]
            assert group == [first, *(one for one in ranked if one is not first and one != first)]
            assert out.sequences[2 * number, -20:].tolist() == first.token_ids
            differ += first is not ranked[0]
    assert differ, "the highest reward won every time: nothing was tested"


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ("shrunk", "select='shrunk' reads the candidates' answers, for which the tokenizer is needed"),
        ("rank", "select='rank' fuses with an external reward"),
        ("bset", "unknown selection rule 'bset'"),
    ],
)
def test_rules_that_cannot_be_followed_are_refused(rule, message):
    with pytest.raises(ValueError, match=message):
        BestOfNDecoding(make_rm(), 2, select=rule)


def test_broken_candidates_come_last_and_are_an_error_where_there_are_no_others(llama):
    def spoil(every):
        def processor(input_ids, scores):
            if input_ids.shape[1] == WIDTH + 2:
                scores[::every] = math.nan
            return scores

        return processor

    decoding = BestOfNDecoding(make_rm(), 4)
    generate(llama, decoding, logits_processor=[spoil(2)], eos_token_id=None)
    for group in decoding.candidates:
        assert [one.finish_reason for one in group] == ["length"] * 2 + ["not_finite"] * 2
    with pytest.raises(ValueError, match="none of the 4 candidates of prompt 0 has a reward"):
        generate(llama, decoding, logits_processor=[spoil(1)], eos_token_id=None)
    assert {one.finish_reason for group in decoding.candidates for one in group} == {"not_finite"}


def test_an_interrupt_goes_through_and_leaves_the_model_as_it_was(llama):
    def interrupt(input_ids, scores):
        if input_ids.shape[1] == WIDTH + 3:
            raise KeyboardInterrupt
        return scores

    before = dict(vars(llama))
    with pytest.raises(KeyboardInterrupt):
        generate(llama, BestOfNDecoding(make_rm(), 4), logits_processor=[interrupt])
    assert hooks(llama) == 0
    assert dict(vars(llama)) == before
