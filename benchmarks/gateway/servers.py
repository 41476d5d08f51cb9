"""The processes of benchmarks/gateway/gateway.py: `swift-rm serve`, and an upstream that answers at once with the same bytes."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).parents[2]
REPLY = json.dumps({
    "id": "chatcmpl-1", "object": "chat.completion", "created": 0, "model": "fixed",
    "choices": [{"index": 0, "message": {"role": "assistant", "content": "42 " * 100}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 9, "completion_tokens": 300, "total_tokens": 309},
}).encode()  # fmt: skip
MODELS = json.dumps({"object": "list", "data": [{"id": "fixed", "object": "model"}]}).encode()


@contextmanager
def gateway(*arguments: str) -> Iterator[tuple[str, int]]:
    """Run `swift-rm serve` on a free port; yield its address, without /v1, and its process id."""
    paths = os.pathsep.join([str(ROOT), str(ROOT / "kernels"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "swift_rm.cli", "serve", "--port", "0", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": paths}) as process:
        try:
            said = []
            for line in process.stderr or ():
                said.append(line)
                if '"ready"' in line:
                    break
            else:
                raise RuntimeError(f"the gateway did not start: {''.join(said)}")
            address = json.loads(line)["address"].removesuffix("/v1")
            drained = subprocess.Popen(["cat"], stdin=process.stderr, stdout=subprocess.DEVNULL)
            yield address, process.pid
            drained.poll()
        finally:
            process.send_signal(signal.SIGTERM)


@contextmanager
def fixed_upstream() -> Iterator[str]:
    """Serve the same reply to every request, from another process; yield the address with /v1."""
    with subprocess.Popen([sys.executable, __file__], stdout=subprocess.PIPE, text=True) as process:
        try:
            yield (process.stdout.readline() if process.stdout else "").strip()
        finally:
            process.send_signal(signal.SIGTERM)


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            lines = head.lower().split(b"\r\n")
            length = next((int(line.split(b":")[1]) for line in lines if line.startswith(b"content-length")), 0)
            await reader.readexactly(length)
            body = REPLY if lines[0].startswith(b"post") else MODELS
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body) + body)
            await writer.drain()
    except (asyncio.IncompleteReadError, ConnectionError):
        writer.close()


async def _serve() -> None:
    server = await asyncio.start_server(_answer, "127.0.0.1", 0)
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
