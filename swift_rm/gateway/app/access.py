"""Who may ask: those with the token, or those on this machine; and no page of another site through a visitor's browser."""

from __future__ import annotations

import base64
import binascii
import re
import secrets
from collections.abc import Mapping
from urllib.parse import urlsplit

from swift_rm.gateway.http.disconnects import Receive
from swift_rm.gateway.http.listening import url
from swift_rm.gateway.http.request_log import App, Scope, Send
from swift_rm.gateway.http.responses import error_reply
from swift_rm.gateway.request.errors import GatewayError

OPEN = frozenset({"/health"})  # what service managers and load balancers ask
PAGES = frozenset({"/"})  # where a browser asks people for the token: any user name, the token as password
BASIC = 'Basic realm="swift-rm", charset="UTF-8"'
_LOCAL = re.compile(rb"(localhost|127(\.[0-9]{1,3}){3}|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)


class Access:
    """An ASGI layer that lets through who may ask; the others are told why not, with status 401 or 403.

    With a ``token``, requests bring it as ``Authorization: Bearer``. Without one, the server is on loopback, and the Host that a
    request names must be too: a page of another site whose name was made to point here would name its own.
    """

    def __init__(self, app: App, token: str | None) -> None:
        self.app, self.token = app, None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http" and (refusal := self._refusal(scope)) is not None:
            return await error_reply(refusal)(scope, receive, send)
        await self.app(scope, receive, send)

    def _refusal(self, scope: Scope) -> GatewayError | None:
        if scope["path"] in OPEN:
            return None
        headers: dict[bytes, bytes] = dict(scope["headers"])
        if self.token is not None:
            page = scope["path"] in PAGES
            given = credentials(headers.get(b"authorization", b""), basic=page)
            if given is None or not secrets.compare_digest(given, self.token):
                said = "is not the server's" if given is not None else "is missing: send it as 'Authorization: Bearer TOKEN'"
                return GatewayError(
                    401, f"the token {said}", code="invalid_api_key", headers={"www-authenticate": BASIC if page else "Bearer"}
                )
        elif not _LOCAL.fullmatch(headers.get(b"host", b"")):
            here = url(*(scope.get("server") or ("127.0.0.1", None)))
            return GatewayError(403, f"without a token this server answers only under its own name: open {here} instead")
        if scope["method"] == "POST" and from_another_site(headers):
            return GatewayError(403, "pages of other sites may not post to this server")
        return None


def credentials(header: bytes, basic: bool = False) -> bytes | None:
    """Return the token in an Authorization header: of Bearer or, if ``basic``, the password of Basic; None without one."""
    scheme, _, rest = header.partition(b" ")
    rest = rest.strip()
    if scheme.lower() == b"bearer":
        return rest or None
    if basic and scheme.lower() == b"basic":
        try:
            _, colon, password = base64.b64decode(rest, validate=True).partition(b":")
        except binascii.Error:
            return None
        return password if colon else None
    return None


def from_another_site(headers: Mapping[bytes, bytes]) -> bool:
    """Tell whether a browser says that a request comes from a page of another site.

    Sec-Fetch-Site says it, which no script can forge; browsers do not send it over plain http to other machines, but Origin,
    which must then name the host that was asked. Programs send neither.
    """
    site = headers.get(b"sec-fetch-site")
    if site is not None:
        return site not in (b"same-origin", b"none")
    origin = headers.get(b"origin")
    if origin is None:
        return False
    try:
        there = urlsplit(origin.decode("latin-1")).netloc
    except ValueError:
        return True
    return there.lower() != headers.get(b"host", b"").decode("latin-1").lower()
