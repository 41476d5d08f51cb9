"""Measure what a second Ray actor brings, what Ray costs, and what is lost when workers and drivers are killed.

Throughput is that of the steady state, from the first batches of every actor to the last, with one thread each: one process
without Ray, one actor, two actors, in turn; the start of Ray and of its actors is told apart. The faults are those of
:mod:`benchmarks.ray.faults`.
"""

from __future__ import annotations

import json
import pickle
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.ray.faults import MODEL, kill_and_compare
from benchmarks.recorder import RESULTS, finish, parser_of
from swift_rm.files.jsonl_appender import LineAppender
from swift_rm.integrations.ray_actors import RayActors
from swift_rm.models.load import load_language_model
from swift_rm.records.rollouts import Rollout
from swift_rm.sampling.batch_runner import Workers
from swift_rm.sampling.batch_sampler import SampleJobResult
from swift_rm.sampling.sample import sample_batches
from swift_rm.tasks.homework import HomeworkTask

WARM = 6  # batches that do not count: all actors have delivered by then


def main() -> None:
    """Measure throughput and faults; print or write them."""
    parser = parser_of(__doc__)
    parser.add_argument(
        "--only", choices=("throughput", "faults"), help="measure one part, and keep the other of the result file"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    kept = RESULTS / "ray_scaling.json"
    result: dict[str, Any] = json.loads(kept.read_text()) if args.only and not args.quick else {}
    with tempfile.TemporaryDirectory() as folder:
        if args.only != "faults":
            result |= throughput(
                questions=96 if args.quick else 512, n=8, batch=8 if args.quick else 16, rounds=1 if args.quick else 5
            )
            result["driver"] = driver_cost(Path(folder) / "driver.jsonl", questions=4 if args.quick else 16, n=16, tokens=1024)
        if args.only != "throughput":
            result |= kill_and_compare(
                Path(folder), questions=256 if args.quick else 1500, n=4, batch=4,
                kills=2 if args.quick else 20, driver_kills=1 if args.quick else 5,
            )  # fmt: skip
    finish("ray_scaling", args, result)


def throughput(*, questions: int, n: int, batch: int, rounds: int) -> dict[str, Any]:
    """Return the ratios of throughput between one process, one actor and two, medians over rounds, and the seconds to start."""
    model, tokenizer = load_language_model(MODEL, progress=False)
    task = HomeworkTask("test", "mixed")
    asked = list(task.questions(questions, 0))

    def measure(workers: Workers | None) -> tuple[float, float]:
        """Return responses per second, and the seconds until the first batch."""
        begun, moments = time.perf_counter(), []
        for _ in sample_batches(model, tokenizer, asked, n, grade=task.grade, batch_size=batch, workers=workers):
            moments.append(time.perf_counter())
        return (len(moments) - WARM) * batch * n / (moments[-1] - moments[WARM - 1]), moments[0] - begun

    rates: dict[str, list[float]] = {"alone": [], "one": [], "two": []}
    first: list[float] = []
    begun = time.perf_counter()
    with RayActors(MODEL, actors=2) as two:
        seconds_ray = time.perf_counter() - begun
        ways = {"alone": None, "one": RayActors(MODEL, actors=1), "two": two}
        for number in range(rounds):
            for name in list(ways) if number % 2 == 0 else list(reversed(ways)):
                way = ways[name]
                if name == "one":
                    assert isinstance(way, RayActors)
                    with way:
                        rate, waited = measure(way)
                else:
                    rate, waited = measure(way)
                rates[name].append(rate)
                first += [waited] if name != "alone" else []
    speedups = [two / one for one, two in zip(rates["one"], rates["two"], strict=True)]
    overheads = [1 - one / alone for alone, one in zip(rates["alone"], rates["one"], strict=True)]
    return {
        "speedup_two_actors": round(statistics.median(speedups), 3),
        "speedup_low": round(min(speedups), 3),
        "speedup_high": round(max(speedups), 3),
        "ray_overhead": round(statistics.median(overheads), 3),
        "ray_overhead_low": round(min(overheads), 3),
        "ray_overhead_high": round(max(overheads), 3),
        "responses_per_second": {name: round(statistics.median(values), 1) for name, values in rates.items()},
        "seconds_to_start_ray": round(seconds_ray, 1),
        "seconds_to_first_batch": round(statistics.median(first), 1),
        "questions": questions, "n": n, "batch_questions": batch, "rounds": rounds,
    }  # fmt: skip


def driver_cost(out: Path, *, questions: int, n: int, tokens: int) -> dict[str, float]:
    """Return what one batch of long responses costs the driver: bytes on the wire and on disk, responses a second, in one core.

    It unpickles what an actor sends, writes the records as JSON, and appends them with one fsync.
    """
    ids = [(7919 * k) % 128_000 for k in range(tokens)]
    said = [round(-k / 7, 4) for k in range(tokens)]
    made = [
        Rollout(
            f"question-{i}", "word " * 200, list(range(250)), "word " * (tokens * 4 // 5), list(ids), "stop", "42", 1, None, -0.5,
            {"temperature": 1.0}, {"id": "model", "revision": None},
            {"sample": i, "reference": "42", "token_logprobs": list(said), "token_confidence": list(said)},
        )
        for i in range(questions * n)
    ]  # fmt: skip
    sent = pickle.dumps(SampleJobResult(made, None))
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        with LineAppender(out, begins='{"question_id": ') as file:
            file.append([rollout.to_json() for rollout in pickle.loads(sent).made])
        seconds.append(time.perf_counter() - start)
    return {
        "responses": len(made),
        "tokens": tokens,
        "bytes_sent_each": len(sent) // len(made),
        "bytes_written_each": out.stat().st_size // (5 * len(made)),
        "responses_per_second": round(len(made) / statistics.median(seconds), 1),
    }


if __name__ == "__main__":
    main()
