"""`serve`: check what can be checked at once, take the port, and run the server until a signal ends it."""

from __future__ import annotations

import asyncio
import os
from importlib.util import find_spec
from typing import TYPE_CHECKING

from swift_rm.gateway.http.listening import listen
from swift_rm.gateway.request.settings import Settings

if TYPE_CHECKING:
    from swift_rm.gateway.http.metrics import Metrics
    from swift_rm.gateway.request.backend import Backend

PACKAGES = ("fastapi", "uvicorn", "prometheus_client", "httpx2")
MISSING = 'serving needs {}: pip install "swift-rm[serve]"'
SHORTEST_TOKEN = 8


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT has ended what is under way.

    It listens at once and answers 503 until the models are loaded. Raises ImportError for missing packages, ValueError for a
    token or model that cannot be, OSError for an address that cannot be listened on, and what loading raises.
    """
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ImportError(MISSING.format(" and ".join(missing)))
    token = token_of(settings)
    from swift_rm.gateway.http.logs import configure
    from swift_rm.gateway.http.metrics import Metrics
    from swift_rm.gateway.process.server import ServerProcess, leave

    with listen(settings.host, settings.port) as listening:
        configure(settings)
        metrics = Metrics()
        process = ServerProcess(backend_of(settings, metrics), settings, metrics, listening, token)
        asyncio.run(process.run())
    if process.busy:
        leave(0)


def token_of(settings: Settings) -> str | None:
    """Return the bearer token that clients must bring, None where only this machine can ask and none is set.

    Raises ValueError for one that is easily guessed or cannot be sent, without showing it, and for one that is missing.
    """
    name = settings.token_env
    token = os.environ.get(name, "").strip()
    if token and (len(token) < SHORTEST_TOKEN or not token.isascii() or not token.isprintable() or " " in token):
        raise ValueError(f"the token in {name} must have at least {SHORTEST_TOKEN} ASCII characters, and no space")
    if not token and name != Settings.token_env:
        raise ValueError(f"there is no token in the environment variable {name!r}, which token-env names")
    if not token and not settings.loopback:
        raise ValueError(
            f"whoever can reach {settings.host} could use this server: set a token, such as "
            f'export {name}="$(openssl rand -hex 24)", or listen on 127.0.0.1'
        )
    return token or None


def backend_of(settings: Settings, metrics: Metrics) -> Backend:
    """Return what answers the requests: a model here, or the server that is in front of."""
    if settings.upstream:
        from swift_rm.gateway.upstream.backend import UpstreamBackend

        return UpstreamBackend(settings)
    import torch

    from swift_rm.gateway.local.backend import LocalBackend

    # Threads of a model that share their core with requests wait for each other at every operation.
    spare = min(torch.get_num_threads(), (os.cpu_count() or 1) - 1)
    torch.set_num_threads(settings.threads or max(1, spare))
    return LocalBackend(settings, on_batch=metrics.batch)
