"""Texts that mean no good, a parser that refuses what acts, and a headless browser, for tests of pages."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser

import pytest

HOSTILE = [
    "<script>document.title='hacked'</script>",
    "</style><img src=x onerror=\"document.title='hacked'\">",
    '"><b onmouseover=alert(1)>',
    "' autofocus onfocus='document.title=1'",
    "javascript:alert(1)",
    "<a href=https://example.org/>x</a><base href=//example.org>",
    "</span></p></article><!--",
    "]]><svg/onload=alert(1)>",
    "&lt;&amp;&#60;",
    "<meta http-equiv=refresh content=0>",
]
UNSEEN = ["\x00", "\x1b[31m", "\u202e", "\u2066", "\x7f", "\x85", "\u200b", "\r", "\ud800", "\u2028", "\ufeff"]
TAGS = {
    "html": {"lang"}, "head": set(), "meta": {"charset", "http-equiv", "content", "name"}, "title": set(), "style": set(),
    "body": set(), "header": set(), "nav": {"aria-label"}, "main": set(), "section": {"id"}, "article": set(),
    "h1": set(), "h2": set(), "h3": set(), "p": {"class", "dir"}, "div": {"class", "tabindex"}, "a": {"href"}, "b": set(),
    "bdi": set(), "small": set(), "ul": set(), "li": set(), "dl": set(), "dt": set(), "dd": set(), "code": set(), "em": set(),
    "i": {"class"}, "span": {"class", "tabindex", "data-r", "data-g", "data-a", "data-i"},
}  # fmt: skip


class Page(HTMLParser):
    """The elements of a page with their attributes, its texts by element, and the text and attributes of each token."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.texts, self.tokens, self.comments = [], [], {}, [], 0
        self.feed(html)
        self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if "data-i" in dict(attributes):
            self.tokens.append([dict(attributes), ""])
        if tag not in ("meta", "input"):
            self.open.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_comment(self, data):
        self.comments += 1

    def handle_data(self, data):
        tag, attributes = self.open[-1] if self.open else ("", {})
        self.texts.setdefault(tag, []).append(data)
        if "data-i" in attributes:
            self.tokens[-1][1] += data


@pytest.fixture(scope="module")
def browse():
    names = ("chromium", "chromium-browser", "google-chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        (pytest.fail if os.environ.get("SWIFT_RM_REQUIRE_BROWSER") == "1" else pytest.skip)(f"none of {names} is installed")

    def run(tmp_path, html, *options):
        (tmp_path / "page.html").write_text(html)
        quiet = (
            "no-sandbox disable-gpu disable-quic no-first-run disable-background-networking disable-component-update disable-sync"
        )
        flags = [f"--{flag}" for flag in f"headless {quiet} user-data-dir={tmp_path / 'profile'}".split(" ")]
        command = [program, *flags, *options, (tmp_path / "page.html").as_uri()]
        done = subprocess.run(command, capture_output=True, timeout=120)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout.decode()

    return run


def read_png(data):
    """Return the (red, green, blue) pixels of an 8-bit RGB or RGBA picture without interlacing."""
    width, height, depth, kind = struct.unpack(">IIBB", data[16:26])
    assert (depth, data[28]) == (8, 0)
    assert kind in (2, 6)
    size, place, packed = {2: 3, 6: 4}[kind], 8, b""
    while place < len(data):
        length = struct.unpack(">I", data[place : place + 4])[0]
        if data[place + 4 : place + 8] == b"IDAT":
            packed += data[place + 8 : place + 8 + length]
        place += length + 12
    raw, stride, above, pixels = zlib.decompress(packed), width * size, bytearray(width * size), []
    for row in range(height):
        rule, line = raw[row * (stride + 1)], bytearray(raw[row * (stride + 1) + 1 : (row + 1) * (stride + 1)])
        for i in range(stride if rule else 0):
            a, b, c = (line[i - size], above[i], above[i - size]) if i >= size else (0, above[i], 0)
            nearest = min((abs(b - c), 0, a), (abs(a - c), 1, b), (abs(a + b - 2 * c), 2, c))[2]
            line[i] = (line[i] + (0, a, b, (a + b) // 2, nearest)[rule]) & 255
        pixels += [tuple(line[i : i + 3]) for i in range(0, stride, size)]
        above = line
    return pixels
