"""Questions to sample while training, and their grader."""

from __future__ import annotations

from swift_rm.tasks.task import Grade, Question

SETTINGS = {"batch_size": 10, "max_new_tokens": 6, "seed": 3}


def questions(count=60):
    return [Question(f"q{i}", f"{i % 100:02d}+{i * 7 % 100:02d}", None) for i in range(count)]


def grade(question, response):
    """Right is a response that holds the digit 1: the states of the token after it, at the latest, tell."""
    return Grade(response, int("1" in response or "+" in response))
