"""Parity of ``HiddenStateTap`` and ``LogitsTap`` with transformers' own hidden states and logits, on the user's model.

Each check runs the model twice on the same tokens, once with ``output_hidden_states=True``, or with its logits returned,
and once under the tap, and compares every layer. On a CPU the two must be equal to the bit; elsewhere, where kernels may
add in another order from run to run, they may differ by at most 2 % of the layer's largest value.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from swift_rm.capture.logits_tap import LogitsTap
from swift_rm.capture.tap import HiddenStateTap, LayerStates, model_shape

TOLERANCE = 0.02  # off the CPU, as a fraction of a layer's largest absolute value: a few units of bfloat16's precision
NEW_TOKENS = 5
_SETTINGS: dict[str, Any] = {
    "max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "do_sample": False, "num_beams": 1, "use_cache": True,
    "disable_compile": True, "pad_token_id": 0, "return_dict_in_generate": True,
}  # fmt: skip


@dataclass(frozen=True)
class CaptureCheck:
    """One check: its name, whether it passed, and what was seen."""

    name: str
    passed: bool
    detail: str


def check_model(
    model: nn.Module, tokenizer: Any = None, prompt_lengths: Sequence[int] = (11, 6), seed: int = 0
) -> list[CaptureCheck]:
    """Check that the tap reads ``model`` exactly, in forward calls and in ``generate``; one row a check.

    The prompts are a tokenized sentence if there is a tokenizer, else random token ids below the vocabulary's size;
    shorter ones are padded on the left. A model that the tap refuses gives a failed row with the reason. The model's
    training mode is left as it was. Raises ValueError if a prompt length is not positive.
    """
    if not prompt_lengths or min(prompt_lengths) < 1:
        raise ValueError(f"prompt lengths must be positive, got {tuple(prompt_lengths)}")
    try:
        layers = model_shape(model).layers
        with HiddenStateTap(model, layers=(0,)):
            pass
    except (RuntimeError, ValueError) as refusal:
        return [CaptureCheck("model", False, str(refusal))]
    batch = _prompts(model, tokenizer, prompt_lengths, seed)
    longest = max(range(len(prompt_lengths)), key=lambda row: prompt_lengths[row])
    one = {name: tensor[longest : longest + 1] for name, tensor in batch.items()}
    up, down = range(layers + 1), range(-layers - 1, 0)
    checks: dict[str, Callable[[], tuple[bool, str]]] = {
        "forward, one row": lambda: _forward(model, one, up),
        "forward, left padding": lambda: _forward(model, batch, up),
        "forward, layers from the end": lambda: _forward(model, batch, down),
        "generate, one row": lambda: _generate(model, one, up),
        "generate, left padding": lambda: _generate(model, batch, up),
        "output logits captured exactly": lambda: _logits(model, batch),
        "hooks gone after an exception": lambda: _hooks_gone(model, one, up),
    }
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            return [_row(name, check) for name, check in checks.items()]
    finally:
        for module, training in modes:
            module.training = training


def _row(name: str, check: Callable[[], tuple[bool, str]]) -> CaptureCheck:
    try:
        return CaptureCheck(name, *check())
    except (RuntimeError, ValueError) as refusal:
        return CaptureCheck(name, False, str(refusal))


def _prompts(model: Any, tokenizer: Any, lengths: Sequence[int], seed: int) -> dict[str, Tensor]:
    config = model.config.get_text_config(decoder=True)
    settings = {**model.config.to_dict(), **config.to_dict()}
    # Placeholders (of images, say) must not turn up in a text: the model would ask for the image.
    special = [value for key, value in settings.items() if key.endswith(("_token_id", "_token_index"))]
    generator = torch.Generator().manual_seed(seed)
    if tokenizer is None:
        usable = torch.tensor([token for token in range(config.vocab_size) if token not in special])
        drawn = usable[torch.randint(len(usable), (len(lengths), max(lengths)), generator=generator)]
    else:
        sentence = tokenizer("Is the answer right? Let us check each step of it.", add_special_tokens=False)["input_ids"]
        drawn = torch.tensor(sentence).repeat(max(lengths))[: max(lengths)].expand(len(lengths), -1).clone()
    mask = torch.arange(max(lengths)) >= max(lengths) - torch.tensor(lengths)[:, None]
    device = model.get_input_embeddings().weight.device
    return {"input_ids": drawn.to(device), "attention_mask": mask.long().to(device)}


def _forward(model: Any, inputs: Mapping[str, Tensor], layers: Sequence[int]) -> tuple[bool, str]:
    expected = model(**inputs, output_hidden_states=True).hidden_states
    if len(expected) != len(layers):
        return False, f"hidden_states has {len(expected)} entries, but the model {len(layers) - 1} blocks"
    with HiddenStateTap(model, layers) as tap:
        model(**inputs)
    return _compare(tap.states, {layer: expected[layer] for layer in layers})


def _generate(model: Any, inputs: Mapping[str, Tensor], layers: Sequence[int]) -> tuple[bool, str]:
    if not hasattr(model, "generate"):
        return False, f"{type(model).__name__} cannot generate: load it with its language-modelling head"
    expected = model.generate(**inputs, **_SETTINGS, output_hidden_states=True)
    calls: list[LayerStates] = []
    with HiddenStateTap(model, layers, on_forward=calls.append) as tap:
        got = model.generate(**inputs, **_SETTINGS)
    if not torch.equal(got.sequences, expected.sequences):
        return False, "two greedy runs sampled different tokens, so their states cannot be compared"
    seen = [call[layers[0]].shape[1] for call in calls]
    if seen != [inputs["input_ids"].shape[1]] + [1] * (NEW_TOKENS - 1):
        return False, f"the prompt and then one token a step were expected, but the calls had {seen} tokens"
    steps = expected.hidden_states
    return _compare(tap.states, {layer: torch.cat([step[layer] for step in steps], dim=1) for layer in layers})


def _logits(model: Any, inputs: Mapping[str, Tensor]) -> tuple[bool, str]:
    with LogitsTap(model) as tap:
        model(**inputs)
    whole, detail = _compare(tap.states, {-1: model(**inputs).logits})
    expected = model.generate(**inputs, **_SETTINGS, output_logits=True)
    with LogitsTap(model) as tap:
        got = model.generate(**inputs, **_SETTINGS)
    if not torch.equal(got.sequences, expected.sequences):
        return False, "two greedy runs sampled different tokens, so their logits cannot be compared"
    steps = {-1: tap.states[-1][:, -NEW_TOKENS:].float()}  # of the prompt there may be the last token's, or all
    generated, said = _compare(steps, {-1: torch.stack(expected.logits, dim=1).float()})
    return whole and generated, detail if not whole or generated else said


def _compare(got: LayerStates, expected: LayerStates) -> tuple[bool, str]:
    shapes = [layer for layer in expected if got[layer].shape != expected[layer].shape]
    if shapes:
        layer = shapes[0]
        return False, f"layer {layer} has shape {list(got[layer].shape)}, not {list(expected[layer].shape)}"
    differing = {layer: _difference(got[layer], state) for layer, state in expected.items() if not _same(got[layer], state)}
    if not differing:
        return True, f"{len(expected)} layers equal to the bit" if len(expected) > 1 else "equal to the bit"
    worst = max(differing, key=lambda layer: differing[layer])
    within = all(_within(got[layer], expected[layer]) for layer in differing)
    verdict = f"within {TOLERANCE:.0%}" if within else f"layers {', '.join(map(str, differing))} differ"
    return within, f"{verdict}: at most {differing[worst]:.3g} apart (layer {worst})"


def _same(got: Tensor, expected: Tensor) -> bool:
    return bool(((got == expected) | (got.isnan() & expected.isnan())).all())


def _difference(got: Tensor, expected: Tensor) -> float:
    return float((got.double() - expected.double()).abs().nan_to_num(nan=float("inf")).max())


def _within(got: Tensor, expected: Tensor) -> bool:
    scale = float(expected.double().abs().max())
    return got.device.type != "cpu" and _difference(got, expected) <= TOLERANCE * scale


class _Interruption(RuntimeError):
    """Raised on purpose in the middle of a forward call."""


def _hooks_gone(model: Any, inputs: Mapping[str, Tensor], layers: Sequence[int]) -> tuple[bool, str]:
    def interrupt(states: LayerStates) -> None:
        raise _Interruption

    before = _count_hooks(model)
    try:
        with HiddenStateTap(model, layers, on_forward=interrupt):
            during = _count_hooks(model) - before
            model(**inputs)
    except _Interruption:
        left = _count_hooks(model) - before
        return left == 0, f"{during} hooks were attached, {left} left"
    return False, "the forward call went on although its hook raised"


def _count_hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules())
