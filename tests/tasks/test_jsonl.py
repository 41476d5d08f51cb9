"""JsonlTask: reading GSM8K, MATH and other files, prompts, order, and grading by the kind of reference."""

import importlib.util
import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from swift_rm.tasks.jsonl import JsonlTask, grading_of
from swift_rm.tasks.task import Grade, Question, Task

GSM8K = {
    "question": "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. "
    "How many clips did Natalia sell altogether in April and May?",
    "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\n"
    "Natalia sold 48+24 = <<48+24=72>>72 clips altogether in April and May.\n#### 72",
}
GSM8K_LARGE = {"question": "How much is the house?", "answer": "He made 1,000*70 = $70,000\n#### 70,000"}
MATH = {
    "problem": r"Compute $\sin 45^\circ$.",
    "level": "Level 2",
    "type": "Precalculus",
    "solution": r"We have $\sin 45^\circ = \frac{1}{\sqrt{2}} = \boxed{\frac{\sqrt{2}}{2}}$.",
}
MATH_WORD = {
    "problem": "Which student has the greatest average speed?",
    "level": "Level 2",
    "type": "Algebra",
    "solution": "Evelyn covered more distance in less time,\nso the answer is\n$\\boxed{\\text{Evelyn}}$.",
}
MATH_500 = {
    "problem": "How many positive whole-number divisors does 196 have?",
    "solution": "First prime factorize $196=2^2\\cdot7^2$.\nHence $3\\cdot3=\\boxed{9}$.",
    "answer": "9",
    "subject": "Number Theory",
    "level": 3,
    "unique_id": "test/number_theory/572.json",
}


def write(path: Path, *records: Any) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def load(tmp_path: Path, *records: Any, **options: Any) -> JsonlTask:
    return JsonlTask(write(tmp_path / "file.jsonl", *records), **options)


def test_gsm8k_is_read_as_published(tmp_path: Path) -> None:
    task = JsonlTask(write(tmp_path / "gsm8k.jsonl", GSM8K, GSM8K_LARGE))
    first, second = task.questions()
    assert first == Question("gsm8k-1", [{"role": "user", "content": GSM8K["question"]}], "72", {"answer": GSM8K["answer"]})
    assert second.reference == "70000"
    assert task.name == "gsm8k" and len(task) == 2 and task.grader is None
    responses = ["24 + 48 = 72\n#### 72", "So 72 clips, \\boxed{72.00}.", "She sold $73.", "I cannot tell."]
    assert [task.grade(first, response) for response in responses] == [
        Grade("72", 1),
        Grade("72", 1),
        Grade("73", 0),
        Grade(None, 0),
    ]
    assert task.grade(second, "The answer is $70,000.") == Grade("70000", 1)


def test_math_is_read_as_published_and_graded_by_the_kind_of_reference(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    with load(tmp_path, MATH, MATH_WORD, MATH_500) as task:
        sine, word, divisors = task.questions()
        assert [question.reference for question in (sine, word, divisors)] == [r"\frac{\sqrt{2}}{2}", r"\text{Evelyn}", "9"]
        assert dict(sine.extra) == {name: MATH[name] for name in ("level", "type", "solution")}
        assert dict(divisors.extra) == {name: MATH_500[name] for name in ("solution", "subject", "level")}
        assert [question.question_id for question in task.questions()] == ["file-1", "file-2", MATH_500["unique_id"]]

        assert task.grade(sine, r"It is $\boxed{\frac{1}{\sqrt{2}}}$.") == Grade(r"\frac{1}{\sqrt{2}}", 1)
        assert task.grade(sine, r"It is $\boxed{\frac12}$.") == Grade(r"\frac12", 0)
        assert task.grade(sine, r"It is $\boxed{\frac{{}$}.") == Grade(None, 0)
        assert task.grade(sine, "No idea.\nReally.") == Grade(None, 0)
        assert task.grade(word, "The answer is evelyn.") == Grade("evelyn", 1)
        assert task.grade(word, r"\boxed{\text{Carla}}") == Grade("carla", 0)
        # A file with mathematics may also use it for number references.
        assert task.grade(divisors, r"\boxed{9}") == Grade("9", 1)
        assert task.grade(divisors, r"\boxed{\sqrt{81}}") == Grade(r"\sqrt{81}", 1)


def test_a_pickled_copy_grades_alike_and_carries_no_questions(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    with load(tmp_path, MATH, MATH_WORD, timeout_s=20.0, workers=2) as task:
        sine, word = task.questions()
        assert task.grade(sine, r"$\boxed{\sqrt{1/2}}$").label == 1  # its worker runs
        packed = pickle.dumps(task.grade)
        assert len(packed) < 2000 and b"average speed" not in packed
        grade = pickle.loads(packed)
        assert grade(sine, r"$\boxed{\frac{1}{\sqrt{2}}}$") == Grade(r"\frac{1}{\sqrt{2}}", 1)
        assert grade(word, "The answer is carla.") == Grade("carla", 0)
        grade.__self__.close()
        assert list(grade.__self__.questions()) == [] and task.grade(word, "The answer is evelyn.").label == 1


def test_an_answer_that_hangs_is_unparsable_and_counted(tmp_path: Path) -> None:
    pytest.importorskip("math_verify")
    with load(tmp_path, MATH, timeout_s=1.0, workers=2) as task:
        (question,) = task.questions()
        boxes = (r"\frac{\sqrt{2}}{2}", "10^{10^{10}}", r"\sqrt{1/2}", "1")
        grades = task.grade_many([(question, rf"\boxed{{{box}}}") for box in boxes])
        assert [(grade.answer is None, grade.label) for grade in grades] == [(False, 1), (True, 0), (False, 1), (False, 0)]
        assert task.grader is not None and task.grader.timeouts == 1


@pytest.mark.parametrize(
    ("reference", "grading"),
    [
        ("72", "numeric"),
        ("-1,234.5", "numeric"),
        (r"\frac{3}{4}", "numeric"),
        (r"\$32,\!348", "numeric"),
        (r"10\%", "numeric"),
        (r"5.4 \text{ cents}", "numeric"),
        ("Paris", "exact"),
        ("B", "exact"),
        (r"\text{(C)}", "exact"),
        ("not enough information", "exact"),
        ("a cat and a dog.", "exact"),
        (r"\sqrt{2}", "math"),
        ("2x", "math"),
        ("p - q", "math"),
        ("x^2+1", "math"),
        ("(3, 4)", "math"),
        ("1,2", "math"),
        ("2516_8", "math"),
    ],
)
def test_auto_chooses_by_the_reference(reference: str, grading: str) -> None:
    assert grading_of(reference) == grading


@pytest.mark.parametrize(
    ("record", "prompt", "reference"),
    [
        ({"input": "2+2?", "target": 4}, "2+2?", "4"),
        ({"prompt": "2+2?", "reference": 4.0}, "2+2?", "4.0"),
        ({"problem": "2+2?", "final_answer": "4"}, "2+2?", "4"),
        ({"question": None, "problem": "2+2?", "answer": None, "solution": "so \\boxed{4}"}, "2+2?", "4"),
        ({"question": "2+2?", "prompt": "not this", "answer": "4", "solution": "nor this"}, "2+2?", "4"),
    ],
)
def test_fields_are_found(tmp_path: Path, record: dict[str, Any], prompt: str, reference: str) -> None:
    (question,) = load(tmp_path, record).questions()
    assert question.prompt == [{"role": "user", "content": prompt}] and question.reference == reference


def test_fields_can_be_named(tmp_path: Path) -> None:
    record = {"frage": "2+2?", "antwort": "4", "question": "no", "answer": "no"}
    (question,) = load(tmp_path, record, question_field="frage", answer_field="antwort").questions()
    assert question.prompt == [{"role": "user", "content": "2+2?"}] and question.reference == "4"
    assert question.extra == {"question": "no", "answer": "no"}


def test_prompts(tmp_path: Path) -> None:
    record = {"question": r"What is {x} in \frac{1}{2}?", "answer": "4"}
    (question,) = load(tmp_path, record, prompt_template=r"Q: {question} Use \boxed{}. A:").questions()
    assert question.prompt == r"Q: What is {x} in \frac{1}{2}? Use \boxed{}. A:"
    (question,) = load(tmp_path, record, system="Be brief.").questions()
    assert question.prompt == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": record["question"]},
    ]
    messages = [{"role": "system", "content": "Hi."}, {"role": "user", "content": "2+2?"}]
    (question,) = load(tmp_path, {"prompt": messages, "answer": "4"}).questions()
    assert question.prompt == messages
    for options in ({"system": "Be brief."}, {"prompt_template": "{question}"}):
        with pytest.raises(ValueError, match=f"'file-1' is chat messages already: no {next(iter(options))}"):
            load(tmp_path, {"prompt": messages, "answer": "4"}, **options)


def test_order_and_number_of_questions(tmp_path: Path) -> None:
    task = load(tmp_path, *({"id": i, "question": f"{i}?", "answer": i} for i in range(20)))
    order = [question.question_id for question in task.questions()]
    assert order == [str(i) for i in range(20)] == [question.question_id for question in task.questions(20, 0)]
    shuffled = [question.question_id for question in task.questions(seed=3)]
    assert sorted(shuffled) == sorted(order) and shuffled != order
    assert [question.question_id for question in task.questions(5, seed=3)] == shuffled[:5]
    assert [question.question_id for question in task.questions(seed=4)] != shuffled
    for n in (21, -1):
        with pytest.raises(ValueError, match=f"asked for {n} questions, the file holds 20"):
            task.questions(n)


def test_it_is_a_task(tmp_path: Path) -> None:
    task: Task = load(tmp_path, GSM8K)
    assert [task.grade(question, "72").label for question in task.questions(1)] == [1]


def test_lists_blank_lines_marks_and_line_separators(tmp_path: Path) -> None:
    records = [{"question": "a\u2028b?", "answer": "yes"}, {"question": "c?", "answer": "no"}]
    listed, lines = tmp_path / "list.json", tmp_path / "lines.jsonl"
    listed.write_text(json.dumps(records, indent=2))
    assert [question.question_id for question in JsonlTask(listed).questions()] == ["list-1", "list-2"]
    text = "\n\n".join(json.dumps(record, ensure_ascii=False) for record in records) + "\r\n"
    lines.write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert [question.question_id for question in JsonlTask(lines).questions()] == ["lines-1", "lines-3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "holds no questions"),
        ("\n\n", "holds no questions"),
        ('{"question": "a", "answer": 1}\n{oops\n', r"file\.jsonl, line 2: not valid JSON"),
        ('{"question": "a", "answer": "\udcff"}\n', r"line 1: not valid JSON"),
        ("[" * 100_000, r"line 1: not valid JSON"),
        ("[1]\n", "line 1: expected a JSON object, got list"),
        ('{"query": "a", "answer": 1}', r"line 1: no question: looked for 'question', 'problem'.* has 'query', 'answer'"),
        ('{"question": "a", "label": 1}', r"line 1: no reference answer: looked for 'answer'.* has 'question', 'label'"),
        ("{}", "the record has no fields"),
        ('{"question": " ", "answer": 1}', "line 1: 'question' must be a text or a list of messages"),
        ('{"question": [{"role": "user"}], "answer": 1}', "line 1: 'question' must be a text or a list of messages"),
        ('{"question": "a", "answer": ["b"]}', "line 1: 'answer' must be a text or a number"),
        ('{"question": "a", "answer": true}', "line 1: 'answer' must be a text or a number"),
        ('{"question": "a", "answer": "so\\n#### "}', "line 1: the reference answer in 'answer' is empty"),
        ('{"question": "a", "solution": "first\\nthen"}', "line 1: the solution has several lines"),
        ('{"id": 7, "question": "a", "answer": 1}\n\n{"id": "7", "question": "b", "answer": 1}', "line 3.*'7'.*line 1"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "file.jsonl"
    path.write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ValueError, match=message):
        JsonlTask(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grading": "fuzzy"}, "grading must be .* got 'fuzzy'"),
        ({"prompt_template": "Q:"}, "must contain '{question}', got 'Q:'"),
        ({"prompt_template": "{question}", "system": "Hi."}, "give only one"),
        ({"question_field": "frage"}, "looked for 'frage'"),
        ({"grading": "numeric"}, "the reference of question 'file-1' is no number: 'Paris'"),
    ],
)
def test_options_that_do_not_fit(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {"question": "Capital of France?", "answer": "Paris"}, **options)


def test_a_missing_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        JsonlTask(tmp_path / "nothing.jsonl")


def test_the_missing_extra_is_named_at_once_where_it_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert len(load(tmp_path, GSM8K, MATH_WORD, MATH_500)) == 3  # words and numbers do without
    assert len(load(tmp_path, MATH, grading="exact")) == 1
    for options in ({}, {"grading": "math"}):
        with pytest.raises(ImportError, match=r'pip install "swift-rm\[math\]"'):
            load(tmp_path, MATH, **options)


def test_numbers_are_not_judged_by_whether_math_verify_is_installed(tmp_path: Path) -> None:
    with load(tmp_path, MATH_500) as task:
        (question,) = task.questions()
        assert task.grade(question, r"\boxed{\sqrt{81}}") == Grade(None, 0)


def test_exact_and_numeric_can_be_forced(tmp_path: Path) -> None:
    (question,) = (task := load(tmp_path, {"question": "?", "answer": "1.0"}, grading="exact")).questions()
    assert [task.grade(question, text).label for text in ("1.0", "<answer>1.0.</answer>", "1")] == [1, 1, 0]
    (question,) = (task := load(tmp_path, {"question": "?", "answer": "Room 12"}, grading="numeric")).questions()
    assert [task.grade(question, text) for text in ("It is 12", "11")] == [Grade("12", 1), Grade("11", 0)]


def test_a_question_without_a_reference_cannot_be_graded(tmp_path: Path) -> None:
    task = load(tmp_path, GSM8K)
    with pytest.raises(ValueError, match="'q' has no reference"):
        task.grade(Question("q", "?", None), "5")
    with pytest.raises(ValueError, match="'q' needs math-verify"):
        task.grade(Question("q", "?", "x^2"), r"\boxed{x}")
