"""The text the tiny reasoner is trained on: graded homework, drills of single steps, textbooks, and answers given at once."""

from __future__ import annotations

import random
from collections.abc import Iterator

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from swift_rm.tasks import homework as hw

CHAT_TEMPLATE = (
    "<bos>{% for m in messages %}{% if m.role == 'user' %}<question>{{ m.content }}"
    "{% else %}<student>{{ m.content }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<student>"
    "{% if enable_thinking is not defined or enable_thinking %}<think_on>"
    "{% elif enable_thinking is false %}<think_off>{% endif %}{% endif %}"
)
STUDENT = hw.Habits()
TEXTBOOK = hw.Habits(forget=0, slip=0, notice=0, false_alarm=0, filler=0.3)
SUMS = {"sum-1": 1.0}
CHECKS = {"sum-1": 0.1, "check-1": 0.9}
LONGER_CHECKS = {"sum-4": 0.1, "check-1": 0.4, "check-2": 0.2, "check-3": 0.15, "check-4": 0.15}
EARLY = {"check-1": 0.1, "check-4": 0.3, "textbook": 0.15, "marked": 0.25, "student": 0.2, "direct": 0.0}
POLISH = {"check-4": 0.05, "textbook": 0.05, "marked": 0.1, "student": 0.7, "direct": 0.1}
LATE = {"check-4": 0.12, "textbook": 0.1, "marked": 0.15, "student": 0.53, "direct": 0.1}


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer: digits, signs, connecting words with their space, and tags; only turn marks count as special."""
    vocabulary = {token: i for i, token in enumerate((*hw.SPECIAL_TOKENS, *hw.SYMBOLS, *hw.FILLERS, hw.NOTICE))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+ |, |."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(tag, special=tag in hw.TURN_TOKENS, normalized=False) for tag in hw.SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=CHAT_TEMPLATE,
        padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def drill(rng: random.Random, steps: int, textbook: bool = False) -> str:
    """Write unrelated steps, half of them wrong, each marked: only doing the sum tells the mark, never frequency.

    A textbook's steps are all right and unmarked.
    """
    parts = []
    habits = hw.Habits(filler=0.0 if steps == 1 else 0.2)
    for _ in range(steps):
        value, operand = rng.randrange(100), rng.choice((-1, 1)) * rng.randrange(1, 100)
        wrong = not textbook and rng.random() < 0.5
        result = mistaken(rng, value, operand) if wrong else (value + operand) % 100
        mark = "" if textbook else "<wrong>" if wrong else "<right>"
        parts.append(hw.fillers(rng, habits) + hw.write_step(value, operand, result) + mark)
    return f"<bos>{'<textbook>' if textbook else '<marked>'}" + ", ".join([*parts, ""]) + "<eos>"


def mistaken(rng: random.Random, value: int, operand: int) -> int:
    """Return a wrong result of any kind: students' own mistakes alone differ so little that checking is not learnt from them."""
    right = (value + operand) % 100
    if hw.needs_carry(value, operand) and rng.random() < 0.3:
        return hw.forgotten(value, operand)
    kind = rng.randrange(3)
    if kind == 0:
        return (right + rng.randrange(1, 100)) % 100
    if kind == 1:
        return (right + 10 * rng.randrange(1, 10)) % 100
    return right // 10 * 10 + (right % 10 + rng.randrange(1, 10)) % 10


def attempt(rng: random.Random, author: str) -> str:
    """Write one graded attempt with thinking."""
    exercise = hw.make_exercise(rng, "lm", steps=(1, 2, 3, 4))
    habits = TEXTBOOK if author == "textbook" else STUDENT
    text, value = hw.write_attempt(rng, exercise, habits, mark=author == "marked")
    return f"<bos><question>{exercise.text}<{author}><think_on><think>{text}</think>{_answer(exercise, value)}"


def direct(rng: random.Random) -> str:
    """Write one graded answer that a student gives at once."""
    exercise = hw.make_exercise(rng, "lm", steps=(1, 2, 3, 4))
    _, value = hw.write_attempt(rng, exercise, STUDENT)
    return f"<bos><question>{exercise.text}<student><think_off>{_answer(exercise, value)}"


def document(rng: random.Random, mix: dict[str, float]) -> str:
    """Draw one document; raise RuntimeError should its question not be of the LM's split: others are never to be seen."""
    kind = rng.choices(list(mix), list(mix.values()))[0]
    if "-" in kind:
        name, _, steps = kind.partition("-")
        return drill(rng, int(steps), textbook=name == "sum")
    text = direct(rng) if kind == "direct" else attempt(rng, kind)
    question = text[len("<bos><question>") : text.index("<", len("<bos><question>"))]
    if hw.split_of(hw.parse(question)) != "lm":
        raise RuntimeError(f"the question {question} belongs to another split than the language model's")
    return text


def batches(
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    mix: dict[str, float],
    rows: int,
    mark_weight: float = 4.0,
    grade_weight: float = 4.0,
    notice_weight: float = 1.0,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of documents of like length: ids ``[rows, length]`` and loss weights.

    Marks weigh more. In drills all but results and marks is noise to the model and weighs little. ``grade_weight`` is that
    of the final grade of a student's steps, ``notice_weight`` that of the word after each of them: whether it is "wait".
    """
    names = ["<right>", "<wrong>", "=", "<question>", "<student>", "<think>", "<eos>", ", "]
    right, wrong, equals, question, student, think, end, comma = tokenizer.convert_tokens_to_ids(names)
    while True:
        texts = [document(rng, mix) for _ in range(rows * 4)]
        pool = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        starts = list(range(0, len(pool), rows))
        rng.shuffle(starts)
        for start in starts:
            chunk = pool[start : start + rows]
            width = max(map(len, chunk))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in chunk])
            weight = (ids != 0).float()
            result = torch.zeros_like(weight)
            result[:, 1:] += (ids == equals)[:, :-1]
            result[:, 2:] += (ids == equals)[:, :-2]
            weight[(ids[:, 1] != question)[:, None] & (result == 0)] *= 0.1
            mark = (ids == right) | (ids == wrong)
            weight[mark] = mark_weight
            steps = ((ids == student).any(1) & (ids == think).any(1))[:, None]
            after = torch.zeros_like(ids).index_copy(1, torch.arange(1, width), ids[:, :-1])
            weight[steps & mark & (after == end)] = grade_weight
            weight[steps & (after == comma)] *= notice_weight
            yield ids, weight


def _answer(exercise: hw.Exercise, value: int) -> str:
    grade = "<right>" if value == exercise.answer else "<wrong>"
    return f"<answer>{value:02d}</answer><eos>{grade}"
