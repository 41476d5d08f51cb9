"""The life of the gateway's process: it listens at once, loads, serves, reloads on SIGHUP, and drains on SIGTERM."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, NoReturn

import uvicorn

from swift_rm.gateway.app.application import create_app
from swift_rm.gateway.app.backend_lifecycle import BackendLifecycle
from swift_rm.gateway.http.listening import url
from swift_rm.gateway.http.logs import log_event
from swift_rm.gateway.http.metrics import Metrics
from swift_rm.gateway.process import systemd_notify
from swift_rm.gateway.request.backend import Backend
from swift_rm.gateway.request.model_names import listed_models
from swift_rm.gateway.request.settings import Settings
from swift_rm.selection.rule_table import SERVED_RULES

KEEP_ALIVE_S = 75  # longer than the minute after which proxies close a connection nobody uses
HEADERS = 64 * 1024  # bytes


class _Server(uvicorn.Server):
    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave signals alone: uvicorn would raise them again at the end, and the exit code would not be 0."""
        yield


class ServerProcess:
    """One server on one socket. SIGTERM or SIGINT drains, a second one ends at once; SIGHUP reloads the reward model."""

    def __init__(
        self, backend: Backend, settings: Settings, metrics: Metrics, listening: socket.socket, token: str | None
    ) -> None:
        self.lifecycle, self.settings, self.metrics, self.listening = BackendLifecycle(backend), settings, metrics, listening
        self.failure: BaseException | None = None
        self._work: Future[Any] | None = None
        self._reload_asked = asyncio.Event()
        self._worker = ThreadPoolExecutor(1, "loading")
        app = create_app(self.lifecycle, settings, token=token, metrics=metrics)
        self.server = _Server(
            uvicorn.Config(
                app, http="h11", ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
                proxy_headers=False, timeout_keep_alive=KEEP_ALIVE_S, h11_max_incomplete_event_size=HEADERS,
                timeout_graceful_shutdown=math.ceil(settings.drain_s) + 1,  # streams; all else ends with the lifecycle
            )
        )  # fmt: skip

    @property
    def busy(self) -> bool:
        """Tell whether a thread still loads, which nothing can interrupt."""
        return self._work is not None and not self._work.done()

    async def run(self) -> None:
        """Serve until a signal ends it; raise what loading raised."""
        self._listen_to_signals()
        life = asyncio.create_task(self._live())
        life.add_done_callback(self._failed)
        try:
            await self.server.serve(sockets=[self.listening])
        finally:
            life.cancel()
            await asyncio.wait([life])
            await self.lifecycle.close()
            self._worker.shutdown(wait=False, cancel_futures=True)
        if self.failure is not None:
            raise self.failure

    async def _live(self) -> None:
        """Load, say so, and reload whenever told."""
        address = f"{url(self.settings.host, self.listening.getsockname()[1])}/v1"
        log_event(logging.INFO, "loading", address=address)
        await self._in_worker(self.lifecycle.start)
        self.lifecycle.open()
        name, rewards = self.lifecycle.name, self.lifecycle.rewards
        log_event(
            logging.INFO, "ready", address=address,
            models=listed_models(name, self.settings.max_n, rewards), rules=list(SERVED_RULES) if rewards else [],
        )  # fmt: skip
        systemd_notify.ready()
        while True:
            await self._reload_asked.wait()
            self._reload_asked.clear()
            await self._reload()

    async def _reload(self) -> None:
        systemd_notify.reloading()
        # Whatever is wrong with the new one, the server goes on with the one it has.
        done: Any = (await asyncio.gather(self._in_worker(self.lifecycle.reload), return_exceptions=True))[0]
        if isinstance(done, BaseException):
            log_event(logging.ERROR, "reload failed", reason=" ".join(str(done).split()) or type(done).__name__)
        else:
            log_event(logging.INFO, "reloaded", reward_model=done)
        self.metrics.reloaded(not isinstance(done, BaseException))
        systemd_notify.ready()

    async def _in_worker(self, work: Callable[[], Any]) -> Any:
        self._work = self._worker.submit(work)
        return await asyncio.wrap_future(self._work)

    def _failed(self, life: asyncio.Task[None]) -> None:
        """End the server where it could not be loaded."""
        if not life.cancelled():
            self.failure = life.exception()
            self.server.should_exit = self.server.force_exit = True

    def _listen_to_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for name, handle in (("SIGTERM", self._stop), ("SIGINT", self._stop), ("SIGHUP", self._reload_asked.set)):
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is None:
                continue
            try:
                loop.add_signal_handler(number, handle)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_, handle=handle: loop.call_soon_threadsafe(handle))

    def _stop(self) -> None:
        """Take no more requests and let those under way end; the second time, end at once."""
        if self.server.should_exit:
            leave(1)
        log_event(logging.INFO, "stopping", drain_s=self.settings.drain_s)
        systemd_notify.stopping()
        self.server.should_exit = True
        asyncio.get_running_loop().call_later(self.settings.drain_s, self.lifecycle.end)


def leave(code: int) -> NoReturn:
    """End the process without waiting for threads that cannot be interrupted."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
