from __future__ import annotations

from typing import Any

import pytest
import torch

import swift_rm.parity.capture_check as model_check
from swift_rm.capture.tap import HiddenStateTap
from swift_rm.parity.capture_check import CaptureCheck, check_model
from tests.tiny_models import LAYERS, VOCAB, tiny_model

NAMES = [
    "forward, one row",
    "forward, left padding",
    "forward, layers from the end",
    "generate, one row",
    "generate, left padding",
    "output logits captured exactly",
    "hooks gone after an exception",
]


def hooks(model: Any) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in model.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2", "opt-projected", "gemma3_text", "mpt"])
def test_a_readable_model_passes_every_check(name: str) -> None:
    rows = check_model(tiny_model(name))
    assert [row.name for row in rows] == NAMES
    assert all(row.passed for row in rows), rows
    assert {row.detail for row in rows[:-2]} == {f"{LAYERS + 1} layers equal to the bit"}
    assert rows[-2].detail == "equal to the bit"
    assert rows[-1].detail == f"{LAYERS + 2} hooks were attached, 0 left"


def test_bfloat16_is_exact_on_the_cpu_too() -> None:
    assert all(row.passed for row in check_model(tiny_model("llama").to(torch.bfloat16)))


def test_training_mode_and_hooks_are_left_as_they_were() -> None:
    model = tiny_model("gpt2").train()
    model.transformer.h[1].eval()
    check_model(model)
    assert model.training
    assert not model.transformer.h[1].training
    attached = hooks(model)
    check_model(model)
    assert hooks(model) == attached


def test_prompts_come_from_the_tokenizer_or_the_seed() -> None:
    model = tiny_model("llama", image_token_id=7)
    first, second = (model_check._prompts(model, None, (40, 3), seed) for seed in (0, 1))
    assert not torch.equal(first["input_ids"], second["input_ids"])
    assert first["input_ids"].max() < VOCAB
    assert not torch.isin(first["input_ids"], torch.tensor([0, 1, 2, 7])).any()
    assert first["attention_mask"].sum(dim=1).tolist() == [40, 3]
    assert first["attention_mask"][1, -3:].all()
    told = model_check._prompts(model, lambda text, add_special_tokens: {"input_ids": [4, 5, 6]}, (5, 2), seed=0)
    assert told["input_ids"].tolist() == [[4, 5, 6, 4, 5]] * 2


def test_a_model_that_is_refused_is_one_failed_row() -> None:
    from transformers import MambaConfig, MambaForCausalLM

    compiled = tiny_model("llama")
    compiled.model.layers[0].compile(backend="eager")
    mamba = MambaForCausalLM(MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=LAYERS))
    for model, reason in ((compiled, "LlamaDecoderLayer is compiled"), (mamba, "cache_params")):
        [row] = check_model(model)
        assert (row.name, row.passed) == ("model", False)
        assert reason in row.detail


def test_a_model_without_a_head_cannot_generate() -> None:
    rows = check_model(tiny_model("llama").model)
    assert [row.passed for row in rows] == [True, True, True, False, False, False, True]
    assert "LlamaModel cannot generate" in rows[3].detail
    assert "AutoModelForCausalLM" in rows[5].detail


def test_a_wrong_layer_is_found_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    class Crooked(HiddenStateTap):
        @property
        def states(self) -> dict[int, torch.Tensor]:
            found = super().states
            return {**found, 1: found[1] + 0.5} if 1 in found else found

    monkeypatch.setattr(model_check, "HiddenStateTap", Crooked)
    rows = check_model(tiny_model("llama"))
    assert rows[0] == CaptureCheck("forward, one row", False, "layers 1 differ: at most 0.5 apart (layer 1)")
    assert rows[2].passed  # asked for from the end, layer 1 is -3
    assert not rows[3].passed


def test_prompt_lengths_must_be_positive() -> None:
    for lengths in ((), (4, 0)):
        with pytest.raises(ValueError, match="prompt lengths must be positive"):
            check_model(tiny_model("llama"), prompt_lengths=lengths)
