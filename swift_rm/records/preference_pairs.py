"""Preference data: one prompt with a chosen and a rejected response on each line, as rollouts that ``fit`` trains on."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.files.json_lines import iter_json_lines
from swift_rm.records.rollouts import Prompt, Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

IDENTICAL, BAD = "identical", "bad_lines"  # what is counted of pairs that are left out
SIDES = ("chosen", "rejected")


@dataclass(frozen=True)
class Pair:
    """A prompt (text or messages) with two responses as text, and their token ids where the file has them.

    A text is None where there are only ids. ``place`` is the pair's file and line.
    """

    place: str
    prompt: Prompt | None
    chosen: str | None
    rejected: str | None
    prompt_ids: list[int] | None = None
    chosen_ids: list[int] | None = None
    rejected_ids: list[int] | None = None


def read_pairs(path: str | Path, *, skip_bad_lines: bool = False, skipped: Counter[str] | None = None) -> list[Pair]:
    """Read the preference pairs of a JSONL file.

    A line has ``prompt`` (text or chat messages), ``chosen`` and ``rejected``: text, or messages that end in the assistant's
    turn. Messages may repeat the prompt, or stand without one: what both share is the prompt then (TRL's explicit and
    implicit prompts). ``prompt_ids``, ``chosen_ids`` and ``rejected_ids``, where present, are what is read. Other keys
    are ignored. A pair whose responses are the same teaches nothing: it is left out and counted in ``skipped``. Raises
    ValueError with file and line for a line that is no pair (or counts it, with ``skip_bad_lines``), and if none is left.
    """
    skipped = Counter() if skipped is None else skipped
    pairs: list[Pair] = []
    left_out: Counter[str] = Counter()
    for number, record in iter_json_lines(path):
        try:
            if isinstance(record, ValueError):
                raise record
            pair = _pair(f"{path}:{number}", record)
        except ValueError as error:
            if not skip_bad_lines:
                raise (error if error is record else ValueError(f"{path}:{number}: not a preference pair: {error}")) from error
            left_out[BAD] += 1
            continue
        by_ids = pair.chosen_ids is not None and pair.rejected_ids is not None
        if pair.chosen_ids == pair.rejected_ids if by_ids else pair.chosen == pair.rejected:
            left_out[IDENTICAL] += 1
        else:
            pairs.append(pair)
    skipped.update(left_out)
    if not pairs:
        counts = f"{left_out[IDENTICAL]} with identical responses and {left_out[BAD]} bad lines were left out"
        raise ValueError(f"{path} holds no preference pairs" + (f": {counts}" if left_out else ""))
    return pairs


def pairs_to_rollouts(
    tokenizer: PreTrainedTokenizerBase | None,
    pairs: Sequence[Pair],
    chat_template_kwargs: Mapping[str, Any] | None = None,
    *,
    model: PreTrainedModel | None = None,
    skip_bad_lines: bool = False,
    skipped: Counter[str] | None = None,
) -> list[Rollout]:
    """Return two rollouts a pair: the chosen response with label 1, the rejected one with label 0.

    Encoded as ``score`` encodes text, so the end-of-sequence token is appended. All pairs of one prompt are one question,
    known by a hash of the prompt's token ids, so that a split never tears them apart; a loss over a question's right x wrong
    responses then compares each chosen response with every rejected one of that prompt, of other pairs too. A response in
    several pairs counts as often. Pairs that differ in nothing the tokenizer knows are left out and counted in ``skipped``.
    Raises ValueError with file and line for an empty prompt or response and, with ``model``, for one it cannot read (too
    long, other ids); ``skip_bad_lines`` counts these pairs instead.
    """
    skipped = Counter() if skipped is None else skipped
    rollouts: list[Rollout] = []
    left_out: Counter[str] = Counter()
    for pair in pairs:
        try:
            made = list(_rollouts(tokenizer, pair, chat_template_kwargs, model))
        except ValueError:
            if not skip_bad_lines:
                raise
            left_out[BAD] += 1
            continue
        if made[0].response_ids == made[1].response_ids:
            left_out[IDENTICAL] += 1
        else:
            rollouts.extend(made)
    skipped.update(left_out)
    if not rollouts:
        raise ValueError(f"none of the {len(pairs)} preference pairs can be trained on: {dict(left_out)}")
    return rollouts


def _rollouts(
    tokenizer: PreTrainedTokenizerBase | None,
    pair: Pair,
    chat_template_kwargs: Mapping[str, Any] | None,
    model: PreTrainedModel | None,
) -> Iterator[Rollout]:
    from swift_rm.tokens.encoding import check_ids, encode_prompt, encode_response

    prompt = pair.prompt if pair.prompt_ids is None else pair.prompt_ids
    prompt_ids = encode_prompt(tokenizer, prompt or "", chat_template_kwargs)
    if not prompt_ids:
        raise ValueError(f"{pair.place}: the prompt is empty")
    name = hashlib.sha256(json.dumps(prompt_ids).encode()).hexdigest()[:16]
    sides = zip(SIDES, (1, 0), (pair.chosen, pair.rejected), (pair.chosen_ids, pair.rejected_ids), strict=True)
    for side, label, text, ids in sides:
        response_ids = encode_response(tokenizer, (text or "") if ids is None else ids)
        if not response_ids:
            raise ValueError(f"{pair.place}: the {side} response is empty")
        if model is not None:
            check_ids(model, prompt_ids, response_ids, f"{pair.place}: the {side} response")
        yield Rollout(
            f"prompt-{name}", "" if pair.prompt is None else pair.prompt, prompt_ids, text or "", response_ids, "stop",
            label=label, extra={"pair": pair.place},
        )  # fmt: skip


def _pair(place: str, record: Mapping[str, Any]) -> Pair:
    """Read one line; raise ValueError that says what is wrong with it."""
    ids = {f"{name}_ids": _ids(record, f"{name}_ids") for name in ("prompt", *SIDES)}
    prompt, chosen, rejected = (record.get(name) for name in ("prompt", *SIDES))
    for side in SIDES:
        if record.get(side) is None and ids[f"{side}_ids"] is None:
            raise ValueError(f"there is no {side!r}; it has {sorted(record)}")
    if prompt is not None and not isinstance(prompt, str):
        _check_messages("prompt", prompt)
    if isinstance(chosen, list) or isinstance(rejected, list):
        for side in SIDES:
            _check_messages(side, record.get(side))
        prompt, chosen, rejected = _conversations(prompt, record["chosen"], record["rejected"])
    if prompt is None and ids["prompt_ids"] is None:
        raise ValueError(f"there is no 'prompt'; it has {sorted(record)}")
    for side, text in zip(SIDES, (chosen, rejected), strict=True):
        if not isinstance(text, str | None):
            raise ValueError(f"{side!r} must be text or chat messages, got {text!r:.60}")
        if text == "" and ids[f"{side}_ids"] is None:
            raise ValueError(f"the {side} response is empty")
    json.dumps([prompt, chosen, rejected], ensure_ascii=False).encode()  # half a surrogate pair is refused here
    return Pair(place, prompt, chosen, rejected, **ids)


def _conversations(
    prompt: str | list[dict[str, str]] | None, chosen: list[dict[str, str]], rejected: list[dict[str, str]]
) -> tuple[Prompt, str, str]:
    """Take two conversations apart into their prompt and the two last turns; they may hold the prompt or only follow it."""
    shared = 0
    while shared < min(len(chosen), len(rejected)) - 1 and chosen[shared] == rejected[shared]:
        shared += 1
    if len(chosen) != shared + 1 or len(rejected) != shared + 1:
        raise ValueError(
            f"'chosen' ({len(chosen)} messages) and 'rejected' ({len(rejected)}) must differ in their last message only, "
            f"but differ from message {shared + 1} on"
        )
    for side, messages in zip(SIDES, (chosen, rejected), strict=True):
        if messages[-1]["role"] != "assistant":
            raise ValueError(f"{side!r} must end in the assistant's turn, but ends in that of {messages[-1]['role']!r}")
    before, answers = chosen[:shared], (chosen[-1]["content"], rejected[-1]["content"])
    if not before and not prompt:
        raise ValueError("there is no 'prompt', and 'chosen' and 'rejected' share no message that could be it")
    if isinstance(prompt, str):  # some data sets repeat a message of the conversation as text
        if not any(message["content"] == prompt for message in before):
            raise ValueError(f"'prompt' is text that no message before the responses holds: {prompt!r:.60}")
        return before, *answers
    given = prompt or []
    return (before if before[: len(given)] == given else [*given, *before]), *answers


def _check_messages(key: str, value: Any) -> None:
    if not isinstance(value, list) or not value or not all(isinstance(one, dict) for one in value):
        what = "text or chat messages" if key == "prompt" else "chat messages, as the other response is,"
        raise ValueError(f"{key!r} must be {what}, got {value!r:.60}")
    for message in value:
        if not isinstance(message.get("role"), str) or not isinstance(message.get("content"), str):
            raise ValueError(f"each message of {key!r} needs 'role' and 'content' as text, got {message!r:.60}")


def _ids(record: Mapping[str, Any], key: str) -> list[int] | None:
    value = record.get(key)
    if value is not None and not (isinstance(value, list) and value and all(type(one) is int and one >= 0 for one in value)):
        raise ValueError(f"{key!r} must be a list of at least one token id, got {value!r:.60}")
    return value
