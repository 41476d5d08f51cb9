from __future__ import annotations

import asyncio
from base64 import b64encode

import pytest

from swift_rm.gateway.app.access import Access, credentials, from_another_site
from swift_rm.gateway.request.settings import Settings
from tests.gateway.running_gateway import CHAT, running
from tests.gateway.scripted_backend import ScriptedBackend

SETTINGS = Settings(model="m", reward_model="r", page=False)
TOKEN = "s3cret-tökén"
GOOD = {"model": "plain", "messages": [{"role": "user", "content": "27 + 15"}]}


def basic(text):
    return "Basic " + b64encode(text.encode()).decode()


def asking(*requests, token=None, settings=SETTINGS):
    """Return the replies to (method, path, headers) requests."""

    async def run():
        async with running(ScriptedBackend(), settings, token=token) as gateway:
            return [await gateway.ask(method, path, GOOD, **headers) for method, path, headers in requests]

    return asyncio.run(run())


def test_nothing_but_health_is_open_without_the_token():
    paths = ("/v1/models", "/v1/models/plain", "/metrics", "/openapi.json", "/nowhere", "/health/")
    *refused, chat, health = asking(
        *(("GET", path, {}) for path in paths), ("POST", CHAT, {}), ("GET", "/health", {"host": "any.example"}), token=TOKEN
    )
    for reply in (*refused, chat):
        assert reply.status == 401 and reply.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer TOKEN" in reply.message and reply.json["error"]["type"] == "authentication_error"
    assert health.status == 200


@pytest.mark.parametrize(
    ("said", "status"),
    [
        (f"Bearer {TOKEN}", 200), (f"bearer   {TOKEN} ", 200), (f"Bearer {TOKEN}x", 401), (f"Bearer {TOKEN[:-1]}", 401),
        ("Bearer ", 401), ("Bearer", 401), (TOKEN, 401), (basic(f"me:{TOKEN}"), 401), (f"Token {TOKEN}", 401), ("Bearer ÿ", 401),
    ],
)  # fmt: skip
def test_the_token_is_compared_whole(said, status):
    (reply,) = asking(("POST", CHAT, {"authorization": said, "host": "any.example"}), token=TOKEN)
    assert reply.status == status and (TOKEN not in reply.body.decode())
    if status == 401 and said.startswith("Bearer s3"):
        assert reply.message == "the token is not the server's"


def test_a_browser_brings_the_token_by_basic_to_the_page_alone():
    good, any_user, bearer, wrong, odd, none, api = asking(
        ("GET", "/", {"authorization": basic(f"me:{TOKEN}")}), ("GET", "/", {"authorization": basic(f":{TOKEN}")}),
        ("GET", "/", {"authorization": f"Bearer {TOKEN}"}), ("GET", "/", {"authorization": basic(f"{TOKEN}:me")}),
        ("GET", "/", {"authorization": "Basic =%="}), ("GET", "/", {}),
        ("GET", "/metrics", {"authorization": basic(f"me:{TOKEN}")}), token=TOKEN,
    )  # fmt: skip
    assert [one.status for one in (good, any_user, bearer)] == [404] * 3  # let in, and there is no page here
    assert [one.status for one in (wrong, odd, none, api)] == [401] * 4
    assert none.headers["www-authenticate"].startswith('Basic realm="swift-rm"') and api.headers["www-authenticate"] == "Bearer"


def test_reads_credentials():
    assert credentials(b"Basic " + b64encode(b"user:a:b"), basic=True) == b"a:b"
    assert credentials(b"Basic " + b64encode(b"user"), basic=True) is None
    assert credentials(b"Basic " + b64encode(b"u:p")) is None and credentials(b"") is None


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("localhost", 200), ("LOCALHOST:1", 200), ("127.0.0.1:8000", 200), ("127.1.2.3", 200), ("[::1]:80", 200),
        ("evil.example", 403), ("localhost.evil.example", 403), ("127.0.0.1.evil.example", 403), ("127.0.0.1:80@evil", 403),
        ("[::2]", 403), ("", 403), ("xlocalhost", 403),
    ],
)  # fmt: skip
def test_without_a_token_only_names_of_this_machine_are_answered(host, status):
    chat, get, health = asking(
        ("POST", CHAT, {"host": host}), ("GET", "/v1/models", {"host": host}), ("GET", "/health", {"host": host})
    )
    assert chat.status == get.status == status and health.status == 200
    if status == 403:
        assert "open http://127.0.0.1:" in chat.message and chat.json["error"]["type"] == "permission_error"


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"sec_fetch_site": "cross-site"}, 403), ({"sec_fetch_site": "same-site", "origin": "http://localhost:1"}, 403),
        ({"sec_fetch_site": "same-origin", "origin": "http://other"}, 200), ({"sec_fetch_site": "none"}, 200),
        ({"origin": "http://localhost:1"}, 200), ({"origin": "http://localhost:2"}, 403), ({"origin": "http://localhost"}, 403),
        ({"origin": "null"}, 403), ({"origin": "http://[evil"}, 403), ({"origin": "http://evil.example"}, 403),
    ],
)  # fmt: skip
def test_pages_of_other_sites_cannot_post(headers, status, token):
    given = {"host": "localhost:1", "authorization": f"Bearer {TOKEN}", **headers}
    post, get = asking(("POST", CHAT, given), ("GET", "/v1/models", given), token=token)
    assert post.status == status and get.status == 200
    if status == 403:
        assert "pages of other sites" in post.message


def test_who_asks_under_another_name_is_told_the_address():
    access = Access(None, None)
    scope = {"path": "/", "method": "GET", "headers": [(b"host", b"evil.example")], "server": ("::1", 8000)}
    assert "open http://[::1]:8000 instead" in access._refusal(scope).message


def test_programs_say_no_site():
    assert not from_another_site({b"host": b"a"}) and from_another_site({b"origin": b"http://a"})
