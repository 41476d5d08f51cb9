import json

import pytest

from swift_rm.tasks.homework import HomeworkTask
from swift_rm.tasks.rewriting import RewritingTask
from swift_rm.tasks.task_lookup import WORLDS, open_task, open_world

OPTIONS = {"questions": 20, "seed": 3, "grading": "auto", "chat_template": True}


@pytest.mark.parametrize(
    ("name", "task"),
    [
        ("homework", HomeworkTask("reward", "mixed")),
        ("homework:test", HomeworkTask("test", "mixed")),
        ("homework:test:hard", HomeworkTask("test", "hard")),
        ("homework::easy", HomeworkTask("reward", "easy")),
        ("rewriting", RewritingTask("reward", "mixed")),
        ("rewriting:lm:easy", RewritingTask("lm", "easy")),
    ],
)
def test_a_world_is_opened_by_name_split_and_difficulty(name, task):
    questions, grade, close = open_task(name, **OPTIONS)
    assert questions == list(task.questions(20, seed=3))
    first = questions[0]
    assert grade(first, f"<answer>{first.reference}</answer>").label == 1
    close()


def test_every_world_that_is_named_exists():
    assert [open_world(name).name for name in WORLDS] == list(WORLDS)


def test_a_world_gives_400_questions_when_nobody_says_how_many():
    assert len(open_task("homework", **{**OPTIONS, "questions": None})[0]) == 400


@pytest.mark.parametrize("chat_template", [True, False])
def test_a_file_is_opened_and_graded(tmp_path, chat_template):
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i}+1?", "answer": str(i + 1)}) + "\n" for i in range(3)))
    options = {**OPTIONS, "chat_template": chat_template}
    questions, grade, close = open_task(str(path), **{**options, "questions": 2})
    try:
        text = "0+1?"
        assert [q.reference for q in questions] == ["1", "2"]
        assert questions[0].prompt == ([{"role": "user", "content": text}] if chat_template else text)
        assert [grade(questions[0], answer).label for answer in ("The answer is 1.", "The answer is 2.")] == [1, 0]
    finally:
        close()
    assert len(open_task(str(path), **{**options, "questions": None})[0]) == 3


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("homewerk", "no task and no file is called 'homewerk'; give homework or rewriting"),
        ("homework:exam", "homework world has the splits .* got 'exam'"),
        ("rewriting:test:cruel", r"rewriting world has the difficulties \('mixed', 'easy', 'hard', 'wide'\), got 'cruel'"),
        ("rewriting:test:hard:very", "NAME:SPLIT:DIFFICULTY, such as rewriting:test:hard, got 'rewriting:test:hard:very'"),
    ],
)
def test_a_name_that_is_none_is_an_error_that_says_what_there_is(name, message):
    with pytest.raises(ValueError, match=message):
        open_task(name, **OPTIONS)


def test_open_world_names_the_worlds():
    with pytest.raises(ValueError, match=r"worlds are \('homework', 'rewriting'\), got 'chess'"):
        open_world("chess")
