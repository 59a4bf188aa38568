"""Who may ask: HTTP Basic auth on everything but the health check, and a secret for webhooks.

Label Studio sends no credentials with its webhooks. A webhook may therefore show the secret instead, in a
header (which `groundingml connect` sets) or as the first part of the path: a backend that is connected as
``http://host:9090/SECRET`` gets all its requests there.
"""

from __future__ import annotations

import base64
import binascii
import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

OPEN_PATHS = ("/health",)
WEBHOOK_PATH = "/webhook"
SECRET_HEADER = "X-Webhook-Secret"


class Guard:
    """ASGI middleware that lets through what carries the right credentials, compared in constant time.

    Args:
        user, password: asked of everything but `/health` when they are set.
        webhook_secret: asked of `/webhook`, where it replaces user and password; None asks for none.
    """

    def __init__(
        self,
        app: ASGIApp,
        user: str | None = None,
        password: str | None = None,
        webhook_secret: str | None = None,
    ) -> None:
        self._app = app
        self._expected = None if user is None else f"{user}:{password}".encode()
        self._secret = None if webhook_secret is None else webhook_secret.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer 401, or pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        shows_secret = self._is_secret(headers.get(SECRET_HEADER, ""))
        first, _, rest = scope["path"][1:].partition("/")
        if self._is_secret(first):
            shows_secret = True
            path = f"/{rest}"
            scope["path"], scope["raw_path"] = path, path.encode("ascii", "ignore")
        if self._is_allowed(scope["path"], headers, shows_secret):
            await self._app(scope, receive, send)
            return
        wanted = "a user name and password (HTTP Basic auth)" if self._expected else "a webhook secret"
        refusal = JSONResponse(
            {"error": f"This backend asks for {wanted}."},
            status_code=401,
            headers={"WWW-Authenticate": 'Basic realm="groundingml", charset="UTF-8"'},
        )
        await refusal(scope, receive, send)

    def _is_allowed(self, path: str, headers: Headers, shows_secret: bool) -> bool:
        if path in OPEN_PATHS:
            return True
        if path.rstrip("/") == WEBHOOK_PATH and self._secret is not None:
            return shows_secret or (self._expected is not None and self._is_user(headers))
        return self._expected is None or self._is_user(headers)

    def _is_secret(self, text: str) -> bool:
        return self._secret is not None and hmac.compare_digest(text.encode(), self._secret)

    def _is_user(self, headers: Headers) -> bool:
        scheme, _, encoded = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic" or self._expected is None:
            return False
        try:
            given = base64.b64decode(encoded.strip(), validate=True)
        except (binascii.Error, ValueError):
            return False
        return hmac.compare_digest(given, self._expected)
