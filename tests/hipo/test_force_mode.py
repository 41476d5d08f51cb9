import pytest
import torch

from swift_rm.hipo import Template
from swift_rm.hipo.rollouts.forced_modes import ForceMode
from swift_rm.models.load import load_language_model

PROMPT = 3


@pytest.fixture(scope="module")
def reasoner():
    return load_language_model(progress=False)


def ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def forced(tokenizer, rows, template=None, mode="off", prompt=PROMPT):
    """Return the only tokens that may follow each row, None where any may."""
    scores = torch.randn(len(rows), len(tokenizer))
    after = ForceMode(template or Template(), tokenizer, mode, prompt)(torch.tensor(rows), scores.clone())
    free = (after == scores).all(1).tolist()
    assert all(row_free or row.isfinite().sum() == 1 for row, row_free in zip(after, free, strict=True))
    return [None if row_free else tokenizer.decode(row.argmax()) for row, row_free in zip(after, free, strict=True)]


def test_the_marker_follows_the_judge_block_and_nothing_else_is_touched(reasoner):
    tokenizer = reasoner[1]
    closed, open_ = ids(tokenizer, "1+1<judge>2</judge>"), ids(tokenizer, "1+1<judge>22")
    assert len(closed) == len(open_)
    assert forced(tokenizer, [closed, open_]) == ["<think_off>", None]
    assert forced(tokenizer, [open_, closed, closed], mode="on") == [None, "<think_on>", "<think_on>"]


def test_rows_are_told_apart_by_their_tokens(reasoner):
    tokenizer = reasoner[1]
    processor = ForceMode(Template(), tokenizer, "off", PROMPT)
    rows = torch.tensor(
        [ids(tokenizer, "1+1<judge></judge>"), ids(tokenizer, "1+1<judge>2"), ids(tokenizer, "1+1<judge></judge>")]
    )
    scores = torch.randn(3, len(tokenizer))
    all_rows = processor(rows, scores)
    assert torch.equal(processor(rows[1:], scores[1:]), all_rows[1:])  # the first left the batch
    assert torch.equal(processor(rows[[2, 1]], scores[[2, 1]]), all_rows[[2, 1]])


def test_a_closing_tag_in_the_prompt_or_a_second_one_forces_nothing(reasoner):
    tokenizer = reasoner[1]
    prompt = ids(tokenizer, "1</judge>")
    assert forced(tokenizer, [prompt], prompt=len(prompt)) == [None]
    twice = ids(tokenizer, "1</judge></judge>")
    assert forced(tokenizer, [twice], prompt=1) == [None]


def test_without_a_judge_block_the_marker_comes_first(reasoner):
    tokenizer = reasoner[1]
    template = Template(judge=None)
    assert forced(tokenizer, [ids(tokenizer, "1+1")], template, "on") == ["<think_on>"]
    assert forced(tokenizer, [ids(tokenizer, "1+1<think_on>")], template, "on") == [None]


@pytest.mark.parametrize("mode", ["on", "off"])
def test_generate_obeys(reasoner, mode):
    model, tokenizer = reasoner
    prompts = torch.tensor([ids(tokenizer, "<bos><question>27+15<student>")] * 4)
    processor = ForceMode(Template(judge=None), tokenizer, mode, prompts.shape[1])
    torch.manual_seed(0)
    out = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), do_sample=True, max_new_tokens=3, logits_processor=[processor]
    )
    marker = tokenizer.convert_tokens_to_ids(f"<think_{mode}>")
    assert out[:, prompts.shape[1]].tolist() == [marker] * 4
    assert (out[:, prompts.shape[1] + 1 :] != marker).any()


def test_a_tag_of_several_tokens_is_refused(reasoner):
    with pytest.raises(ValueError, match=r"'</reason>' must be one token"):
        ForceMode(Template(judge=("<reason>", "</reason>")), reasoner[1], "on", 0)
    with pytest.raises(ValueError, match="'on' or 'off', got 'maybe'"):
        ForceMode(Template(), reasoner[1], "maybe", 0)
