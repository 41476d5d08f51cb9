"""A Ray cluster: started here, quietly and on loopback, or joined by its address; and a word in time when it is gone."""

from __future__ import annotations

import logging
import os
import queue
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from swift_rm.files.time_limit import CallOutcome, call_within

RayRow = dict[str, Any]

LOCAL = "local"
MISSING = 'more than one process or machine needs Ray: pip install "swift-rm[ray]"'
ENVIRONMENT = {  # read when Ray is imported or started; what is set already stays
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",  # its messages would go to stdout, among results
    "RAY_ENABLE_AUTO_CONNECT": "0",  # what is still asked of a Ray that was stopped would start another
}
LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # the switch that makes a Ray of one machine listen on 127.0.0.1 only
OPEN = "its ports are open to the network, to those with its token; start it yourself, or import ray later"
TOKEN = "a cluster that asks for a token needs RAY_AUTH_MODE=token, and the token in ~/.ray/auth_token"
REACH_S = 10.0  # for a cluster's first sign of life
PING_S = 2.0  # without a row: then it is looked whether Ray is still there
STOP_S = 2.0  # for a row that nobody wants any more


def check_address(address: str) -> None:
    """Raise ValueError unless an address is ``local``, ``auto`` or ``host:port`` (with or without ``ray://``)."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address not in (LOCAL, "auto") and not (host and port.isdigit()):
        raise ValueError(f"the address of a Ray cluster is host:port, or auto, got {address!r}")


def connect(address: str, cores: int | None) -> bool:
    """Start Ray here, with so many ``cores`` (None: all that may be used), or join the cluster at ``address``.

    Returns whether that was needed: a Ray that this process uses already is left as it is. Raises ImportError without Ray,
    ConnectionError for a cluster that is not there, of another version, or asks for a token.
    """
    known = sys.modules.get("ray")
    if known is not None and known.is_initialized():
        return False
    if known is not None and address == LOCAL and not LOOPBACK.items() <= os.environ.items():
        warnings.warn(f"Ray was imported before it could be told to stay on 127.0.0.1: {OPEN}", stacklevel=3)
    for name, value in (ENVIRONMENT | (LOOPBACK if address == LOCAL else {})).items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        raise ImportError(MISSING) from error
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.CRITICAL}
    check_reachable(address)
    try:
        with _stderr_to_nothing(), _same_sigterm():
            if address == LOCAL:
                here = {"env_vars": {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}}
                cores = cores or len(os.sched_getaffinity(0))
                ray.init(address=LOCAL, num_cpus=cores, include_dashboard=False, runtime_env=here, **quiet)
            else:
                ray.init(address=address, **quiet)
    except (OSError, RuntimeError, ValueError) as error:
        told = " ".join(str(error).split())
        if address == LOCAL:
            raise ConnectionError(f"Ray could not be started here: {told}") from error
        raise ConnectionError(f"the Ray cluster at {address!r} cannot be used: {told} ({TOKEN})") from error
    return True


def check_reachable(*addresses: str) -> None:
    """Raise ConnectionError if nobody listens at a ``host:port``, which Ray itself notices after minutes only."""
    for address in addresses:
        host, _, port = address.removeprefix("ray://").rpartition(":")
        if not host or not port.isdigit():
            continue
        try:
            socket.create_connection((host, int(port)), timeout=REACH_S).close()
        except OSError as error:
            raise ConnectionError(f"no Ray cluster answers at {host}:{port}: {error.strerror or error}") from error


def required_addresses() -> list[str]:
    """Return where those listen that this process cannot do without: the cluster's head, and Ray on this machine."""
    import ray

    context = ray.get_runtime_context()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    here = [node for node in nodes if node["NodeID"] == context.get_node_id()]
    return [context.gcs_address, *(f"{node['NodeManagerAddress']}:{node['NodeManagerPort']}" for node in here)]


def rows_while_reachable(rows: Iterable[RayRow], addresses: Sequence[str]) -> Generator[RayRow, None, None]:
    """Yield rows that a thread waits for; raise ConnectionError once nobody listens at one of the ``addresses``.

    Ray itself would end the process, after a while and without a word.
    """
    found: queue.SimpleQueue[CallOutcome[RayRow | None]] = queue.SimpleQueue()
    wanted = threading.Semaphore(1)  # one row is fetched while the one before it is worked on
    stopped = threading.Event()

    def fetch() -> None:
        each = iter(rows)
        while wanted.acquire() and not stopped.is_set():
            outcome = call_within(None, lambda: next(each, None))
            assert outcome is not None
            found.put(outcome)
            if outcome.value is None:
                return

    thread = threading.Thread(target=fetch, daemon=True)
    thread.start()
    try:
        while True:
            try:
                outcome = found.get(timeout=PING_S)
            except queue.Empty:
                check_reachable(*addresses)
                continue
            if outcome.error is not None:
                raise outcome.error
            if outcome.value is None:
                return
            wanted.release()
            yield outcome.value
    finally:
        stopped.set()
        wanted.release()
        thread.join(STOP_S)


@contextmanager
def _stderr_to_nothing() -> Iterator[None]:
    """Keep what Ray's C++ side writes to the process's stderr while it starts (a line on its log level) off the terminal."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


@contextmanager
def _same_sigterm() -> Iterator[None]:
    """Leave SIGTERM as it was: Ray's own handler would end the process with a stack of addresses."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, handler)
