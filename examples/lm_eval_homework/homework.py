"""Questions of the homework world as lm-evaluation-harness reads them, for homework.yaml beside this file."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

import swift_rm.integrations.lm_eval  # noqa: F401  the model "swift-rm" and the filter "best_of_n" are registered by this
from swift_rm.tasks.homework import HomeworkTask

QUESTIONS = 500


def questions(**config: Any) -> dict[str, Dataset]:
    """Return the split ``test``, with the columns ``question`` and ``answer``."""
    asked = HomeworkTask("test").questions(QUESTIONS)
    return {"test": Dataset.from_list([{"question": one.question_id, "answer": one.reference} for one in asked])}
