from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from swift_rm.hipo import Template
from swift_rm.hipo.cold_start.cold_rows import ColdRow, check_rows, to_dataset
from swift_rm.hipo.cold_start.questions import hipo_rows
from swift_rm.hipo.cold_start.sft import save_merged
from swift_rm.hipo.response.template import FREE
from swift_rm.models.load import load_language_model
from swift_rm.tasks.task import Question
from swift_rm.tokens.encoding import encode_prompt

pytest.importorskip("trl")

ON = Template().render("on", "42", judge="9-2", think="now 27+15=42, ")
OFF = Template().render("off", "42", judge="1-1")


def rows(prompt):
    return [
        ColdRow("a", prompt("27+15"), ON, "on", 0.9, 0.2, "1 step", "42"),
        ColdRow("b", prompt("50-08"), OFF, "off", 0.1, 0),
    ]


def message(text):
    return [{"role": "user", "content": text}]


def trained_on(tokenizer, model, dataset, folder):
    """Return what SFTTrainer feeds the model: of each row the ids, and which of them the loss is on."""
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        output_dir=str(folder), per_device_train_batch_size=2, max_length=None, report_to="none", use_cpu=True, max_steps=1
    )
    trainer = SFTTrainer(model=model, args=args, train_dataset=dataset, processing_class=tokenizer)
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(2)])
    found = []
    for ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        there = mask.bool()
        assert ((labels == ids) | (labels == -100)).all()
        found.append((ids[there & (labels == -100)].tolist(), ids[labels != -100].tolist()))
    trainer.train()  # and it does train on it
    return found


def wanted(tokenizer, rows):
    return [
        (encode_prompt(tokenizer, row.prompt, FREE), tokenizer(row.completion + "<eos>", add_special_tokens=False)["input_ids"])
        for row in rows
    ]


@pytest.mark.parametrize("given", [True, False])
def test_sft_trains_on_the_completion_after_the_prompt_that_rollouts_get(tmp_path, given):
    model, tokenizer = load_language_model(progress=False)
    dataset = to_dataset(rows(message), tokenizer if given else None)
    assert set(dataset.column_names) == {
        "prompt", "completion", "chat_template_kwargs", "question_id", "mode", "p_on", "p_off", "difficulty", "reference",
    }  # fmt: skip
    found = trained_on(tokenizer, model, dataset, tmp_path)
    assert found == wanted(tokenizer, rows(message))
    assert tokenizer.decode(found[0][0]) == "<bos><question>27+15<student>"  # no mode is given
    assert Template().parse(found[0][1], tokenizer).think == "now 27+15=42, "


def test_a_chat_template_that_takes_the_thinking_out_is_gone_round(tmp_path):
    model, tokenizer = load_language_model(progress=False)
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "<student>{{ m.content }}<eos>", "<student>{{ m.content.split('</think>')[-1] }}<eos>"
    )
    dataset = to_dataset(rows(message), tokenizer)
    assert "input_ids" in dataset.column_names and "prompt" not in dataset.column_names
    assert trained_on(tokenizer, model, dataset, tmp_path) == wanted(tokenizer, rows(message))


def test_plain_text_prompts_need_no_chat_template(tmp_path):
    model, tokenizer = load_language_model(progress=False)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.chat_template = None
    dataset = to_dataset(rows(str), tokenizer)
    assert "chat_template_kwargs" not in dataset.column_names and dataset[0]["prompt"] == "27+15"
    assert trained_on(tokenizer, model, dataset, tmp_path) == wanted(tokenizer, rows(str))


def test_what_no_data_set_can_be_made_of():
    with pytest.raises(ValueError, match="no rows to train on"):
        to_dataset([])
    with pytest.raises(ValueError, match="the prompt of question 'b' is text, but others are chat messages"):
        to_dataset([rows(message)[0], rows(str)[1]])
    with pytest.raises(ValueError, match="the prompt of question 'q' is no Unicode text, it holds half a surrogate pair"):
        hipo_rows([Question("q", message("2\ud800"), "4")])
    odd = hipo_rows([Question("q\ud800", message("2"), "4", {"difficulty": "\udfff"})])[0]
    assert (odd["question_id"], odd["difficulty"]) == ("q\\ud800", "\\udfff")
    assert to_dataset([replace(rows(message)[0], question_id="q\ud800")])[0]["question_id"] == "q\\ud800"


def test_a_response_of_another_template_is_named():
    _, tokenizer = load_language_model(progress=False)
    check_rows(rows(message), tokenizer, Template())
    with pytest.raises(ValueError, match=r"response to question 'a' is not one of the template without a judge block \("):
        check_rows(rows(message), tokenizer, Template(judge=None))
    with pytest.raises(ValueError, match=r"question 'b' is not .* \(it is think-off, not think-on\)"):
        check_rows([rows(message)[0], replace(rows(message)[1], mode="on")], tokenizer, Template())


def test_a_model_is_saved_whole_or_not_at_all(tmp_path):
    """A run that is killed between the configuration and the weights leaves neither."""

    class Trainer:
        accelerator = SimpleNamespace(is_main_process=True, wait_for_everyone=lambda: None, unwrap_model=lambda model: model)
        model, full = None, True

        def save_model(self, out):
            Path(out).mkdir()
            (Path(out) / "config.json").write_text("{}")
            if self.full:
                raise OSError("no space left")
            (Path(out) / "model.safetensors").write_text("weights")

    with pytest.raises(OSError, match="no space"):
        save_merged(Trainer(), tmp_path)
    assert not (tmp_path / "config.json").exists()
    Trainer.full = False
    save_merged(Trainer(), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
