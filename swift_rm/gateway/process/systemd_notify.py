"""Tell a service manager how the server stands: systemd's protocol, a datagram to the socket that NOTIFY_SOCKET names."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress

VARIABLE = "NOTIFY_SOCKET"


def ready() -> None:
    """Say that requests are answered."""
    _notify("READY=1")


def reloading() -> None:
    """Say that the reward model is loaded anew; ``ready`` says when that is over."""
    _notify(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")


def stopping() -> None:
    """Say that the server is about to end."""
    _notify("STOPPING=1")


def _notify(message: str) -> None:
    """Send a message; nobody listening, or nobody there, is no fault of the server's. Source: sd_notify(3)."""
    address = os.environ.get(VARIABLE, "")
    if address[:1] not in ("/", "@") or not hasattr(socket, "AF_UNIX"):
        return
    if address.startswith("@"):  # a socket of Linux that is no file
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(1.0)
        sender.connect(address)
        sender.send(message.encode())
