import json
import re
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
import torch

from swift_rm import sample
from swift_rm.files.time_limit import call_within
from swift_rm.records.rollouts import Rollout, read_rollouts
from swift_rm.sampling.guarded_grader import GradeTally, GuardedGrader
from swift_rm.tasks.homework import HomeworkTask
from swift_rm.tasks.math_grading import MathGrader
from swift_rm.tasks.task import Grade, Question

QUESTION = Question("q7", "1+1", "2")
RIGHT = Grade("2", 1)


def recorded(graded):
    """Return the record of a graded answer, as sampling makes it."""
    return Rollout("q7", "1+1", [1], "2", [2], "stop", extra={"grade_error": graded.error} if graded.error else {})


def in_a_thread(function):
    """Call a function where no alarm can end it, and return what it returns."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join(60)
    return found[0]


def in_the_main_thread(function):
    return function()


WHERE = pytest.mark.parametrize("where", [in_the_main_thread, in_a_thread])


@WHERE
def test_what_comes_in_time_comes_back_whatever_it_is(where):
    assert where(lambda: call_within(5.0, lambda: 3)).value == 3
    assert isinstance(where(lambda: call_within(5.0, lambda: 1 // 0)).error, ZeroDivisionError)
    assert isinstance(where(lambda: call_within(5.0, sys.exit)).error, SystemExit)
    assert call_within(None, lambda: 3).value == 3


@WHERE
def test_what_sleeps_or_runs_for_ever_is_left_at_the_limit(where):
    going = [True]

    def endless():
        while going[0]:
            time.sleep(0.001)

    started = time.monotonic()
    assert where(lambda: call_within(0.2, lambda: time.sleep(20))) is None
    assert where(lambda: call_within(0.2, endless)) is None
    assert time.monotonic() - started < 5
    going[0] = False


def test_a_regular_expression_that_holds_the_interpreter_is_ended():
    started = time.monotonic()
    assert call_within(0.3, lambda: re.match(r"(a+)+$", "a" * 40 + "b")) is None
    assert call_within(0.3, lambda: 3 ** (10**8)) is None
    assert time.monotonic() - started < 20


def test_the_alarm_is_put_back_and_somebody_elses_left_alone():
    heard = []
    assert call_within(0.05, lambda: time.sleep(1)) is None
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL and signal.getitimer(signal.ITIMER_REAL) == (0, 0)
    signal.signal(signal.SIGALRM, lambda *_: heard.append(1))
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        assert call_within(0.3, lambda: time.sleep(1)) is None  # in a thread
        assert heard == [1]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)


def test_a_function_with_an_alarm_of_its_own_keeps_it():
    def own():
        def ring(*_):
            raise TimeoutError("mine")

        signal.signal(signal.SIGALRM, ring)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        time.sleep(1)

    assert str(call_within(30, own).error) == "mine"
    assert signal.getsignal(signal.SIGALRM) is signal.SIG_DFL


@WHERE
def test_an_answer_that_cannot_be_graded_is_left_out_and_counted_once(where):
    def grade(question, response):
        if response == "slow":
            time.sleep(10)
        return {"good": RIGHT, "none": None, "bool": True, "half": Grade("2", 0.5), "odd": Grade(2, 1)}[response]

    def run():
        with warnings.catch_warnings(record=True) as told, GradeTally() as tally:
            warnings.simplefilter("always")
            names = ["good", "bad", "slow", "none", "bool", "half", "odd", "good"]
            found = GuardedGrader(grade, 0.2).grade([(QUESTION, name) for name in names])
            tally.count([recorded(one) for one in found])
        return found, told

    found, told = where(run)
    assert [one.grade for one in found] == [RIGHT, None, None, None, None, None, None, RIGHT]
    assert [one.error for one in found] == [
        None,
        "the grader raised KeyError: 'bad'",
        "the grader took longer than 0.2 s",
        None,
        "the grader returned a bool, not a Grade",
        "the grader returned the label 0.5, not 1 or 0",
        "the grader returned the answer of a Grade as a int, not as text",
        None,
    ]
    assert [str(one.message) for one in told] == [
        "5 of 8 answers could not be graded and have no label; the first is of question 'q7': the grader raised KeyError: 'bad'"
    ]


@pytest.mark.parametrize(
    ("given", "label"),
    [
        (True, 1), (0.0, 0), (np.int64(1), 1), (np.float32(1), 1), (np.bool_(False), 0), (np.array(1), 1), (torch.tensor(0), 0),
        (float("nan"), None), (2, None), ("1", None), (None, None), (np.array([0, 1]), None), (np.float64(0.5), None),
    ],
)  # fmt: skip
def test_a_label_of_any_kind_of_number_is_recorded_as_an_int(given, label):
    one = GuardedGrader(lambda question, response: Grade("2", given)).grade([(QUESTION, "2")])[0]
    assert (one.grade is None) == (one.error is not None) == (label is None)
    if one.grade is not None:
        assert type(one.grade.label) is int and one.grade == Grade("2", label)
        json.dumps(one.grade.label)


def test_a_grader_that_is_down_costs_three_limits_a_batch_and_is_asked_again():
    asked = []

    def grade(question, response):
        asked.append(response)
        if response != "good":
            time.sleep(10)
        return RIGHT

    grader = GuardedGrader(grade, 0.05)
    rows = grader.grade([(QUESTION, text) for text in ("a", "b", "good", "c", "d", "e", "f", "good", "g")])
    again = grader.grade([(QUESTION, text) for text in ("good", "h", "good")])
    assert "".join(asked) == "abgoodcdegoodhgood"
    assert rows[-1].error == "not tried: the grader had hung on 3 answers in a row"
    assert [one.grade for one in again] == [RIGHT, None, RIGHT]


def test_long_reasons_are_one_short_line():
    def grade(question, response):
        raise ValueError("line\n" * 100)

    error = GuardedGrader(grade).grade([(QUESTION, "x")])[0].error
    assert len(error) == 160 and "\n" not in error and error.endswith("...")


@pytest.mark.parametrize("timeout", [0, -1.0, float("inf"), float("nan")])
def test_a_limit_that_is_none_is_refused(timeout):
    with pytest.raises(ValueError, match="grade_timeout must be a positive number of seconds"):
        GuardedGrader(lambda question, response: RIGHT, timeout)


@WHERE
def test_the_math_grader_works_under_the_guard(where):
    pytest.importorskip("math_verify")
    with MathGrader(timeout_s=20) as math:

        def grade(question, response):
            return Grade(response, int(bool(math.grade(question.reference, response))))

        def run():
            return GuardedGrader(grade).grade([(QUESTION, "\\frac{4}{2}"), (QUESTION, "3")])

        assert [one.grade.label for one in where(run)] == [1, 0]


def test_ctrl_c_reaches_a_run_whose_grader_hangs():
    script = (
        "import time, sys\n"
        "from swift_rm.sampling.guarded_grader import GuardedGrader\n"
        "from swift_rm.tasks.task import Question\n"
        "def hang(q, r):\n"
        "    print('hanging', flush=True)\n"
        "    time.sleep(60)\n"
        "try:\n"
        "    GuardedGrader(hang, {limit}).grade([(Question('q', 'p', None), 'r')])\n"
        "except KeyboardInterrupt:\n"
        "    sys.exit(7)\n"
    )
    for limit in (50, None):
        process = subprocess.Popen([sys.executable, "-c", script.format(limit=limit)], stdout=subprocess.PIPE)
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 7
        process.stdout.close()


def test_sampling_goes_on_where_a_grader_fails_and_leaves_these_answers_so(llama, tokenizer, tmp_path):
    task, calls = HomeworkTask("test"), []
    questions = list(task.questions(4))

    def grade(question, response):
        calls.append(question.question_id)
        if len(calls) in (2, 9):
            raise RuntimeError("judge unreachable")
        if len(calls) == 5:
            time.sleep(10)
        return task.grade(question, response)

    arguments = {"batch_size": 2, "max_new_tokens": 8}
    with pytest.warns(
        UserWarning, match=r"^3 of 12 answers could not be graded .* question .*: the grader raised RuntimeError: "
    ):
        rollouts = sample(llama, tokenizer, questions, 3, tmp_path / "r", grade=grade, grade_timeout=0.2, **arguments)
    failed = [i for i, rollout in enumerate(rollouts) if rollout.label is None]
    assert failed == [1, 4, 8]
    assert [rollouts[i].extra["grade_error"] for i in failed[:2]] == [
        "the grader raised RuntimeError: judge unreachable",
        "the grader took longer than 0.2 s",
    ]
    assert read_rollouts(tmp_path / "r") == rollouts
    expected = sample(llama, tokenizer, questions, 3, grade=task.grade, **arguments)
    assert [r for i, r in enumerate(rollouts) if i not in failed] == [r for i, r in enumerate(expected) if i not in failed]
    assert sample(llama, tokenizer, questions, 3, tmp_path / "r", grade=task.grade, **arguments) == rollouts
