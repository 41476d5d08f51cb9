"""A key from the environment, addresses and servers' words: what of them may be shown."""

from __future__ import annotations

import ipaddress
import os
from urllib.parse import urlsplit

USUAL = "OPENAI_API_KEY"
WINDOW = 6  # so many characters of a key in a row are a part of it
LONGEST_WORDS = 200  # characters of a server's that are shown
UNMISTAKABLE = 16  # a shorter key may be a word


class ApiKey:
    """The key in the environment variable ``name``, "none" where it is not set: servers of one's own want none.

    Nothing prints it: only ``value`` has it. Raises ValueError if it holds what no header can, or if another variable than
    the usual one is named and not set: then the name, which is not shown, may be the key itself.
    """

    def __init__(self, name: str) -> None:
        if name not in (USUAL, *os.environ):
            raise ValueError(
                "the environment variable that is to hold the key is not set; name the variable, not the key itself "
                "(key_env, --api-key-env)"
            )
        self.name = name
        key = os.environ.get(name, "").strip()
        if not (key.isascii() and key.isprintable() and " " not in key):
            raise ValueError(
                f"the environment variable {name} holds no key: a space, a line break or a letter beyond ASCII is in it"
            )
        self._key = key

    @property
    def value(self) -> str:
        """Return the key."""
        return self._key or "none"

    def __repr__(self) -> str:
        return f"ApiKey({self.name!r})"

    def partly_in(self, text: str) -> bool:
        """Tell whether a part of the key occurs in a text, in capitals or with white space in between even."""
        key, text = self._key.lower(), "".join(text.lower().split())
        return bool(key) and any(key[at : at + WINDOW] in text for at in range(max(1, len(key) - WINDOW + 1)))

    def wholly_in(self, text: str) -> bool:
        """Tell whether the key, if it is long enough to be no word, occurs in a text."""
        return len(self._key) >= UNMISTAKABLE and self._key in text

    def shown(self, words: str) -> str:
        """Return a server's words on one line, cut, without control characters; nothing if a part of the key may be in them."""
        line = " ".join("".join(c if c.isprintable() else " " for c in words).split())
        if self.partly_in(words) or self.partly_in("".join(c for c in words if c.isprintable())):
            return ""
        return line if len(line) <= LONGEST_WORDS else line[: LONGEST_WORDS - 3] + "..."


def without_secrets(url: str) -> str:
    """Return an address as it may be shown: without user, password and query, any of which may be a key."""
    start, slashes, rest = url.partition("?")[0].partition("#")[0].partition("://")
    host, slash, path = rest.partition("/")
    return f"{start}{slashes}{host.rpartition('@')[2]}{slash}{path}"


def host_of(url: str) -> str | None:
    """Return the host of an address of http or https, or None if it has none or a port that cannot be."""
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme in ("http", "https") and parts.port != 0 else None
    except ValueError:  # brackets that do not match, a port beyond 65535
        return None


def is_loopback(host: str) -> bool:
    """Tell whether a host is this machine, reached from nowhere else."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def check_address(url: str, key: ApiKey) -> None:
    """Raise ValueError unless an address has a host, of http or https, and the key is in no part of it that is shown."""
    if not host_of(url):
        raise ValueError(f"the endpoint {without_secrets(url)!r} is no address with a host, of http or https")
    if key.wholly_in(without_secrets(url)):
        raise ValueError(f"the endpoint's address holds the key of {key.name}, and is shown in messages")
