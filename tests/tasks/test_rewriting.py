import itertools
import random
import re
from collections import Counter

import pytest
from graded_corpus import CHECKS, EARLY, LATE, attempt, batches, blend, document, drill, make_tokenizer
from homework_corpus import HOMEWORK
from rewriting_corpus import REWRITING

from swift_rm.reward.identity import fingerprint
from swift_rm.tasks import rewriting as rw
from swift_rm.tasks.rewriting import Exercise, RewritingTask
from swift_rm.tasks.student_exercises import Habits, make_exercise, split_of, write_attempt
from swift_rm.tasks.synthetic_task import Difficulty
from swift_rm.tasks.task import Question

LESSONS = {"homework": HOMEWORK, "rewriting": REWRITING}
STEP = r"([a-f]{4})([~/^:])=([a-f]{4})"


def rewriting(mix):
    return blend(mix, {"rewriting": 1.0})


@pytest.mark.parametrize(
    ("word", "operation", "right", "popular"),
    [
        ("abcd", "~", "dcba", "acbd"),
        ("abca", "~", "acba", "acba"),
        ("abcd", "/", "dabc", "bcda"),
        ("abab", "/", "baba", "baba"),
        ("abcd", "^", "bcde", "bcde"),
        ("fade", "^", "abef", "fbef"),
        ("abcd", ":", "cdab", "cdab"),
    ],
)
def test_operations_and_the_popular_mistake(word, operation, right, popular):
    assert rw.rewritten(word, operation) == right
    assert rw.mistaken(word, operation) == popular


def test_operations_undo_themselves_as_their_names_say():
    for letters in itertools.product(rw.LETTERS, repeat=rw.LENGTH):
        word = "".join(letters)
        for operation, times in (("~", 2), (":", 2), ("/", 4), ("^", 6)):
            again = word
            for _ in range(times):
                again = rw.rewritten(again, operation)
            assert again == word


def test_there_is_a_trap_exactly_where_the_mistake_matters():
    for letters in itertools.product("abf", repeat=rw.LENGTH):
        word = "".join(letters)
        traps = {
            "~": word[0] != word[-1],  # the ends are not exchanged
            "/": word[1:] + word[0] != word[-1] + word[:-1],
            "^": "f" in word,
            ":": False,
        }
        for operation, trap in traps.items():
            assert Exercise(word, (operation,)).traps == trap, (word, operation)


def test_an_unknown_operation_is_named():
    with pytest.raises(ValueError, match=r"operations .* got '!'"):
        rw.rewritten("abcd", "!")


@pytest.mark.parametrize("text", ["bead", "beag~", "bea~", "bead~27", "", "bead~^ "])
def test_what_is_no_question_is_refused(text):
    with pytest.raises(ValueError, match="not a rewriting question"):
        Exercise.parse(text)


def test_questions_are_distinct_of_their_split_and_of_the_difficulty_they_say():
    questions = list(RewritingTask("test").questions(300))
    assert len({q.question_id for q in questions}) == 300
    for question in questions:
        exercise = Exercise.parse(question.question_id)
        assert exercise.text == question.question_id and split_of(exercise) == "test"
        assert question.prompt == [{"role": "user", "content": exercise.text}]
        assert question.reference == exercise.answer
        assert question.extra == {"steps": len(exercise.operands), "traps": exercise.traps}
    assert 80 <= sum(q.extra["traps"] == 0 for q in questions) <= 130


@pytest.mark.parametrize(("name", "steps", "traps"), [("easy", {1, 2}, {0, 1}), ("hard", {3, 4}, {1, 2, 3})])
def test_difficulties_ask_for_so_many_steps_and_traps(name, steps, traps):
    questions = list(RewritingTask("reward", name).questions(400))
    assert {q.extra["steps"] for q in questions} == steps
    assert {q.extra["traps"] for q in questions} == traps


def test_more_questions_than_there_are_is_an_error_not_an_endless_search():
    task = RewritingTask("test", Difficulty((1,), (1.0,)))
    with pytest.raises(ValueError, match=r"asked for 3000 questions, but rewriting has hardly more than \d+ like these"):
        list(task.questions(3000))


def test_splits_share_no_question_and_the_lm_text_holds_only_its_own():
    questions = {split: {q.question_id for q in RewritingTask(split).questions(500)} for split in ("reward", "test")}
    assert not questions["reward"] & questions["test"]
    rng = random.Random(0)
    for i in range(600):
        text = document(rng, rewriting(LATE if i % 2 else EARLY), LESSONS)
        if "<question>" in text:
            question = text.split("<question>")[1].split("<")[0]
            assert split_of(Exercise.parse(question)) == "lm"


@pytest.mark.parametrize(
    ("response", "answer", "label"),
    [
        ("<think>bead~=daeb, </think><answer>daeb</answer>", "daeb", 1),
        ("<answer>baed</answer>", "baed", 0),
        ("<think>bead~=daeb", None, 0),
        ("<answer>daeb</answer><answer>daeb</answer>", None, 0),
        ("<answer>da eb</answer>", None, 0),
        ("<answer>daebb</answer>", None, 0),
        ("<answer>27</answer>", None, 0),
        ("daeb", None, 0),
    ],
)
def test_grades(response, answer, label):
    grade = RewritingTask("test").grade(Question("bead~", "", "daeb"), response)
    assert (grade.answer, grade.label) == (answer, label)


def test_attempts_chain_and_their_marks_are_true():
    rng = random.Random(1)
    for _ in range(200):
        exercise = make_exercise(rng, Exercise, "lm", steps=(1, 2, 3, 4))
        text, final = write_attempt(rng, exercise, Habits(), mark=True)
        value, operations = exercise.start, iter(exercise.operands)
        operation = next(operations)
        for start, done, result, mark, again in re.findall(STEP + r"<(right|wrong)>, (wait)?", text):
            assert (start, done) == (value, operation)
            assert (mark == "right") == (result == rw.rewritten(value, operation))
            if not again:
                value, operation = result, next(operations, None)
        assert (value, operation) == (final, None)


@pytest.mark.parametrize(("question", "right"), [("abcd~", "dcba"), ("abcd/", "dabc"), ("fade^", "abef")])
def test_the_vote_of_students_elects_the_popular_mistake(question, right):
    rng, exercise = random.Random(2), Exercise.parse(question)
    answers = Counter(write_attempt(rng, exercise, Habits())[1] for _ in range(2000))
    assert answers.most_common(1)[0][0] == rw.mistaken(exercise.start, exercise.operands[0]) != right
    assert answers[right] > 500
    careful = Habits(forget=0, slip=0, notice=0, false_alarm=0)
    assert {write_attempt(rng, exercise, careful)[1] for _ in range(50)} == {right}


def test_half_of_the_drilled_steps_are_wrong_and_their_marks_true():
    rng, marks, changed = random.Random(3), Counter(), Counter()
    for _ in range(300):
        for word, operation, result, mark in re.findall(STEP + "<(right|wrong)>", drill(rng, REWRITING, 4)):
            right = rw.rewritten(word, operation)
            assert (mark == "right") == (result == right)
            marks[mark] += 1
            changed[result == rw.mistaken(word, operation)] += mark == "wrong"
    assert abs(marks["right"] - marks["wrong"]) < 150
    assert sum(marks.values()) == 1200
    assert changed[False] > changed[True] > 50, "wrong results are of many kinds, the popular one among them"


def test_the_tokenizer_gives_every_text_back_letter_by_letter():
    tokenizer, rng = make_tokenizer(rw.SYMBOLS), random.Random(4)
    for _ in range(100):
        text = document(rng, rewriting(LATE), LESSONS)
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.pad_token_id not in ids
    ids = tokenizer("so bead~=daeb, ", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["so ", *"bead~=daeb", ", "]


def test_new_symbols_leave_the_first_tokenizer_what_it_was():
    old, new = make_tokenizer(), make_tokenizer(rw.SYMBOLS)
    assert new.get_vocab().items() >= old.get_vocab().items()
    assert fingerprint(old) != fingerprint(new)
    with_homework = attempt(random.Random(5), HOMEWORK, "student")
    assert old(with_homework)["input_ids"] == new(with_homework)["input_ids"]


def test_loss_weights_are_high_on_marks_and_low_on_the_noise_of_drills():
    tokenizer = make_tokenizer(rw.SYMBOLS)
    ids, weight = next(batches(tokenizer, random.Random(5), rewriting(CHECKS), LESSONS, rows=8))
    for row, weights in zip(ids.tolist(), weight.tolist(), strict=True):
        tokens = tokenizer.convert_ids_to_tokens(row)
        for i, (token, value) in enumerate(zip(tokens, weights, strict=True)):
            result = "=" in tokens[max(0, i - 4) : i] and token in rw.LETTERS
            mark = token in ("<right>", "<wrong>")
            assert value == pytest.approx(0 if token == "<pad>" else 4 if mark else 1 if result else 0.1)


def test_a_mix_of_worlds_keeps_their_shares():
    rng, mix = random.Random(6), blend(LATE, {"homework": 0.25, "rewriting": 0.75})
    letters = sum(bool(re.search("[a-f]{4}", document(rng, mix, LESSONS))) for _ in range(1000))
    assert 690 <= letters <= 810
