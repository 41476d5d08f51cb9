import ast
import importlib.util
import os
import queue
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
import torch

from swift_rm import sample
from swift_rm.features.key import FeatureKey
from swift_rm.features.store import FeatureStore
from swift_rm.features.writer import FeatureWriter
from swift_rm.integrations import ray_actors, ray_cluster
from swift_rm.integrations.ray_actors import RayActors, Replica
from swift_rm.models.load import load_language_model, load_outline
from swift_rm.reward.config import SwiftConfig
from swift_rm.reward.identity import describe_base, model_identity
from swift_rm.sampling.generation import sampling_settings
from swift_rm.tasks.homework import HomeworkTask
from swift_rm.training.fit_while_sampling import fit_online

pytestmark = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")

TASK = HomeworkTask("test", "easy")
QUESTIONS = list(TASK.questions(10, 0))


@pytest.fixture(scope="module")
def two():
    with RayActors("tiny-reasoner", actors=2) as workers:
        yield workers


@pytest.fixture(scope="module")
def whole():
    return load_language_model("tiny-reasoner", device="cpu", progress=False)


def drawn(model, tokenizer, folder, questions=QUESTIONS, workers=None):
    """Sample with features, and return the file's bytes and every stored state."""
    key = FeatureKey.of(model, tokenizer, (-2, -1), ("generating",), n=3)
    with FeatureWriter(folder / "features", key) as features:
        rollouts = sample(
            model,
            tokenizer,
            questions,
            3,
            folder / "out.jsonl",
            grade=TASK.grade,
            batch_size=4,
            features=features,
            workers=workers,
        )
    states = [shard.states.float() for shard in FeatureStore(folder / "features")]
    return (folder / "out.jsonl").read_bytes(), states, rollouts


def test_two_actors_write_what_one_process_writes_and_a_cut_file_is_completed(two, whole, tmp_path):
    for name in ("alone", "ray", "cut"):
        (tmp_path / name).mkdir()
    expected, states, rollouts = drawn(*whole, tmp_path / "alone")
    found, again, _ = drawn(two.model, two.tokenizer, tmp_path / "ray", workers=two)
    assert found == expected
    assert [part.tolist() for part in again] == [part.tolist() for part in states]
    lines = expected.splitlines(keepends=True)
    (tmp_path / "cut" / "out.jsonl").write_bytes(b"".join(lines[:17]) + lines[17][:40])  # within the second batch
    found, again, resumed = drawn(two.model, two.tokenizer, tmp_path / "cut", workers=two)
    assert sorted(found.splitlines()) == sorted(expected.splitlines()) and len(resumed) == len(rollouts) == 30
    for part, other in zip(again, states, strict=True):  # what was in the file was read again, in another batch
        assert torch.allclose(part.sort(0).values, other.sort(0).values, rtol=0.02, atol=0.05)


def test_training_while_sampling_gives_the_same_heads(two, whole, tmp_path):
    questions = list(HomeworkTask("reward", "mixed").questions(48, 0))
    config = SwiftConfig(96, (-1,))

    def trained(model, tokenizer, workers):
        return fit_online(model, tokenizer, questions, config, 8, grade=TASK.grade, batch_size=12, workers=workers)

    alone, ray = trained(*whole, None), trained(two.model, two.tokenizer, two)
    assert ray.rm.head.weight.tolist() == alone.rm.head.weight.tolist()
    assert [r.to_json() for r in ray.rollouts] == [r.to_json() for r in alone.rollouts]


def answer(model, tokenizer, job):
    if isinstance(job, Exception):
        raise job
    if job == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    return job, os.getpid()


@pytest.mark.parametrize(
    ("error", "kind", "told"),
    [
        (ValueError("no such token"), ValueError, "no such token"),
        (FileNotFoundError(2, "no file", "x.txt"), OSError, "no file: 'x.txt'"),
        (KeyError("name"), RuntimeError, "KeyError: 'name'"),
        (
            MemoryError("17 GiB"),
            RuntimeError,
            r"ran out of memory \(17 GiB\): take fewer questions at once .* goes on from there",
        ),
    ],
)
def test_a_jobs_error_is_told_as_what_it_is(error, kind, told):
    actor = ray_actors._Actor(Replica("tiny-reasoner"), answer)
    actor._loaded = (None, None)
    assert ray_actors._value(actor({"job": 3})["result"])[0] == 3
    with pytest.raises(kind, match=told) as caught:
        ray_actors._value(actor({"job": error})["result"])
    assert "in answer" in caught.value.__notes__[0]


def test_an_error_comes_in_its_turn_and_what_was_before_it_is_there(two):
    results = two.run(answer, [1, 2, ValueError("the third"), 4])
    assert [next(results)[0], next(results)[0]] == [1, 2]
    with pytest.raises(ValueError, match="the third"):
        next(results)
    assert list(two.run(answer, [])) == []


def test_an_actor_that_dies_over_the_same_job_again_and_again_is_told(two, monkeypatch):
    monkeypatch.setattr(ray_actors, "RETRIES", 1)
    with pytest.raises(RuntimeError, match=r"died 2 times over the same questions .* the same command goes on from there"):
        list(two.run(answer, ["die"]))


def test_a_model_that_is_not_there_is_told_in_one_sentence(two):
    with pytest.raises(OSError, match="nowhere"):
        list(RayActors("./nowhere", actors=1).run(answer, [1]))  # in the Ray that runs


def test_outside_of_the_block_nothing_is_run(monkeypatch):
    import ray

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RuntimeError, match="inside its `with` block only"):
        next(RayActors().run(answer, [1]))


def test_without_ray_it_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "swift-rm\[ray\]"'), RayActors():
        pass


def test_a_cluster_that_is_not_there_is_refused_within_seconds():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}"):
            ray_cluster.check_reachable("auto", address)  # the first has no port to knock at


@pytest.mark.parametrize("address", ["", "nonsense", "host:", ":6379", "host:port", "ray://x"])
def test_an_address_that_is_none_is_refused(address):
    with pytest.raises(ValueError, match=f"host:port, or auto, got {address!r}"):
        RayActors(address=address)


def test_everything_listens_on_loopback_and_sigterm_is_left_alone():
    program = """
import signal, socket
from pathlib import Path
before = signal.getsignal(signal.SIGTERM)
from swift_rm.integrations.ray_actors import RayActors
import ray
with RayActors(actors=1):
    session = ray._private.worker.global_worker.node.session_name
    assert signal.getsignal(signal.SIGTERM) is before
    mine = set()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
            if session.encode() in said or entry.name == str(__import__("os").getpid()):
                mine |= {link.readlink().name for link in (entry / "fd").iterdir() if link.is_symlink()}
        except OSError:
            pass
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path(f"/proc/net/{name}").read_text().splitlines()[1:]]
    listening = {row[1].rpartition(":")[0] for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine}
    print(sorted(listening))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = set(ast.literal_eval(done.stdout.splitlines()[-1]))
    assert found and found <= {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}, found


def test_an_interrupted_run_starts_no_other_ray():
    program = """
import threading, time, os, signal, ray
from swift_rm.integrations.ray_actors import RayActors
def slow(model, tokenizer, job):
    time.sleep(4)
    return job
try:
    with RayActors("tiny-reasoner", actors=1) as workers:
        results = workers.run(slow, range(3))
        threading.Timer(12, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
        for _ in results:
            pass
        print("not interrupted")
except KeyboardInterrupt:
    time.sleep(6)
    print(ray.is_initialized())
"""
    program = program.replace(", ray\n", "\n", 1).replace("    print(ray", "    import ray\n    print(ray")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("False"), (done.stdout, done.stderr)


def test_a_cluster_of_another_version_is_one_sentence(monkeypatch):
    import ray

    def refuse(**options):
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.40.0\n    Python: 3.10.1")

    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "init", refuse)
    with pytest.raises(
        ConnectionError, match=r"^the Ray cluster at 'auto' cannot be used: Version mismatch: .* Python: 3.10.1 \("
    ):
        ray_cluster.connect("auto", None)


def test_a_worker_with_other_versions_is_refused():
    other = {"swift-rm": Replica("x").versions["swift-rm"], "torch": "1.0", "transformers": "5.0"}
    with pytest.raises(RuntimeError, match=r"a worker has torch \d.*, but the driver has 1\.0: install the same on all"):
        Replica("tiny-reasoner", versions=other).load()


@pytest.mark.parametrize("actors", [0, -1])
def test_a_number_of_actors_that_is_none_is_refused(actors):
    with pytest.raises(ValueError, match=f"at least 1 actor, got {actors}"):
        RayActors(actors=actors)


def test_rows_are_watched_over(monkeypatch):
    monkeypatch.setattr(ray_cluster, "PING_S", 0.05)
    rows, closed = queue.Queue(), []

    def each():
        try:
            while (row := rows.get()) is not None:
                if isinstance(row, Exception):
                    raise row
                yield row
        finally:
            closed.append(True)

    with socket.create_server(("127.0.0.1", 0)) as head:
        address = f"127.0.0.1:{head.getsockname()[1]}"
        threading.Timer(0.3, lambda: rows.put({"slow": 1})).start()
        seen = ray_cluster.rows_while_reachable(each(), [address])
        assert next(seen) == {"slow": 1}  # the head was there all the while
        rows.put({"b": 2})
        rows.put(None)
        assert list(seen) == [{"b": 2}] and closed == [True]
        rows.put(KeyError("inside"))
        with pytest.raises(KeyError, match="inside"):
            list(ray_cluster.rows_while_reachable(each(), [address]))
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=f"no Ray cluster answers at {address}"):
        next(ray_cluster.rows_while_reachable(each(), [address]))
    assert time.monotonic() - started < 5
    rows.put(None)


def test_an_outline_has_no_weights_and_says_what_the_model_says(whole):
    model, tokenizer = load_outline("tiny-reasoner")
    assert model.device.type == "meta" and all(parameter.device.type == "meta" for parameter in model.parameters())
    assert model_identity(model) == model_identity(whole[0])
    assert model.dtype == whole[0].dtype
    assert model.generation_config.to_dict() == whole[0].generation_config.to_dict()
    assert sampling_settings(model, 10, 4, None, {}) == sampling_settings(whole[0], 10, 4, None, {})
    config = SwiftConfig(96, (-2, -1))
    assert describe_base(config, model, tokenizer) == describe_base(config, *whole)
    with pytest.raises(ValueError, match="dtype must be one of torch's"):
        load_outline("tiny-reasoner", dtype="float31")
