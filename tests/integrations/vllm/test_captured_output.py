"""What vLLM prints is kept off the terminal, and a failure is told by its first cause."""

import os
import subprocess
import sys

import pytest

from swift_rm.integrations.vllm.offline.captured_output import kept_off_the_terminal

LOG = """(Worker pid=1) ERROR 11-22 21:22:34 [multiproc_executor.py:953] Traceback (most recent call last):
(Worker pid=1) ERROR 11-22 21:22:34 [multiproc_executor.py:953]     raise ValueError("x: y")
(Worker pid=1) ERROR 11-22 21:22:34 [multiproc_executor.py:953] torch.OutOfMemoryError: 3 of 2 bytes are needed
Exception: WorkerProc initialization failed due to an exception in a background process.
"""


def say(text):
    """As a process that vLLM started would."""
    os.system(f"printf '%s' '{text}'; printf '%s' '{text}' >&2")


def test_what_is_printed_inside_is_kept_off_the_terminal(capfd):
    with kept_off_the_terminal():
        say("by a child")
        os.write(2, b"here")
    os.write(1, b"after\n")
    assert tuple(capfd.readouterr()) == ("after\n", "")


def test_what_python_has_not_written_yet_goes_where_it_was_meant_to():
    program = "from swift_rm.integrations.vllm.offline.captured_output import kept_off_the_terminal as kept\nprint('before')\n"
    program += "with kept():\n    print('inside')\nprint('after')"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("before\nafter\n", "")


def test_with_show_standard_output_stays_clean(capfd):
    with kept_off_the_terminal(show=True):
        say("by a child ")
        os.write(1, b"here")
    os.write(1, b"after\n")
    out, error = capfd.readouterr()
    assert out == "after\n"
    assert error.count("by a child") == 2
    assert "here" in error


def test_a_failure_is_told_by_its_first_cause(capfd):
    with (
        pytest.raises(RuntimeError, match=r"^vLLM failed: OutOfMemoryError: 3 of 2 bytes are needed \(VLLM_LOGGING_LEVEL=INFO"),
        kept_off_the_terminal(),
    ):
        os.write(2, LOG.encode())
        raise RuntimeError("Engine core initialization failed. See root cause above.")
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_failure_without_a_cause_shows_what_was_printed(capfd):
    with pytest.raises(RuntimeError, match=r"^killed$"), kept_off_the_terminal():
        os.write(1, b"the last words\n")
        raise RuntimeError("killed")
    assert tuple(capfd.readouterr()) == ("", "the last words\n")
    with pytest.raises(ValueError, match=r"^misuse$"), kept_off_the_terminal():
        os.write(1, b"the last words\n")
        raise ValueError("misuse")
    assert tuple(capfd.readouterr()) == ("", "")
