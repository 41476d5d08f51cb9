"""Sampling on Ray while its workers and its driver are killed, against one process that nobody disturbs."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from swift_rm.features.shard_build import held_in
from swift_rm.features.shard_file import read_head
from swift_rm.features.store import FeatureStore

MODEL, REWARD = "tiny-reasoner", "tiny-reasoner-reward"
WORKER = "ray::MapWorker"
PATIENCE_S = 300.0


def kill_and_compare(
    folder: Path, *, questions: int, n: int, batch: int, kills: int, driver_kills: int, seed: int = 0
) -> dict[str, Any]:
    """Sample on two Ray actors with features, killing workers and the driver with SIGKILL at random moments; compare.

    A kill comes a random time after a random share of the records is written; a killed driver is started again by the same
    command. Returns what was killed, lost and doubled, and whether rewards and features equal those of one process.
    """
    asked = ["--model", MODEL, "--task", "homework:test", "--questions", str(questions), "-n", str(n), "--batch-size", str(batch)]
    swift_rm("sample", *asked, "--out", folder / "alone.jsonl", "--features", folder / "alone")
    begun = time.monotonic()
    done = disturbed(
        [*asked, "--out", str(folder / "ray.jsonl"), "--features", str(folder / "ray"), "--ray", "--actors", "2"],
        folder / "ray.jsonl", questions * n, kills, driver_kills, random.Random(seed),
    )  # fmt: skip
    seconds = time.monotonic() - begun
    for name in ("alone", "ray"):
        source, out = folder / f"{name}.jsonl", folder / f"{name}-scored.jsonl"
        swift_rm("score", "--model", MODEL, "--reward-model", REWARD, "--input", source, "--out", out)
    alone, ray = (records(folder / f"{name}-scored.jsonl") for name in ("alone", "ray"))
    keys = Counter((record["question_id"], record["sample"]) for record in ray)
    rewards = {(record["question_id"], record["sample"]): record["reward"] for record in alone}
    return {
        **done,
        "records": len(alone),
        "records_lost": len(rewards.keys() - keys.keys()),
        "records_doubled": sum(count - 1 for count in keys.values()),
        "rewards_differ": sum(record["reward"] != rewards.get((record["question_id"], record["sample"])) for record in ray),
        "file_equals_one_process": (folder / "alone.jsonl").read_bytes() == (folder / "ray.jsonl").read_bytes(),
        **compared_features(folder / "alone", folder / "ray"),
        "processes_left": len(list(workers_of(None))),
        "seconds_with_kills": round(seconds, 1),
    }


def compared_features(alone: Path, ray: Path) -> dict[str, Any]:
    """Return which responses' states are missing or there twice in ``ray``, how many were read again, and how far they are off.

    A killed driver loses the states that it had not written; they are read again by a pass over the tokens in the file, which
    rounds differently. The error is the largest relative one of a response's states, which bfloat16 rounds to 0.002 or so.
    """
    expected, found = stored(alone), stored(ray)
    states, again = dict(expected), dict(found)
    errors = [float((again[key] - one).norm() / one.norm()) for key, one in states.items() if key in again]
    return {
        "features_lost": len(states.keys() - again.keys()),
        "features_doubled": len(found) - len(again),
        "features_read_again": sum(error > 0 for error in errors),
        "features_error": round(max(errors), 5),
    }


def disturbed(
    arguments: Sequence[str], out: Path, total: int, kills: int, driver_kills: int, rng: random.Random
) -> dict[str, Any]:
    """Run `sample` to its end while killing; return how often workers and drivers were killed."""
    victims = ["worker"] * kills + ["driver"] * driver_kills
    rng.shuffle(victims)
    moments = sorted(rng.uniform(0.0, 0.8) * total for _ in victims)  # so that work is left when the last one comes
    killed = Counter[str]()
    driver = start(arguments)
    for victim, moment in zip(victims, moments, strict=True):
        wait_until(partial(written, out, moment, driver))
        time.sleep(rng.uniform(0.0, 0.5))
        if victim == "driver":
            driver.kill()
            driver.wait()
            driver = start(arguments)
        else:
            wait_until(partial(kill_one_of, driver, rng))
        killed[victim] += 1
    error = driver.communicate(timeout=PATIENCE_S)[1]
    if driver.returncode != 0:
        raise RuntimeError(f"the last driver failed: {error}")
    return {"kills": killed["worker"], "driver_kills": killed["driver"]}


def written(out: Path, count: float, driver: subprocess.Popen[str]) -> bool:
    """Tell whether so many records are in the file; raise RuntimeError if the driver has ended."""
    if driver.poll() is not None:
        raise RuntimeError(f"the driver ended before it was to be disturbed: {driver.communicate()[1]}")
    return lines(out) >= count


def kill_one_of(driver: subprocess.Popen[str], rng: random.Random) -> bool:
    """Kill one of the driver's workers, and tell whether there was one; raise RuntimeError if the driver has ended."""
    if driver.poll() is not None:
        raise RuntimeError("the driver ended before its last worker was to be killed: sample more questions")
    for worker in sorted(workers_of(driver.pid), key=lambda _: rng.random()):
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
            return True
    return False


def start(arguments: Sequence[str]) -> subprocess.Popen[str]:
    """Start `swift-rm sample` with one thread a process."""
    command = [sys.executable, "-m", "swift_rm.cli", "sample", *arguments, "--json"]
    return subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )


def swift_rm(*arguments: str | Path) -> None:
    """Run a command with one thread; raise CalledProcessError if it fails."""
    command = [sys.executable, "-m", "swift_rm.cli", *map(str, arguments), "--json"]
    subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=True, capture_output=True)


def workers_of(driver: int | None) -> Iterator[int]:
    """Yield the processes of Ray actors that descend from a driver, or from any (None)."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(WORKER.encode()) and (driver is None or driver in ancestors(entry)):
                yield int(entry.name)


def ancestors(entry: Path) -> Iterator[int]:
    """Yield the parents of a process, up to the first."""
    while entry.name != "1":
        parent = (entry / "stat").read_text().rpartition(")")[2].split()[1]
        yield int(parent)
        if parent == "0":
            return
        entry = entry.with_name(parent)


def wait_until(condition: Callable[[], bool]) -> None:
    """Wait until something is so; raise TimeoutError if it takes minutes."""
    end = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"nothing happened for {PATIENCE_S:.0f} s")
        time.sleep(0.05)


def lines(path: Path) -> int:
    """Return the number of whole lines of a file, 0 if it is not there."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def records(path: Path) -> list[dict[str, Any]]:
    """Read a JSONL file."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def stored(folder: Path) -> list[tuple[tuple[str, int], Tensor]]:
    """Return every response in a feature store, by question and number, with its states in float32."""
    store, found = FeatureStore(folder), []
    for entry, shard in zip(store.entries, store, strict=True):
        names = [(question, sample) for question, sample, _ in held_in(read_head(folder / entry.name, entry.checksums))]
        parts = shard.states.float().tensor_split(shard.offsets[1:-1])
        found += list(zip(names, parts, strict=True))
    return found
