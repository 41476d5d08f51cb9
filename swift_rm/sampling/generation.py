"""Sample responses for a batch of prompts with transformers' `generate`, token ids and log-probabilities kept."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from swift_rm.capture.state_recorder import StateRecorder
from swift_rm.capture.token_statistics import StatisticsRecorder, TokenStatistics
from swift_rm.models.eval_mode import in_eval_mode
from swift_rm.models.generation_config import end_tokens_of, model_end_tokens, refuse_other_decoding
from swift_rm.reward.logprobs import TokenLogprobs
from swift_rm.tokens.stop_text import StopText

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DEFAULT_NEW_TOKENS = 1024
DEFAULT_SAMPLING = {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}
# What a model's own generation_config may ask for beside them, switched off; a user's keyword switches it on again.
NEUTRAL = {"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "min_p": None, "typical_p": 1.0, "num_beams": 1}
RESERVED_KEYWORDS = {
    "input_ids", "inputs", "inputs_embeds", "attention_mask", "num_return_sequences", "generation_config",
    "return_dict_in_generate",
    "output_scores", "output_logits", "output_hidden_states", "streamer", "tokenizer", "pad_token_id", "max_length",
}  # fmt: skip


@dataclass(frozen=True)
class SampledResponse:
    """One sampled response: its tokens (end-of-sequence included), why it ended, and statistics per token ``[R]``.

    ``logprobs`` are those of the likeliest tokens as well, if asked for; ``ended`` tells whether the last token is one of the
    model's own end tokens.
    """

    token_ids: list[int]
    text: str
    finish_reason: str
    token_logprobs: list[float]
    token_confidence: list[float]
    self_certainty: float
    ended: bool = False
    logprobs: TokenLogprobs | None = None

    @property
    def logprob_mean(self) -> float:
        """Return the mean log-probability of the tokens."""
        return sum(self.token_logprobs) / len(self.token_logprobs)


def sampling_settings(
    model: PreTrainedModel, longest_prompt: int, n: int, max_new_tokens: int | None, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the settings of `generate`: plain sampling of at most 1,024 new tokens, fewer if the context is full.

    A user's ``settings`` and ``max_new_tokens`` replace these.

    Raises ValueError where the prompt leaves no room, for decoding that is no sampling of independent rows, and for
    keywords that are not the user's to set.
    """
    for name in ("num_beams", "assistant_model", "prompt_lookup_num_tokens"):
        if settings.get(name) not in (None, 1):
            raise ValueError(f"{name}={settings[name]!r} is not supported: candidates are sampled row by row")
    if settings.get("do_sample") is False and n > 1:
        raise ValueError(f"do_sample=False gives {n} equal responses: sample, or ask for one")
    if taken := sorted(RESERVED_KEYWORDS & set(settings)):
        raise ValueError(f"{taken[0]} cannot be passed on to `generate` here; give single settings such as temperature=0.7")
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    room = limit - longest_prompt if limit else max(DEFAULT_NEW_TOKENS, max_new_tokens or 0)
    if room < (max_new_tokens or 1):
        wanted = f"{max_new_tokens} new tokens" if max_new_tokens else "a response"
        raise ValueError(f"a prompt of {longest_prompt} tokens leaves no room for {wanted}: the model's context is {limit}")
    plain = {"do_sample": False} if settings.get("do_sample") is False else DEFAULT_SAMPLING
    return {**plain, "max_new_tokens": max_new_tokens or min(room, DEFAULT_NEW_TOKENS), **settings}


def seed_for(seed: int, *parts: object) -> int:
    """Derive the seed of one batch, so that a batch's samples do not depend on what ran before it."""
    return int.from_bytes(hashlib.sha256(repr((seed, *parts)).encode()).digest()[:7], "big")


def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Sequence[int]],
    n: int,
    seed: int,
    settings: Mapping[str, Any],
    states: StateRecorder | None = None,
    top_logprobs: int | None = None,
) -> list[list[SampledResponse]]:
    """Sample ``n`` responses for each prompt in one batch; the global random state is left as it was.

    ``states``, inside its ``with`` block, records the hidden states of the rows: ``n`` for each prompt, prompt after prompt.
    ``top_logprobs`` asks for the log-probabilities of so many of the likeliest tokens at each place.
    """
    device = model.device
    ids, mask, pad = left_padded(tokenizer, prompts, device)
    width = ids.shape[1]
    passed = dict(settings)
    recorder, ends = StatisticsRecorder(top_logprobs or 0), _RowEnds(passed.pop("stopping_criteria", None) or [], width)
    if passed.get("stop_strings"):
        ends.criteria.append(StopText(tokenizer, passed.pop("stop_strings"), width))
    processors = [recorder, *(passed.pop("logits_processor", None) or [])]
    if states is not None:
        refuse_other_decoding(model, {**NEUTRAL, **passed})
    watching = [ends] if states is None else [states, ends]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices), torch.inference_mode(), in_eval_mode(model):
        torch.manual_seed(seed)
        out = model.generate(  # type: ignore[operator]
            input_ids=ids, attention_mask=mask, num_return_sequences=n, logits_processor=processors,
            stopping_criteria=watching, pad_token_id=pad, return_dict_in_generate=False, **{**NEUTRAL, **passed},
        )  # fmt: skip
        stops = ends.lengths(end_tokens(model, settings), out)
        if states is not None:
            states.finish([stop in (None, out.shape[1] - width) for stop in stops])
    statistics, own = recorder.finish(out), model_end_tokens(model)
    rows = [
        _response(tokenizer, tokens, stops[row], statistics.row(row), own, top_logprobs is not None)
        for row, tokens in enumerate(out[:, width:].tolist())
    ]
    return [rows[start : start + n] for start in range(0, len(rows), n)]


def left_padded(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Sequence[int]], device: torch.device
) -> tuple[Tensor, Tensor, int]:
    """Return prompts as ids and mask ``[prompts, seq]``, padded on the left, where generation does not go on, and the padding."""
    pad = next((t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id) if t is not None), 0)
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad)
    mask = torch.zeros(len(prompts), width, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids.to(device), mask.to(device), pad


def end_tokens(model: PreTrainedModel, settings: Mapping[str, Any]) -> frozenset[int]:
    """Return the ids at which a response ends; empty if the model defines none."""
    return frozenset(end_tokens_of(model, settings).tolist())


class _RowEnds:
    """The user's stopping criteria as one, which remembers where each row stopped: what follows there is padding."""

    def __init__(self, criteria: Sequence[Callable[..., Tensor]], prompt_width: int) -> None:
        self.criteria, self.prompt_width = list(criteria), prompt_width
        self.stopped: dict[int, int] = {}

    def __call__(self, input_ids: Tensor, scores: object, **kwargs: object) -> Tensor:
        done = torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
        for criterion in self.criteria:
            done = done | criterion(input_ids, scores, **kwargs)
        if self.criteria:
            for row in done.nonzero().flatten().tolist():
                self.stopped.setdefault(row, input_ids.shape[1] - self.prompt_width)
        return done

    def lengths(self, ends: frozenset[int], sequences: Tensor) -> list[int | None]:
        """Return each row's number of tokens if it stopped by itself, else None."""
        found: list[int | None] = []
        for row, tokens in enumerate(sequences[:, self.prompt_width :].tolist()):
            end = next((i + 1 for i, token in enumerate(tokens) if token in ends), None)
            stops = [stop for stop in (end, self.stopped.get(row)) if stop is not None]
            found.append(min(stops, default=None))
        return found


def _response(
    tokenizer: PreTrainedTokenizerBase,
    tokens: list[int],
    stop: int | None,
    said: TokenStatistics,
    ends: frozenset[int],
    with_top: bool,
) -> SampledResponse:
    length = stop or len(tokens)
    logprob, confidence, certainty, top = (part[:length].tolist() for part in vars(said).values())
    text = tokenizer.decode(tokens[:length], skip_special_tokens=True, clean_up_tokenization_spaces=False)
    reason = "stop" if stop else "length"
    return SampledResponse(
        tokens[:length], str(text), reason, logprob, confidence, sum(certainty) / length, tokens[length - 1] in ends,
        TokenLogprobs.of(logprob, top) if with_top else None,
    )  # fmt: skip
