"""The questions of a run of the paper's protocol: read from the Hub once, or from files; never the same in training and test."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from swift_protocol import Protocol

from swift_rm.files.atomic_write import write_whole
from swift_rm.tasks.homework import HomeworkTask
from swift_rm.tasks.jsonl import JsonlTask
from swift_rm.tasks.task import Question

Records = list[dict[str, Any]]


def question_files(dataset: str, data: Sequence[str] | None, folder: Path, protocol: Protocol) -> tuple[Path, Path, str]:
    """Return the files of training and test questions, and what was left out of them; a data set is written into ``folder``.

    Raises ValueError for the data set ``jsonl`` without ``data``, ImportError where the Hub cannot be read.
    """
    if data:
        return Path(data[0]), Path(data[1]), ""
    if dataset == "jsonl":
        raise ValueError("--dataset jsonl needs the questions: --data TRAIN.jsonl TEST.jsonl")
    train_file, test_file, note_file = folder / "train.jsonl", folder / "test.jsonl", folder / "questions.txt"
    if not note_file.exists():
        train, test = _homework(protocol) if dataset == "homework" else _from_hub(dataset)
        kept = distinct(train, {question_text(record) for record in test})
        for path, records in ((train_file, kept), (test_file, test)):
            write_whole(path, "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
        left_out = len(train) - len(kept)
        said = f"{left_out} of {len(train)} training questions left out: in the test, or there twice" if left_out else ""
        write_whole(note_file, said)
    return train_file, test_file, note_file.read_text(encoding="utf-8")


def open_questions(stack: ExitStack, path: Path, count: int, template: str, *, chat: bool) -> tuple[JsonlTask, list[Question]]:
    """Return the task of a file and its first ``count`` questions as prompts: messages, or text for a model without chat."""
    task = stack.enter_context(JsonlTask(path, prompt_template=template))
    asked = list(task.questions(count))
    return task, [replace(one, prompt=[{"role": "user", "content": str(one.prompt)}]) for one in asked] if chat else asked


def check_disjoint(train: Iterable[Question], test: Iterable[Question]) -> None:
    """Raise ValueError if a question, by its words, is in both training and test."""
    known = {_words(str(one.prompt)): one.question_id for one in train}
    shared = [(known[words], one.question_id) for one in test if (words := _words(str(one.prompt))) in known]
    if shared:
        raise ValueError(
            f"{len(shared)} test questions are training questions too (the first: {shared[0][1]!r} is training's "
            f"{shared[0][0]!r}): what is measured on them is memory"
        )


def distinct(records: Iterable[dict[str, Any]], known: set[str]) -> Records:
    """Return the records whose question is neither among the ``known`` texts nor was there before."""
    seen, kept = set(known), []
    for record in records:
        if (text := question_text(record)) not in seen:
            seen.add(text)
            kept.append(record)
    return kept


def question_text(record: Mapping[str, Any]) -> str:
    """Return the words of a record's question, by which it is known."""
    return _words(str(record["question"]))


def digest_of(questions: Iterable[Question]) -> str:
    """Return a hash of questions and references, 16 hex digits: a run goes on with the same only."""
    content = json.dumps([[one.question_id, one.prompt, one.reference] for one in questions])
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def _words(text: str) -> str:
    return " ".join(text.split()).casefold()


def _homework(protocol: Protocol) -> tuple[Records, Records]:
    """Return questions of the tiny reasoner's world; its splits share none."""

    def drawn(split: Any, count: int) -> Records:
        asked = HomeworkTask(split).questions(count)
        return [{"id": one.question_id, "question": one.question_id, "answer": one.reference} for one in asked]

    return drawn("reward", protocol.train_questions), drawn("test", protocol.test_questions)


def _from_hub(dataset: str) -> tuple[Records, Records]:
    """Return training and test records of a data set: MATH's own training split and MATH-500 (which copies is our choice).

    GSM8K's splits, and AQuA's training split with validation and test together, are the published ones.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(
            f"--dataset {dataset} is read from the Hub by a package that is not here: `pip install datasets`, or give the "
            "questions by --data TRAIN.jsonl TEST.jsonl"
        ) from error
    if dataset == "math":
        parts = [load_dataset("DigitalLearningGmbH/MATH-lighteval", split="train")]
        parts.append(load_dataset("HuggingFaceH4/MATH-500", split="test"))
        train, test = ([{"question": r["problem"], "solution": r["solution"]} for r in part] for part in parts)
    elif dataset == "gsm8k":
        whole = load_dataset("openai/gsm8k", "main")
        train, test = ([{"question": r["question"], "answer": r["answer"]} for r in whole[part]] for part in ("train", "test"))
    else:
        whole = load_dataset("deepmind/aqua_rat", "raw")
        train, test = (
            [
                {"question": f"{r['question']}\n{' '.join(r['options'])}", "answer": r["correct"].strip()}
                for part in parts
                for r in whole[part]
            ]
            for parts in (("train",), ("validation", "test"))
        )
    return _numbered("train", train), _numbered("test", test)


def _numbered(split: str, records: Records) -> Records:
    return [{"id": f"{split}-{number}", **record} for number, record in enumerate(records)]
