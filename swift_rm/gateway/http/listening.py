"""The socket that the server listens on."""

from __future__ import annotations

import os
import socket


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; raise OSError, in one sentence, if the address is in use or not of this machine."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, address = min(found, key=lambda one: one[0] != socket.AF_INET)  # localhost may be ::1, too
        both = family == socket.AF_INET6 and host == "::" and socket.has_dualstack_ipv6()
        listening = socket.create_server(address, family=family, backlog=2048, dualstack_ipv6=both)
        # Connections inherit it (asyncio sets it only where a socket tells its protocol); else replies wait 40 ms for an ACK.
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return listening
    except (OSError, UnicodeError) as error:
        number = getattr(error, "errno", None) or 0  # those of name resolution are negative
        said = os.strerror(number) if number > 0 else getattr(error, "strerror", None) or str(error)
        raise OSError(f"cannot listen on {host} port {port}: {said[:1].lower()}{said[1:]}") from error


def url(host: str, port: int | None) -> str:
    """Return the URL of a server's host, a name or an address, and port."""
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"
