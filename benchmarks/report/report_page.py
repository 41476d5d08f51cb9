"""How large the report's page is and how fast a browser opens it: 500 questions x 16 candidates, short and long responses.

Seconds are those of a headless Chromium from its start to a picture of the loaded page, less the same for an empty one.
Without a Chromium only sizes are given. The responses are random words, with random tokens' gates and rewards.
"""

from __future__ import annotations

import random
import shutil
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.recorder import arguments, finish
from swift_rm.evaluation.evaluate import evaluate
from swift_rm.records.rollouts import Rollout, group_by_question
from swift_rm.report.report_page import About, render_report

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
EMPTY = "<!DOCTYPE html><title>empty</title>"


def main() -> None:
    """Render and open both pages; print or write the figures."""
    args = arguments(__doc__)
    questions, rounds = (20, 1) if args.quick else (500, 5)
    result: dict[str, Any] = {"questions": questions, "candidates": 16}
    with tempfile.TemporaryDirectory() as folder:
        empty = open_seconds(EMPTY, Path(folder), rounds)
        for name, tokens in (("short", 40), ("long", 60 if args.quick else 1000)):
            rollouts = made(questions, 16, tokens)
            start = time.perf_counter()
            data = evaluate(rollouts, bootstrap=200 if args.quick else 2000).to_dict()
            page, shown = render_report(data, list(group_by_question(rollouts).values()), About(["made.jsonl"]))
            rendered = time.perf_counter() - start
            seconds = open_seconds(page, Path(folder), rounds)
            result[name] = {
                "tokens": tokens,
                "megabytes": round(len(page.encode()) / 1e6, 2),
                "seconds_to_open": None if seconds is None or empty is None else round(seconds - empty, 2),
                "seconds_to_evaluate_and_render": round(rendered, 1),
                "shown": vars(shown),
            }
    finish("report_page", args, result)


def made(questions: int, n: int, tokens: int) -> list[Rollout]:
    """Make graded, scored rollouts with tokens of random text."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=rng.randint(1, 6))) + " " for _ in range(5000)]
    found = []
    for question in range(questions):
        for sample in range(n):
            text, label = rng.choices(words, k=tokens), rng.randint(0, 1)
            gate, reward = ([round(rng.random() ** 4, 4) for _ in text], [round(rng.gauss(0, 4), 4) for _ in text])
            extra = {"sample": sample, "probability": rng.random(), "tokens": {"text": text, "gate": gate, "reward": reward}}
            answer, score = "7" if label else str(rng.randint(0, 6)), rng.gauss(2 * label, 2)
            said = ("".join(text), list(range(tokens)), "stop", answer, label, score, -0.5, {}, {}, extra)
            found.append(Rollout(f"question-{question}", "word " * 50, [1], *said))
    return found


def open_seconds(page: str, folder: Path, rounds: int) -> float | None:
    """Return the median seconds in which a headless browser loads a page and takes a picture of it; None without a browser."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        return None
    (folder / "page.html").write_text(page)
    picture = folder / "page.png"
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", f"--user-data-dir={folder / 'profile'}"]
    seconds = []
    for _ in range(rounds + 1):
        picture.unlink(missing_ok=True)
        start = time.perf_counter()
        command = [browser, *flags, f"--screenshot={picture}", (folder / "page.html").as_uri()]
        subprocess.run(command, capture_output=True, check=True, timeout=120)
        seconds.append(time.perf_counter() - start)
        if not picture.exists():
            raise RuntimeError("the browser did not open the page")
    return statistics.median(seconds[1:])  # the first makes its profile


if __name__ == "__main__":
    main()
