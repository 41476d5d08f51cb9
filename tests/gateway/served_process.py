"""Start `swift-rm serve` as a process, and hear what it logs and replies, for tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

STUB = Path(__file__).parent / "stub.py"


class Server:
    """A process and what it has logged."""

    def __init__(self, process, folder):
        self.process, self.folder, self.said, self._news = process, folder, [], threading.Condition()
        self._reading = threading.Thread(target=self._read)
        self._reading.start()

    def _read(self):
        for line in self.process.stderr:
            with self._news:
                self.said.append(line)
                self._news.notify_all()

    def event(self, name, count=1):
        """Wait for the count-th event of a name."""

        def found():
            told = [json.loads(line) for line in self.said if line.startswith("{")]
            return [one for one in told if one["event"] == name][count - 1 : count]

        with self._news:
            assert self._news.wait_for(found, timeout=30), (name, self.said)
            return found()[0]

    def ended(self, within=20):
        """Wait for the exit code; return it and the last line."""
        code = self.process.wait(timeout=within)
        self._reading.join(timeout=10)
        return code, self.said[-1]

    def wait_for(self, name):
        until = time.monotonic() + 20
        while not (self.folder / name).exists():
            assert time.monotonic() < until, (name, self.said)
            time.sleep(0.01)


@contextmanager
def started(folder, *options, program=(str(STUB),), **environment):
    env = {**os.environ, "STUB": str(folder), "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), **environment}
    process = subprocess.Popen(
        [sys.executable, *program, "--port", "0", *options], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=env
    )
    server = Server(process, folder)
    try:
        yield server
    finally:
        process.kill()
        process.wait()
        server.ended()
        process.stderr.close()


def get(url, data=None):
    """Return status, headers and text of a reply."""
    body = None if data is None else json.dumps(data).encode()
    request = urllib.request.Request(url, body, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()
