"""vLLM's own server with rewards in its replies, as a process on loopback, and what its rewards are compared with."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOM = "swift_rm.integrations.vllm"
NAME, REWARD = "tiny-reasoner", "tiny-reasoner-reward"
START_S, CONTEXT = 300.0, 512
SMALL = ("--dtype", "float32", "--enforce-eager", "--kv-cache-memory-bytes", str(256 << 20), "--max-model-len", str(CONTEXT))


@dataclass(frozen=True)
class Server:
    """Where it listens, its process, and the file that its log goes to."""

    url: str
    process: subprocess.Popen[bytes]
    log_file: Path

    def log(self) -> str:
        """Return what it has logged so far."""
        return self.log_file.read_text(errors="replace")

    def wait(self, seconds: float = START_S) -> None:
        """Return when it answers; raise RuntimeError with its log if it ends instead, or takes longer."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(urllib.error.URLError, OSError), urllib.request.urlopen(f"{self.url}/health", timeout=5):
                return
            time.sleep(0.2)
        raise RuntimeError(f"vLLM's server did not start ({self.process.poll()}):\n{self.log()[-6000:]}")


@contextmanager
def serve(
    reward_model: str | None = REWARD,
    model: str = NAME,
    *more: str,
    worker: bool = True,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """Start a server of ``model`` with ``more`` arguments, yield it at once, and end it with all its processes."""
    from swift_rm.models.load import resolve

    with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        free.close()
        command = [
            sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", resolve(model), "--served-model-name", model,
            "--host", "127.0.0.1", "--port", str(port), "--middleware", f"{ROOM}.RewardMiddleware", *SMALL,
            *(("--worker-cls", f"{ROOM}.RewardWorker") if worker else ()),
            *(("--additional-config", json.dumps({"swift_rm": {"reward_model": reward_model}})) if reward_model else ()), *more,
        ]  # fmt: skip
        log_file = Path(folder) / "log"
        with log_file.open("wb") as log:
            process = subprocess.Popen(
                command, stdout=log, stderr=log, env={**os.environ, **(environment or {})}, start_new_session=True
            )
        try:
            yield Server(f"http://127.0.0.1:{port}", process, log_file)
        finally:
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def post(
    url: str, body: Any, headers: Mapping[str, str] | None = None, timeout: float = 120
) -> tuple[int, Any, Mapping[str, str]]:
    """Ask; return the status, the JSON and the headers of the reply. ``body`` is bytes, or becomes JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json", **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return reply.status, json.load(reply), reply.headers
    except urllib.error.HTTPError as error:
        return error.code, json.load(error), error.headers


def questions(count: int, seed: int = 3) -> list[list[dict[str, str]]]:
    """Return homework questions as messages."""
    from swift_rm.tasks.homework import HomeworkTask

    return [list(question.prompt) for question in HomeworkTask("test").questions(count, seed=seed)]


def expected(reward_model: str, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], model: str = NAME) -> list[float]:
    """Return what transformers says of prompts and responses, given as token ids."""
    from swift_rm import SwiftRewardModel, score
    from swift_rm.models.load import load_language_model, resolve

    lm, tokenizer = load_language_model(model, progress=False)
    rm = SwiftRewardModel.from_pretrained(resolve(reward_model))
    return score(lm, tokenizer, rm, [list(prompt) for prompt, _ in pairs], [list(response) for _, response in pairs])


def worst_difference(
    url: str, reward_model: str = REWARD, model: str = NAME, count: int = 8, n: int = 8, max_tokens: int = 96
) -> float:
    """Return how far a reward of a server is from `score()` of the same tokens at most: n samples of each of ``count`` questions.

    Raises ValueError if a choice has no reward.
    """
    pairs, rewards = [], []
    for messages in questions(count):
        asked = {"model": model, "messages": messages, "n": n, "max_tokens": max_tokens, "return_token_ids": True}
        status, reply, _ = post(f"{url}/v1/chat/completions", {**asked, "temperature": 1.0})
        if status != 200 or len(reply["choices"]) != n or any(choice["reward"] is None for choice in reply["choices"]):
            raise ValueError(f"not every choice has a reward: {status}, {reply}")
        pairs += [(reply["prompt_token_ids"], choice["token_ids"]) for choice in reply["choices"]]
        rewards += [choice["reward"] for choice in reply["choices"]]
    return max(abs(one - other) for one, other in zip(rewards, expected(reward_model, pairs, model), strict=True))
