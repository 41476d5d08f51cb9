import math
import warnings

import pytest
import torch

from swift_rm.scoring.external import SequenceClassificationReward
from tests.tiny_models import classifier

RESPONSES = ["27+15=42", "27+15=32, 32-08=24, so 24", "4"]
MESSAGES = [{"role": "user", "content": "27+15"}]
PROMPTS = ["27+15", MESSAGES, "31-14"]


def conversation(tokenizer, prompt, response):
    said = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    text = tokenizer.apply_chat_template([*said, {"role": "assistant", "content": response}], tokenize=False)
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def logits_one_by_one(model, rows):
    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([row])).logits[0] for row in rows]


def test_one_label_is_its_logit_whatever_the_batch_and_the_mode(tokenizer):
    model = classifier(tokenizer, attention_dropout=0.5).train()
    rewards = SequenceClassificationReward(model, tokenizer, batch_size=2)(PROMPTS, RESPONSES)
    assert model.training
    rows = [conversation(tokenizer, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    assert rewards == pytest.approx([float(one) for one in logits_one_by_one(model, rows)], abs=1e-5)
    assert len({round(reward, 4) for reward in rewards}) == 3


@pytest.mark.parametrize(("label", "column"), [(None, 2), (0, 0), (1, 1)])
def test_several_labels_give_the_log_odds_of_one(tokenizer, label, column):
    model = classifier(tokenizer, labels=3)
    rewards = SequenceClassificationReward(model, tokenizer, label=label)(PROMPTS, RESPONSES)
    rows = [conversation(tokenizer, *pair) for pair in zip(PROMPTS, RESPONSES, strict=True)]
    chances = [float(torch.softmax(one.double(), -1)[column]) for one in logits_one_by_one(model, rows)]
    assert rewards == pytest.approx([math.log(p / (1 - p)) for p in chances], abs=1e-5)


def test_without_a_chat_template_the_pair_is_read(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    model = classifier(tokenizer)
    rewards = SequenceClassificationReward(model, tokenizer)(PROMPTS, RESPONSES)
    rows = [
        tokenizer(asked, response)["input_ids"] for asked, response in zip(("27+15", "27+15", "31-14"), RESPONSES, strict=True)
    ]
    assert rewards == pytest.approx([float(one) for one in logits_one_by_one(model, rows)], abs=1e-5)


def test_without_a_padding_token_rows_are_read_one_by_one_and_that_is_said(tokenizer):
    expected = SequenceClassificationReward(classifier(tokenizer), tokenizer)(PROMPTS, RESPONSES)
    with pytest.warns(UserWarning, match="names no padding token: it reads one response at a time"):
        reward = SequenceClassificationReward(classifier(tokenizer, pad=False), tokenizer)
    assert reward(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)


def test_what_is_cut_is_counted_and_keeps_its_end(tokenizer):
    model = classifier(tokenizer)
    long = "27+15=42, " * 30
    with pytest.warns(UserWarning, match=r"1 of 2 responses, .* longer than the 128 tokens"):
        rewards = SequenceClassificationReward(model, tokenizer)(PROMPTS[:2], [long, "4"])
    row = conversation(tokenizer, PROMPTS[0], long)[-128:]
    assert rewards[0] == pytest.approx(float(logits_one_by_one(model, [row])[0]), abs=1e-5)
    with pytest.warns(UserWarning, match="1 of 3 responses, .* longer than the 16 tokens"):
        SequenceClassificationReward(model, tokenizer, max_length=16)(["4"] * 3, ["1", "27+15=42, 42-08=34", "2"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SequenceClassificationReward(model, tokenizer)(PROMPTS, RESPONSES)


def test_a_pair_is_cut_too(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "chat_template", None)
    model = classifier(tokenizer)
    with pytest.warns(UserWarning, match="1 of 1 responses"):
        (reward,) = SequenceClassificationReward(model, tokenizer, max_length=8)(["27+15-08+31"], ["4+4"])
    row = tokenizer("27+15-08+31", "4+4", truncation="longest_first", max_length=8)["input_ids"]
    assert len(row) == 8
    assert reward == pytest.approx(float(logits_one_by_one(model, [row])[0]), abs=1e-5)


@pytest.mark.parametrize("label", [-1, 2])
def test_a_label_that_is_not_there_is_refused(tokenizer, label):
    with pytest.raises(ValueError, match=f"label {label} is out of range: the model has 2 labels, 0 to 1"):
        SequenceClassificationReward(classifier(tokenizer, labels=2), tokenizer, label=label)


@pytest.mark.parametrize("prompt", [[1, 2, 3], [], None])
def test_other_prompts_than_text_and_messages_are_refused(tokenizer, prompt):
    with pytest.raises(ValueError, match="needs prompts as text or messages, but prompt 1 is"):
        SequenceClassificationReward(classifier(tokenizer), tokenizer)(["4", prompt], ["1", "2"])
    with pytest.raises(ValueError, match="as many prompts as responses, got 1 and 2"):
        SequenceClassificationReward(classifier(tokenizer), tokenizer)(["4"], ["1", "2"])


def test_it_is_loaded_from_a_folder_and_only_with_a_trained_head(tokenizer, llama, tmp_path):
    model = classifier(tokenizer, labels=2)
    for folder, one in (("rm", model), ("lm", llama)):
        one.save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    loaded = SequenceClassificationReward.from_pretrained(str(tmp_path / "rm"), "cpu", "float32", label=0, batch_size=1)
    expected = SequenceClassificationReward(model, tokenizer, label=0)(PROMPTS, RESPONSES)
    assert loaded(PROMPTS, RESPONSES) == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ValueError, match=r"lm is no trained classification model: it has no weights for score\.weight"):
        SequenceClassificationReward.from_pretrained(str(tmp_path / "lm"), "cpu")
    with pytest.raises(ValueError, match="code from a model's repository is not run"):
        SequenceClassificationReward.from_pretrained(str(tmp_path / "rm"), trust_remote_code=True)
    with pytest.raises(ValueError, match="float7"):
        SequenceClassificationReward.from_pretrained(str(tmp_path / "rm"), dtype="float7")
