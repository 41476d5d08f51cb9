"""Find a task by what the command line calls it: a world with its split and difficulty, or a JSONL file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from swift_rm.tasks.task import Grade, Question

if TYPE_CHECKING:
    from swift_rm.tasks.jsonl import Grading
    from swift_rm.tasks.synthetic_task import SyntheticTask

WORLDS = ("homework", "rewriting")
QUESTIONS = 400  # asked of a world when nobody says how many

OpenTask = tuple[list[Question], Callable[[Question, str], Grade], Callable[[], None]]


def open_task(name: str, *, questions: int | None, seed: int, grading: Grading, chat_template: bool) -> OpenTask:
    """Return the questions of a task, its grader, and what to call when done with both.

    Args:
        name: ``homework`` or ``rewriting``, with ``:split`` (reward if left out) and ``:difficulty`` (mixed), such as
            ``homework:test:hard``; anything else is the path of a file of questions and answers.
        questions: how many (None: 400 of a world, all of a file).
        seed: draws a world's questions; a file's keep their order.
        grading: how a file's answers are graded, see `JsonlTask`.
        chat_template: whether the model has one; without, a file's questions become plain text.

    Raises ValueError for a name, split or difficulty that is none, more questions than there are, and for a file as
    `JsonlTask` does.
    """
    world, *parts = name.split(":")
    if world not in WORLDS:
        if not Path(name).exists():
            worlds = " or ".join(WORLDS)
            raise ValueError(f"no task and no file is called {name!r}; give {worlds} (:SPLIT:DIFFICULTY), or a JSONL file")
        from swift_rm.tasks.jsonl import JsonlTask

        file = JsonlTask(name, grading=grading, prompt_template=None if chat_template else "{question}")
        return list(file.questions(questions)), file.grade, file.close
    if len(parts) > 2:
        raise ValueError(f"a task is NAME:SPLIT:DIFFICULTY, such as {world}:test:hard, got {name!r}")
    task = open_world(world, *parts)
    return list(task.questions(QUESTIONS if questions is None else questions, seed)), task.grade, lambda: None


def open_world(name: str, split: str = "", difficulty: str = "") -> SyntheticTask:
    """Return the task of a world; what is left empty is its default. Raises ValueError for a name that is none."""
    from swift_rm.tasks.homework import HomeworkTask
    from swift_rm.tasks.rewriting import RewritingTask

    kinds: dict[str, type[SyntheticTask]] = {kind.name: kind for kind in (HomeworkTask, RewritingTask)}
    if name not in kinds:
        raise ValueError(f"the worlds are {tuple(kinds)}, got {name!r}")
    return kinds[name](split or "reward", difficulty or "mixed")  # type: ignore[arg-type]
