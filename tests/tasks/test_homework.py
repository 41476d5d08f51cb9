import random
import re
from collections import Counter

import pytest
from graded_corpus import CHECKS, EARLY, LATE, batches, blend, document, drill
from homework_corpus import HOMEWORK, make_tokenizer

from swift_rm.tasks import homework as hw
from swift_rm.tasks.homework import Exercise, HomeworkTask
from swift_rm.tasks.student_exercises import make_exercise
from swift_rm.tasks.task import Question

LESSONS = {"homework": HOMEWORK}


def homework(mix):
    return blend(mix, {"homework": 1.0})


@pytest.mark.parametrize(
    ("value", "operand", "carry", "forgotten"),
    [
        (27, 15, True, 32),
        (21, 15, False, 36),
        (42, -8, True, 44),
        (48, -8, False, 40),
        (95, 17, True, 2),
        (3, -14, True, 99),
        (0, 90, False, 90),
    ],
)
def test_carries_and_what_forgetting_them_gives(value, operand, carry, forgotten):
    assert hw.needs_carry(value, operand) is carry
    assert hw.forgotten(value, operand) == forgotten


def test_forgetting_is_wrong_exactly_where_a_carry_is_needed():
    for value in range(100):
        for operand in range(-99, 100):
            assert (hw.forgotten(value, operand) != (value + operand) % 100) == hw.needs_carry(value, operand)


def test_questions_are_distinct_of_their_split_and_of_the_difficulty_they_say():
    questions = list(HomeworkTask("test").questions(300))
    assert len({q.question_id for q in questions}) == 300
    for question in questions:
        exercise = hw.parse(question.question_id)
        assert hw.split_of(exercise) == "test"
        assert question.prompt == [{"role": "user", "content": exercise.text}]
        assert question.reference == f"{exercise.answer:02d}"
        assert question.extra == {"steps": len(exercise.operands), "carries": exercise.carries}
    assert 80 <= sum(q.extra["carries"] == 0 for q in questions) <= 130


def test_the_questions_of_a_seed_stay_what_they_were_before_there_were_difficulties():
    questions = [q.question_id for q in HomeworkTask("test").questions(3)]
    assert questions == ["82-51+77+01-25", "79+13-07+90-24", "28-64-94+40-86"]
    assert [q.question_id for q in HomeworkTask("test", "mixed").questions(3)] == questions


@pytest.mark.parametrize(("name", "steps", "carries"), [("easy", {1, 2}, {0, 1}), ("hard", {3, 4}, {1, 2, 3})])
def test_difficulties_ask_for_so_many_steps_and_carries(name, steps, carries):
    questions = list(HomeworkTask("reward", name).questions(400))
    assert {q.extra["steps"] for q in questions} == steps
    counts = Counter(q.extra["carries"] for q in questions)
    assert set(counts) == carries
    assert all(hw.split_of(hw.parse(q.question_id)) == "reward" for q in questions)
    if name == "easy":
        assert 160 <= counts[1] <= 240


def test_a_split_or_difficulty_that_is_none_is_named():
    with pytest.raises(ValueError, match=r"difficulties \('mixed', 'easy', 'hard', 'wide'\), got 'cruel'"):
        HomeworkTask("test", "cruel")
    with pytest.raises(ValueError, match=r"splits .* got 'exam'"):
        HomeworkTask("exam")


def test_splits_share_no_question_and_the_lm_text_holds_only_its_own():
    questions = {split: {q.question_id for q in HomeworkTask(split).questions(500)} for split in ("reward", "test")}
    assert not questions["reward"] & questions["test"]
    rng = random.Random(0)
    for i in range(600):
        text = document(rng, homework(LATE if i % 2 else EARLY), LESSONS)
        if "<question>" in text:
            question = text.split("<question>")[1].split("<")[0]
            assert hw.split_of(hw.parse(question)) == "lm"


@pytest.mark.parametrize(
    ("response", "answer", "label"),
    [
        ("<think>27+15=42, </think><answer>42</answer>", "42", 1),
        ("<answer>32</answer>", "32", 0),
        ("<think>27+15=42", None, 0),
        ("<answer>42</answer><answer>42</answer>", None, 0),
        ("<answer>4 2</answer>", None, 0),
        ("42", None, 0),
    ],
)
def test_grades(response, answer, label):
    question = Question("27+15", "", "42")
    grade = HomeworkTask("test").grade(question, response)
    assert (grade.answer, grade.label) == (answer, label)


def test_attempts_chain_and_their_marks_are_true():
    rng = random.Random(1)
    for _ in range(200):
        exercise = make_exercise(rng, Exercise, "lm", steps=(1, 2, 3, 4))
        text, final = hw.write_attempt(rng, exercise, hw.Habits(), mark=True)
        value = exercise.start
        steps = re.findall(r"(\d\d)([+-]\d\d)=(\d\d)<(right|wrong)>, (wait)?", text)
        operands = iter(exercise.operands)
        operand = next(operands)
        for start, shift, result, mark, again in steps:
            assert (int(start), int(shift)) == (value, operand)
            assert (mark == "right") == (int(result) == (value + operand) % 100)
            if not again:
                value, operand = int(result), next(operands, None)
        assert (value, operand) == (final, None)


def test_students_forget_more_often_than_not_and_textbooks_never():
    rng = random.Random(2)
    exercise = Exercise(27, (15,))
    answers = Counter(hw.write_attempt(rng, exercise, hw.Habits())[1] for _ in range(2000))
    assert answers.most_common(2)[0][0] == 32
    assert answers[42] > 500
    careful = hw.Habits(forget=0, slip=0, notice=0, false_alarm=0)
    assert {hw.write_attempt(rng, exercise, careful)[1] for _ in range(50)} == {42}


def test_half_of_the_drilled_steps_are_wrong_and_their_marks_true():
    rng = random.Random(3)
    marks = Counter()
    for _ in range(300):
        for value, operand, result, mark in re.findall(r"(\d\d)([+-]\d\d)=(\d\d)<(right|wrong)>", drill(rng, HOMEWORK, 4)):
            assert (mark == "right") == (int(result) == (int(value) + int(operand)) % 100)
            marks[mark] += 1
    assert abs(marks["right"] - marks["wrong"]) < 150
    assert sum(marks.values()) == 1200


def test_the_tokenizer_gives_every_text_back():
    tokenizer, rng = make_tokenizer(), random.Random(4)
    for _ in range(100):
        text = document(rng, homework(LATE), LESSONS)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text
    messages = [{"role": "user", "content": "27+15"}]
    for thinking, mode in ((True, "<think_on>"), (False, "<think_off>"), (None, "")):
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking)
        assert text == f"<bos><question>27+15<student>{mode}"


def test_loss_weights_are_high_on_marks_and_low_on_the_noise_of_drills():
    tokenizer = make_tokenizer()
    ids, weight = next(batches(tokenizer, random.Random(5), homework(CHECKS), LESSONS, rows=8))
    for row, weights in zip(ids.tolist(), weight.tolist(), strict=True):
        tokens = tokenizer.convert_ids_to_tokens(row)
        for i, (token, value) in enumerate(zip(tokens, weights, strict=True)):
            result = "=" in tokens[max(0, i - 2) : i]
            mark = token in ("<right>", "<wrong>")
            assert value == pytest.approx(0 if token == "<pad>" else 4 if mark else 1 if result else 0.1)


def test_what_is_no_question_is_refused():
    with pytest.raises(ValueError, match="not a homework question: '27'"):
        hw.parse("27")
