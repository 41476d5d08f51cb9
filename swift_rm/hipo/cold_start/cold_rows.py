"""The rows of a cold start: what is in one, their file, and the data set that TRL's SFTTrainer trains on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from swift_rm.files.atomic_write import write_whole
from swift_rm.files.json_lines import json_line, read_json_lines
from swift_rm.hipo.cold_start.questions import check_prompt, check_text, encodable
from swift_rm.hipo.response.template import FREE, Mode, Template
from swift_rm.records.rollouts import Prompt
from swift_rm.tokens.encoding import encode_prompt

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedTokenizerBase

MASKED = -100  # torch's label of a token that no loss is on
_KINDS = {
    "question_id": (str, "text"), "prompt": (str | list, "text or a list of chat messages"), "completion": (str, "text"),
    "mode": (str, "text"), "p_on": (float | int | None, "a number or null"), "p_off": (float | int | None, "a number or null"),
    "difficulty": (str | None, "text or null"), "reference": (str | None, "text or null"),
}  # fmt: skip


@dataclass(frozen=True)
class ColdRow:
    """One question with the response to train on, without end of text, and each mode's pass rate (None: not tried)."""

    question_id: str
    prompt: Prompt
    completion: str
    mode: Mode
    p_on: float | None = None
    p_off: float | None = None
    difficulty: str | None = None
    reference: str | None = None


def write_rows(path: str | Path, rows: Sequence[ColdRow]) -> None:
    """Write rows as a JSONL file, all or nothing."""
    write_whole(path, "".join(json_line(asdict(row)) + "\n" for row in rows))


def read_rows(path: str | Path) -> list[ColdRow]:
    """Read the rows of a JSONL file; raise ValueError with file and line for one that is none, and for an empty file."""
    rows = []
    needed = ("question_id", "prompt", "completion", "mode")
    for number, record in read_json_lines(path):
        missing = [name for name in needed if name not in record]
        if missing:
            raise ValueError(f"{path}:{number}: not a row to train on: it has no {', no '.join(missing)}, only {sorted(record)}")
        for name, (kind, word) in _KINDS.items():
            value = record.get(name)
            if (name in record and not isinstance(value, kind)) or isinstance(value, bool):
                raise ValueError(f"{path}:{number}: {name!r} must be {word}, got {value!r:.60}")
        if record["mode"] not in ("on", "off"):
            raise ValueError(f"{path}:{number}: 'mode' must be 'on' or 'off', got {record['mode']!r:.60}")
        if not record["prompt"] or (isinstance(record["prompt"], list) and not _messages(record["prompt"])):
            raise ValueError(
                f"{path}:{number}: 'prompt' must be text or chat messages of role and content, got {record['prompt']!r:.60}"
            )
        check_prompt(record["prompt"], f"{path}:{number}: 'prompt'")
        check_text(record["completion"], f"{path}:{number}: 'completion'")
        rows.append(ColdRow(**{field.name: record[field.name] for field in fields(ColdRow) if field.name in record}))
    return rows


def check_rows(rows: Sequence[ColdRow], tokenizer: PreTrainedTokenizerBase, template: Template) -> None:
    """Raise ValueError that names the first row whose response is none of this template, or of another mode than it says."""
    for row in rows:
        parsed = template.parse(tokenizer(row.completion, add_special_tokens=False)["input_ids"], tokenizer)
        if not parsed.formatted or parsed.mode != row.mode:
            why = parsed.error or f"it is think-{parsed.mode}, not think-{row.mode}"
            judge = "without a judge block" if template.judge is None else "with a judge block"
            raise ValueError(
                f"the response to question {row.question_id!r} is not one of the template {judge} ({why}): {row.completion!r:.80}"
            )


def to_dataset(
    rows: Sequence[ColdRow],
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    chat_template_kwargs: Mapping[str, Any] = FREE,
) -> Dataset:
    """Return the rows as a data set that TRL's SFTTrainer takes: prompt-completion, loss on the completion alone.

    Messages become a conversational set, the completion one assistant message and ``chat_template_kwargs`` a column; text
    prompts become a plain one. Not every chat template keeps an assistant's message as it is (some take the thinking out),
    nor do all tokenizers keep prompt and completion apart. With ``tokenizer`` this is looked at, and where the tokens would
    be others than the prompt's, as HiPO's rollouts get it, then those of the completion and end of text, the columns are
    ``input_ids`` and ``labels`` instead, with just these. Raises ValueError for no rows, or text prompts among
    messages.
    """
    from datasets import Dataset

    if not rows:
        raise ValueError("there are no rows to train on")
    plain = [isinstance(row.prompt, str) for row in rows]
    if any(plain) and not all(plain):
        raise ValueError(f"the prompt of question {rows[plain.index(True)].question_id!r} is text, but others are chat messages")
    known = [{name: encodable(value) if isinstance(value, str) else value for name, value in asdict(row).items()} for row in rows]
    for one in known:
        del one["prompt"], one["completion"]
    parts: list[dict[str, Any]] = [_parts(row, chat_template_kwargs) for row in rows]
    if tokenizer is not None:
        exact = [_exact(row, tokenizer, chat_template_kwargs) for row in rows]
        if any(_as_trl(part, tokenizer) != ids for part, ids in zip(parts, exact, strict=True)):
            parts = [{"input_ids": [*p, *c], "labels": [MASKED] * len(p) + c} for p, c in exact]
    return Dataset.from_list([part | more for part, more in zip(parts, known, strict=True)])


def _messages(prompt: Sequence[Any]) -> bool:
    return all(
        isinstance(one, dict) and isinstance(one.get("role"), str) and isinstance(one.get("content"), str) for one in prompt
    )


def _parts(row: ColdRow, chat_template_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(row.prompt, str):
        return {"prompt": row.prompt, "completion": row.completion}
    completion = [{"role": "assistant", "content": row.completion}]
    extra = {"chat_template_kwargs": dict(chat_template_kwargs)} if chat_template_kwargs else {}
    return {"prompt": row.prompt, "completion": completion, **extra}


def _exact(row: ColdRow, tokenizer: PreTrainedTokenizerBase, kwargs: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """Return the ids of the prompt, and of the completion with end of text; ValueError if there is no such token."""
    if tokenizer.eos_token_id is None:
        raise ValueError("the tokenizer has no end-of-text token with which a response could end")
    completion = list(tokenizer(row.completion, add_special_tokens=False)["input_ids"])
    return encode_prompt(tokenizer, row.prompt, kwargs), [*completion, int(tokenizer.eos_token_id)]


def _as_trl(part: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the ids of prompt and completion as SFTTrainer makes them of a row: of both together, cut where the prompt ends."""
    if isinstance(part["prompt"], str):
        both = tokenizer(f"{part['prompt']}{part['completion']}{tokenizer.eos_token}")["input_ids"]
        prompt = tokenizer(part["prompt"])["input_ids"]
    else:
        kwargs = part.get("chat_template_kwargs", {})
        text = str(tokenizer.apply_chat_template([*part["prompt"], *part["completion"]], tokenize=False, **kwargs))
        both = tokenizer(text, add_special_tokens=False)["input_ids"]
        prompt = encode_prompt(tokenizer, part["prompt"], kwargs)
    return list(both[: len(prompt)]), list(both[len(prompt) :])
