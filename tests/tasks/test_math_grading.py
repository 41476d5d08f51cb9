"""Grading with math-verify in worker processes: verdicts, real time limits, crashes, threads and the workers' end."""

import importlib.util
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from swift_rm.tasks.math_grading import MathGrader

# A stand-in whose answers can be told to hang, to crash or to print; the workers import it by the parent's sys.path.
FAKE = """
import os, signal, time
def parse(text, parsing_timeout=5):
    assert parsing_timeout is None
    if "sleep" in text: time.sleep(600)
    if "nap" in text: time.sleep(0.5)
    if "crash" in text: os._exit(3)
    if "kill" in text: os.kill(os.getpid(), signal.SIGKILL)
    if "print" in text: print('"right"', flush=True)
    return [text] if "garbage" in text else [("parsed", text)]
def verify(gold, target, timeout_seconds=5):
    assert timeout_seconds is None
    return gold == target
"""


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "math_verify.py").write_text(FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.fixture(scope="module")
def real() -> Iterator[MathGrader]:
    pytest.importorskip("math_verify")
    with MathGrader(timeout_s=3.0) as grader:
        yield grader


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z" if os.path.isdir("/proc") else True


def dies(pid: int, within: float) -> bool:
    deadline = time.monotonic() + within
    while time.monotonic() < deadline:
        if not is_alive(pid):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("gold", "answer", "verdict"),
    [
        (r"\frac{1}{2}", "0.5", True),
        ("5", "x=5", True),
        ("(x+1)^2", "x^2+2x+1", True),
        (r"\left( 3, \frac{\pi}{2} \right)", r"(3, \pi/2)", True),
        ("1,2", r"\{2, 1\}", True),
        (r"11\sqrt2", r"$11\sqrt{2}$", True),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", r"\begin{bmatrix} 1 \\ 2 \end{bmatrix}", True),
        ("1 < x < 2", "(1, 2)", True),
        ("(1, 2)", "1 < x < 2", False),  # not symmetric: this is why the reference goes first
        ("5", "6", False),
        ("p - q", "q - p", False),
        ("5", r"\frac{{", None),
        ("5", "", None),
        ("5", "{" * 10_000_000, None),
    ],
)
def test_verdicts(real: MathGrader, gold: str, answer: str, verdict: bool | None) -> None:
    assert real.grade(gold, answer) is verdict
    assert (real.timeouts, real.crashes) == (0, 0)


@pytest.mark.parametrize("answer", ["10^{10^{10}}", "9^{9^{9^{9}}}", "(" * 990 + "1" + ")" * 990])
def test_an_expression_that_hangs_is_ended_at_the_limit(answer: str) -> None:
    pytest.importorskip("math_verify")
    with MathGrader(timeout_s=1.0) as grader:
        assert grader.grade("5", "5.0") is True  # the start is not part of the limit
        start = time.monotonic()
        assert grader.grade("5", answer) is None
        assert time.monotonic() - start < 4
        assert (grader.timeouts, grader.crashes) == (1, 0)


def test_timeouts_and_crashes_are_counted_and_survived(fake: Path) -> None:
    with MathGrader(timeout_s=1.0) as grader:
        answers = ["1", "sleep", "1", "crash", "1", "kill", "garbage", "print", "print 1", "2", "1"]
        verdicts = grader.grade_many([("print 1" if answer == "print 1" else "1", answer) for answer in answers])
        assert verdicts == [True, None, True, None, True, None, None, False, True, False, True]
        assert (grader.timeouts, grader.crashes) == (1, 2)


def test_a_worker_that_died_while_idle_is_replaced_without_loss(fake: Path) -> None:
    with MathGrader() as grader:
        assert grader.grade("1", "1") is True
        (pid,) = grader.pids
        os.kill(pid, signal.SIGKILL)
        assert dies(pid, 5) or grader.pids == []
        assert grader.grade("1", "1") is True
        assert grader.crashes == 0 and grader.pids != [pid]


def test_workers_run_in_parallel_and_keep_the_order(fake: Path) -> None:
    with MathGrader(workers=4) as grader:
        grader.grade_many([(f"nap {i}", f"nap {i}") for i in range(4)])  # starts all
        assert len(grader.pids) == 4
        start = time.monotonic()
        assert grader.grade_many([(f"nap x{i}", f"nap x{i % 3}") for i in range(4)]) == [True, True, True, False]
        assert time.monotonic() - start < 3.0  # one after the other: 3.5 s of naps


def test_it_grades_from_any_thread_with_real_limits(fake: Path) -> None:
    results: dict[int, bool | None] = {}
    with MathGrader(timeout_s=1.0, workers=2) as grader:

        def work(i: int) -> None:
            results[i] = grader.grade("1", "sleep" if i % 3 == 0 else str(i % 3))

        threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert results == {0: None, 1: True, 2: False, 3: None, 4: True, 5: False}
    assert grader.timeouts == 2


def test_a_forked_child_starts_its_own_worker_and_spares_its_parents(fake: Path) -> None:
    with MathGrader() as grader:
        assert grader.grade("1", "1") is True
        pids = grader.pids
        child = os.fork()
        if child == 0:
            os._exit(0 if grader.grade("1", "2") is False and grader.pids != pids else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert grader.grade("1", "1") is True and grader.pids == pids


def test_close_ends_the_workers_and_refuses_more(fake: Path) -> None:
    grader = MathGrader(workers=2)
    assert grader.pids == []
    grader.grade("1", "1")
    (pid,) = grader.pids
    grader.close()
    grader.close()
    assert not is_alive(pid)
    with pytest.raises(RuntimeError, match="closed"):
        grader.grade("1", "1")


def test_close_ends_a_grading_under_way(fake: Path) -> None:
    grader, errors = MathGrader(timeout_s=60), []

    def work() -> None:
        try:
            grader.grade("1", "sleep")
        except RuntimeError as error:
            errors.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    while not grader.pids:
        time.sleep(0.05)
    time.sleep(0.5)
    grader.close()
    thread.join(10)
    assert not thread.is_alive() and len(errors) == 1 and "closed" in errors[0]


def test_a_forgotten_grader_leaves_no_worker(fake: Path) -> None:
    grader = MathGrader()
    grader.grade("1", "1")
    (pid,) = grader.pids
    del grader
    assert not is_alive(pid)


@pytest.mark.parametrize("busy", [False, True])
def test_workers_die_with_a_killed_parent(fake: Path, busy: bool) -> None:
    script = (
        "import sys, threading, time\n"
        "from swift_rm.tasks.math_grading import MathGrader\n"
        "grader = MathGrader(timeout_s=2)\n"
        "grader.grade('1', '1')\n"
        f"threading.Thread(target=grader.grade, args=('1', 'sleep' if {busy} else '1')).start()\n"
        "time.sleep(0.2)\n"
        "print(*grader.pids, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env=environment, text=True)
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    parent.wait()
    parent.stdout.close()
    assert dies(pid, within=10)


def test_an_interrupt_does_not_leave_a_stale_reply(fake: Path) -> None:
    with MathGrader(timeout_s=20) as grader:
        assert grader.grade("1", "1") is True
        interrupt = threading.Timer(0.2, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        interrupt.start()
        with pytest.raises(KeyboardInterrupt):
            grader.grade("1", "nap")
        assert grader.grade("1", "1") is True


def test_starting_a_worker_imports_neither_torch_nor_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check = "import sys\nassert not {'torch', 'swift_rm'} & set(sys.modules), 'imported'\n"
    (tmp_path / "math_verify.py").write_text(check + FAKE)
    monkeypatch.syspath_prepend(str(tmp_path))
    with MathGrader() as grader:
        assert grader.grade("1", "1") is True


def test_a_missing_extra_is_one_sentence_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "swift-rm\[math\]"'):
        MathGrader()


def test_a_broken_installation_is_an_error_and_not_unparsable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text("import antlr_that_is_not_there")
    monkeypatch.syspath_prepend(str(tmp_path))
    with MathGrader() as grader, pytest.raises(ImportError, match="antlr_that_is_not_there"):
        grader.grade("1", "2")
    (tmp_path / "math_verify.py").write_text("import os; os._exit(7)")
    with MathGrader() as grader, pytest.raises(RuntimeError, match="did not start"):
        grader.grade("1", "2")


@pytest.mark.parametrize("options", [{"timeout_s": 0.0}, {"workers": 0}])
def test_options_must_be_positive(options: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="must be positive"):
        MathGrader(**options)  # type: ignore[arg-type]
