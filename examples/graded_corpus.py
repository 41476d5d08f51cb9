"""The text tiny reasoners are trained on: graded attempts, drills of single steps, textbooks, and answers given at once.

Every world gives its `Lesson`; a mix of kinds of documents is data, such as
``{"homework/check-1": 0.9, "rewriting/student": 0.1}``.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from swift_rm.tasks import homework
from swift_rm.tasks import student_exercises as world

CHAT_TEMPLATE = (
    "<bos>{% for m in messages %}{% if m.role == 'user' %}<question>{{ m.content }}"
    "{% else %}<student>{{ m.content }}<eos>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<student>"
    "{% if enable_thinking is not defined or enable_thinking %}<think_on>"
    "{% elif enable_thinking is false %}<think_off>{% endif %}{% endif %}"
)
STUDENT = world.Habits()
TEXTBOOK = world.Habits(forget=0, slip=0, notice=0, false_alarm=0, filler=0.3)
SUMS = {"sum-1": 1.0}
CHECKS = {"sum-1": 0.1, "check-1": 0.9}
LONGER_CHECKS = {"sum-4": 0.1, "check-1": 0.4, "check-2": 0.2, "check-3": 0.15, "check-4": 0.15}
EARLY = {"check-1": 0.1, "check-4": 0.3, "textbook": 0.15, "marked": 0.25, "student": 0.2, "direct": 0.0}
POLISH = {"check-4": 0.05, "textbook": 0.05, "marked": 0.1, "student": 0.7, "direct": 0.1}
LATE = {"check-4": 0.12, "textbook": 0.1, "marked": 0.15, "student": 0.53, "direct": 0.1}

TEXTS = {"check-1": 0.03, "check-4": 0.04, "textbook": 0.2, "marked": 0.2, "student": 0.48, "direct": 0.05}
COPIES = {"textbook": 0.35, "marked": 0.15, "student": 0.45, "direct": 0.05}
MARKS = {"check-1": 0.55, "check-2": 0.15, "marked": 0.3}
GROWN = {"check-1": 0.15, "check-4": 0.1, "textbook": 0.05, "marked": 0.25, "student": 0.4, "direct": 0.05}


@dataclass(frozen=True)
class Lesson:
    """What drills of a world are made of: unrelated steps, and wrong results of any kind.

    ``letters`` are the tokens that values consist of, ``symbols`` those that homework does not have.
    """

    world: world.World
    draw: Callable[[random.Random], tuple[Any, Any]]
    mistaken: Callable[[random.Random, Any, Any], Any]
    letters: str
    symbols: tuple[str, ...] = ()


def blend(mix: Mapping[str, float], shares: Mapping[str, float]) -> dict[str, float]:
    """Return the mix of kinds in every world: ``{"check-1": 1}, {"homework": 1}`` gives ``{"homework/check-1": 1}``."""
    return {f"{name}/{kind}": share * part for name, share in shares.items() for kind, part in mix.items()}


def make_tokenizer(symbols: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """Build the tokenizer: digits, signs, connecting words with their space, and tags; only turn marks count as special.

    ``symbols`` are those of worlds beside homework; they follow the others, whose ids stay what they are.
    """
    tokens = (*world.SPECIAL_TOKENS, *homework.SYMBOLS, *world.FILLERS, world.NOTICE, *symbols)
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[a-z]+ |, |."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_tokens([AddedToken(tag, special=tag in world.TURN_TOKENS, normalized=False) for tag in world.SPECIAL_TOKENS])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", chat_template=CHAT_TEMPLATE,
        padding_side="left", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def drill(rng: random.Random, lesson: Lesson, steps: int, textbook: bool = False) -> str:
    """Write unrelated steps, half of them wrong, each marked: only doing the step tells the mark, never frequency.

    A textbook's steps are all right and unmarked.
    """
    parts = []
    habits = world.Habits(filler=0.0 if steps == 1 else 0.2)
    for _ in range(steps):
        value, operation = lesson.draw(rng)
        wrong = not textbook and rng.random() < 0.5
        result = lesson.mistaken(rng, value, operation) if wrong else lesson.world.do(value, operation)
        mark = "" if textbook else "<wrong>" if wrong else "<right>"
        step = lesson.world(value, (operation,)).write_step(value, operation, result)
        parts.append(world.fillers(rng, habits) + step + mark)
    return f"<bos>{'<textbook>' if textbook else '<marked>'}" + ", ".join([*parts, ""]) + "<eos>"


def attempt(rng: random.Random, lesson: Lesson, author: str) -> str:
    """Write one graded attempt with thinking."""
    exercise = world.make_exercise(rng, lesson.world, "lm", steps=(1, 2, 3, 4))
    habits = TEXTBOOK if author == "textbook" else STUDENT
    text, value = world.write_attempt(rng, exercise, habits, mark=author == "marked")
    return f"<bos><question>{exercise.text}<{author}><think_on><think>{text}</think>{_answer(exercise, value)}"


def direct(rng: random.Random, lesson: Lesson) -> str:
    """Write one graded answer that a student gives at once."""
    exercise = world.make_exercise(rng, lesson.world, "lm", steps=(1, 2, 3, 4))
    _, value = world.write_attempt(rng, exercise, STUDENT)
    return f"<bos><question>{exercise.text}<student><think_off>{_answer(exercise, value)}"


def document(rng: random.Random, mix: Mapping[str, float], lessons: Mapping[str, Lesson]) -> str:
    """Draw one document; raise RuntimeError should its question not be of the LM's split: others are never to be seen."""
    chosen = rng.choices(list(mix), list(mix.values()))[0]
    name, _, kind = chosen.partition("/")
    lesson = lessons[name]
    if "-" in kind:
        shape, _, steps = kind.partition("-")
        return drill(rng, lesson, int(steps), textbook=shape == "sum")
    text = direct(rng, lesson) if kind == "direct" else attempt(rng, lesson, kind)
    question = text[len("<bos><question>") : text.index("<", len("<bos><question>"))]
    if world.split_of(lesson.world.parse(question)) != "lm":
        raise RuntimeError(f"the question {question} belongs to another split than the language model's")
    return text


def batches(
    tokenizer: PreTrainedTokenizerFast,
    rng: random.Random,
    mix: Mapping[str, float],
    lessons: Mapping[str, Lesson],
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
    value = torch.zeros(len(tokenizer), dtype=torch.bool)
    for lesson in lessons.values():
        value[tokenizer.convert_tokens_to_ids(list(lesson.letters))] = True
    while True:
        texts = [document(rng, mix, lessons) for _ in range(rows * 4)]
        pool = sorted(tokenizer(texts, add_special_tokens=False)["input_ids"], key=len)
        starts = list(range(0, len(pool), rows))
        rng.shuffle(starts)
        for start in starts:
            chunk = pool[start : start + rows]
            width = max(map(len, chunk))
            ids = torch.tensor([row + [0] * (width - len(row)) for row in chunk])
            weight = (ids != 0).float()
            result = _results(ids == equals, value[ids])
            weight[(ids[:, 1] != question)[:, None] & ~result] *= 0.1
            mark = (ids == right) | (ids == wrong)
            weight[mark] = mark_weight
            steps = ((ids == student).any(1) & (ids == think).any(1))[:, None]
            after = torch.zeros_like(ids).index_copy(1, torch.arange(1, width), ids[:, :-1])
            weight[steps & mark & (after == end)] = grade_weight
            weight[steps & (after == comma)] *= notice_weight
            yield ids, weight


def _results(equals: Tensor, value: Tensor) -> Tensor:
    """Tell which tokens are of a value that follows an equals sign, all three ``[rows, length]``."""
    found, reached = torch.zeros_like(value), equals
    while reached.any():
        reached = torch.nn.functional.pad(reached[:, :-1], (1, 0)) & value
        found |= reached
    return found


def _answer(exercise: world.Exercise[Any, Any], value: Any) -> str:
    grade = "<right>" if value == exercise.answer else "<wrong>"
    return f"<answer>{exercise.show(value)}</answer><eos>{grade}"
