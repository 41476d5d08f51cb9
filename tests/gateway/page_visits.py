"""Ask the page at / as a browser does, and read the words that it shows, for tests."""

from __future__ import annotations

import re
import urllib.error
import urllib.parse
import urllib.request
from html import unescape


def visit(address, form=None, headers=None):
    """Return status, headers and the page; ``form`` None asks for the empty one."""
    body = None if form is None else urllib.parse.urlencode(form).encode() if isinstance(form, dict) else form
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers or {}), timeout=20) as reply:
            return reply.status, reply.headers, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read().decode()


def words(html):
    return " ".join(unescape(re.sub("<[^>]+>", " ", html.split("<main")[1])).split())
