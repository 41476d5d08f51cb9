import threading
import time
from concurrent.futures import CancelledError
from contextlib import contextmanager

import pytest

from swift_rm.decoding.engine import PromptState
from swift_rm.gateway.local.batching import PADDING, BatchQueue, Job, JobSampling
from swift_rm.gateway.request.backend import PromptResult
from swift_rm.gateway.request.errors import GatewayError


def make_job(name=0, rows=1, seed=None, prompt=3, **sampling):
    return Job(PromptState([name] * prompt, n=rows), JobSampling(**sampling), seed=seed)


class Runs:
    """Runs of batches that wait until they are let go, and fail where a prompt's first token is 99."""

    def __init__(self, rows, wait_s):
        self.batches, self.go, self.begun = [], threading.Semaphore(0), threading.Semaphore(0)
        self.queue = BatchQueue(self.run, rows, wait_s, lambda error: GatewayError(500, f"failed: {type(error).__name__}"))

    def run(self, jobs):
        self.batches.append([job.asked.prompt_ids[0] for job in jobs])
        self.begun.release()
        assert self.go.acquire(timeout=10)
        if any(job.asked.prompt_ids[0] == 99 for job in jobs):
            raise KeyError("a secret prompt")
        for job in jobs:
            job.finish(PromptResult(1, 2, job.rows, ()))

    def hold(self):
        """Keep the thread busy with a job that goes with no other, and return it."""
        job = make_job(77, seed=1)
        self.queue.add(job)
        assert self.begun.acquire(timeout=10)
        return job


@contextmanager
def running(rows=4, wait_s=0.0):
    runs = Runs(rows, wait_s)
    try:
        yield runs
    finally:
        runs.go.release(100)
        runs.queue.close()


def add(runs, *jobs):
    for job in jobs:
        runs.queue.add(job)
    return jobs


def finish(runs, *jobs):
    runs.go.release(100)
    return [job.future.result(timeout=10) for job in jobs]


def test_the_oldest_goes_first_with_those_of_equal_settings():
    with running() as runs:
        held = runs.hold()
        jobs = add(
            runs, make_job(1), make_job(2, temperature=0.5), make_job(3), make_job(4, top_p=0.9), make_job(5, temperature=0.5),
            make_job(6, stop=("a",)), make_job(7),
        )  # fmt: skip
        finish(runs, held, *jobs)
        assert runs.batches == [[77], [1, 3, 7], [2, 5], [4], [6]]


def test_a_batch_holds_so_many_candidates_and_one_job_may_have_more():
    with running(rows=4) as runs:
        held = runs.hold()
        jobs = add(runs, *(make_job(i, rows) for i, rows in enumerate([2, 2, 1, 9, 3, 2, 1, 1])))
        assert [answer.drawn for answer in finish(runs, held, *jobs)] == [1, 2, 2, 1, 9, 3, 2, 1, 1]
        assert runs.batches[1:] == [[0, 1], [2], [3], [4], [5, 6, 7]], "what does not fit is not overtaken"


def test_a_job_with_a_seed_is_alone_and_so_is_a_much_longer_prompt():
    with running(rows=9) as runs:
        held = runs.hold()
        jobs = add(
            runs, make_job(1), make_job(2, seed=5), make_job(3, prompt=PADDING + 4), make_job(4), make_job(5, seed=5),
            make_job(6, prompt=PADDING + 3),
        )  # fmt: skip
        finish(runs, held, *jobs)
        assert runs.batches[1:] == [[1, 4, 6], [2], [3], [5]]


def test_a_job_waits_for_others_but_not_for_ever():
    with running(rows=3, wait_s=0.3) as runs:
        runs.go.release(100)
        begun = time.monotonic()
        lone = make_job(1)
        add(runs, lone)
        time.sleep(0.05)
        finish(runs, lone, *add(runs, make_job(2)))
        assert 0.25 < time.monotonic() - begun < 3
        assert runs.batches == [[1, 2]]


def test_a_full_batch_and_a_seed_do_not_wait():
    with running(rows=3, wait_s=60) as runs:
        finish(runs, *add(runs, make_job(1, 2), make_job(2, 1)))
        finish(runs, *add(runs, make_job(3, 5)))
        finish(runs, *add(runs, make_job(4, seed=3)))
        first, second = add(runs, make_job(5, 2), make_job(6, 2))
        finish(runs, first)
        assert runs.batches == [[1, 2], [3], [4], [5]]
        assert not second.future.done(), "which waits for its like"


def test_what_waited_for_the_thread_does_not_wait_again():
    with running(wait_s=0.4) as runs:
        held = runs.hold()
        (job,) = add(runs, make_job(1))
        time.sleep(0.45)
        begun = time.monotonic()
        finish(runs, held, job)
        assert time.monotonic() - begun < 0.3


def test_a_cancelled_job_is_not_begun():
    with running() as runs:
        held = runs.hold()
        jobs = add(runs, make_job(1), make_job(2), make_job(3))
        runs.queue.cancel(jobs[1])
        jobs[2].future.cancel()  # as a task's end does it
        finish(runs, held, jobs[0])
        assert runs.batches[1:] == [[1]]
        with pytest.raises(CancelledError):
            jobs[1].future.result(timeout=1)
        runs.queue.cancel(jobs[0])  # done already: nothing happens
        assert jobs[0].future.result().drawn == 1


def test_a_running_job_is_told_that_nobody_waits():
    with running() as runs:
        held = runs.hold()
        runs.queue.cancel(held)
        assert held.asked.cancelled


def test_a_failure_is_the_answer_of_its_batch_only():
    with running(rows=2) as runs:
        held = runs.hold()
        jobs = add(runs, make_job(99), make_job(1), make_job(2))
        finish(runs, held, jobs[2])
        for job in jobs[:2]:
            with pytest.raises(GatewayError, match="failed: KeyError") as caught:
                job.future.result(timeout=10)
            assert caught.value.status == 500
            assert "secret" not in caught.value.message
        finish(runs, *add(runs, make_job(3)))
        assert runs.batches == [[77], [99, 1], [2], [3]]


def test_closing_answers_everybody_and_ends_the_thread():
    runs = Runs(4, 60)
    held, queued = runs.hold(), make_job(1)
    add(runs, queued)
    threading.Timer(0.1, runs.go.release).start()
    runs.queue.close()
    assert held.asked.cancelled
    for job in (held, queued):
        with pytest.raises(GatewayError, match="the server is about to end"):
            job.future.result(timeout=1)
    assert runs.batches == [[77]]
    assert not any(thread.name.startswith("swift-rm-engine") and thread.is_alive() for thread in runs.queue._pool._threads)
    with pytest.raises(GatewayError, match="about to end"):
        runs.queue.add(make_job(2))


def test_sampling_is_what_generate_is_told():
    assert JobSampling().settings() == {"temperature": 1.0, "top_p": 1.0, "top_k": 0}
    assert JobSampling(0, 0.5, 3, ("a",)).settings() == {"do_sample": False, "stop_strings": ["a"]}
    assert JobSampling(1e-300).settings()["temperature"] == 1e-4, "smaller ones would make NaN of logits"
