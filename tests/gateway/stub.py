"""`swift-rm serve` with a backend that does as a folder says, so that its process is quickly started and can be told to fail.

Its start waits for the file `go` (which holds an exception's name and words, or nothing), an answer for the file `answer`;
a reload gives the name in `reward_model`, or fails without one.
"""

import asyncio
import builtins
import os
import sys
import time
from pathlib import Path

from swift_rm.cli.main import main
from swift_rm.gateway.process import serving
from swift_rm.gateway.request.backend import PromptResult
from swift_rm.report.token_view_data import CandidateView, TokenView
from swift_rm.selection.candidates import Candidate

FOLDER = Path(os.environ.get("STUB", "."))


class Stub:
    """The backend; without a folder, one that answers at once with ``candidates``: (text, answer, reward, probability) each."""

    name, forwards = "stub", False

    def __init__(self, candidates=(("42", "42", 1.0, 0.75),), rewards=True):
        self.candidates, self.rewards, self.asked = candidates, rewards, []
        self.folder = FOLDER if "STUB" in os.environ else None

    def start(self):
        while not (FOLDER / "go").exists():
            time.sleep(0.02)
        kind, _, words = (FOLDER / "go").read_text().partition(" ")
        if kind:
            raise getattr(builtins, kind)(words)

    def reload(self):
        return (FOLDER / "reward_model").read_text()

    async def close(self):
        if self.folder is not None:
            (self.folder / "closed").touch()

    def ignored(self, asking):
        return sorted(asking.others)

    async def health(self):
        return None

    async def answer(self, asking, views=False):
        self.asked.append(asking)
        if self.folder is not None:
            (self.folder / "asked").touch()
            while not (self.folder / "answer").exists():
                await asyncio.sleep(0.02)
        drawn = [self.candidates[i % len(self.candidates)] for i in range(asking.drawn)]
        told = [Candidate(text, [1, 2], reward, chance, -0.5, "stop", answer, None) for text, answer, reward, chance in drawn]
        shown = [
            CandidateView([TokenView(one.text, 7, 0.5, one.reward)], one.reward, one.probability, one.answer) for one in told
        ]
        return [PromptResult(3, 2 * len(told), len(told), told, "all", shown)]


if __name__ == "__main__":
    serving.backend_of = lambda settings, metrics: Stub()
    sys.exit(main(["serve", "--model", "stub", "--reward-model", "r", *sys.argv[1:]]))
