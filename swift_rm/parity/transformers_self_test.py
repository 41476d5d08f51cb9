"""Test a version of transformers that was never tested before its rewards are believed, on a random model.

Two layers of random weights show everything that matters here: whether the states that hooks see belong to the tokens that
come out, and whether the decoding loop draws the tokens that `generate` draws. Each check compares with what transformers
returns by public ways only (``output_hidden_states``, greedy `generate`), so that one mistake cannot hide on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from swift_rm.capture.streaming import StreamingReward
from swift_rm.capture.tap import HiddenStateTap
from swift_rm.decoding.custom_generate import BestOfNDecoding
from swift_rm.reward.config import Position, SwiftConfig
from swift_rm.reward.reward_model import SwiftRewardModel

VOCABULARY, NEW_TOKENS = 48, 9
ENDS = [2, 3, 4, 5, 6, 7]  # several, so that rows end early, at various places
LAYERS = (0, 1, 2)
TOLERANCE = 1e-3  # rewards are of the order of 1, in float32


def check_generation() -> None:
    """Raise RuntimeError, or whatever goes wrong, unless states, streaming rewards and the loop are right; about 0.1 s."""
    with _undisturbed():
        model, inputs = _model(), _prompts()
        _check_forward(model, inputs)
        _check_streaming(model, inputs, _reward_model("generating"))
        _check_streaming(model, inputs, _reward_model("token"))
        _check_loop(model, inputs, _reward_model("generating"))


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Run as at the start of a program, on the CPU in float32, and leave the caller's random state as it was."""
    dtype = torch.get_default_dtype()
    with (
        torch.random.fork_rng(devices=[]), torch.device("cpu"), torch.autocast("cpu", enabled=False),
        torch.inference_mode(False), torch.no_grad(),
    ):  # fmt: skip
        torch.set_default_dtype(torch.float32)
        torch.manual_seed(0)
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise RuntimeError(otherwise)


def _model() -> Any:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1,
        intermediate_size=24, bos_token_id=1, eos_token_id=ENDS[0],
        initializer_range=0.5,  # sharp enough that what a token attends to changes what comes next
    )  # fmt: skip
    model: Any = LlamaForCausalLM(config)
    return model.eval()


def _prompts() -> dict[str, Tensor]:
    """Return three prompts of different lengths, padded on the left."""
    ids = torch.randint(3, VOCABULARY, (3, 6))
    ids[1, :2], ids[2, :4] = 0, 0
    return {"input_ids": ids, "attention_mask": (ids != 0).long()}


def _reward_model(position: Position) -> SwiftRewardModel:
    rm = SwiftRewardModel(SwiftConfig(16, LAYERS, position=position))
    for parameter in rm.parameters():
        parameter.data.normal_()
    return rm


def _check_forward(model: Any, inputs: dict[str, Tensor]) -> None:
    expected = model(**inputs, output_hidden_states=True).hidden_states
    with HiddenStateTap(model, LAYERS) as tap:
        model(**inputs)
    same = all(torch.equal(tap.states[layer], expected[layer]) for layer in LAYERS)
    _require(same, "the hooks see other hidden states than the model returns")


def _check_streaming(model: Any, inputs: dict[str, Tensor], rm: SwiftRewardModel) -> None:
    """Compare rewards of rows that end early, at various places, with the head on the states of a plain forward call."""
    with StreamingReward(model, rm) as stream:
        out = model.generate(
            **inputs, num_return_sequences=4, do_sample=True, top_k=0, temperature=1.5, max_new_tokens=NEW_TOKENS,
            eos_token_id=ENDS, pad_token_id=0,
        )  # fmt: skip
    rewards, width = stream.rewards, inputs["input_ids"].shape[1]
    mask = inputs["attention_mask"].repeat_interleave(4, dim=0)
    for row, tokens in enumerate(out):
        said = tokens[width:].tolist()
        length = next((i + 1 for i, token in enumerate(said) if token in ENDS), len(said))
        ids = torch.cat([tokens[:width][mask[row].bool()], tokens[width : width + length]])
        states = model(ids[None], output_hidden_states=True).hidden_states
        first = len(ids) - length - (rm.config.position == "generating")
        features = torch.cat([states[layer][0, first : first + length] for layer in LAYERS], dim=-1)
        expected = rm(features, torch.tensor([0, length]))[0]
        otherwise = f"a streaming reward is {float(rewards[row]):.4f}, but {float(expected):.4f} by a pass over the response"
        _require(abs(float(rewards[row] - expected)) < TOLERANCE, otherwise)


def _check_loop(model: Any, inputs: dict[str, Tensor], rm: SwiftRewardModel) -> None:
    settings = {"do_sample": False, "max_new_tokens": NEW_TOKENS, "pad_token_id": 0, "eos_token_id": None}
    expected = model.generate(**inputs, **settings)
    got = model.generate(**inputs, **settings, custom_generate=BestOfNDecoding(rm, n=1))
    _require(torch.equal(got, expected), "the decoding loop says other tokens than a greedy generate")
