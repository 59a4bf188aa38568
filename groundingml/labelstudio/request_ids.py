"""A name for each request, in its answer and in every line that is logged for it; and its time, counted."""

from __future__ import annotations

import contextvars
import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from groundingml.labelstudio.metrics import Metrics

logger = logging.getLogger(__name__)

HEADER = "X-Request-ID"
current_request_id: contextvars.ContextVar[str] = contextvars.ContextVar("request id", default="")
"""That of the request which runs; empty outside of requests."""
_FIT = re.compile(r"[\w.-]{1,64}", re.ASCII)


class RequestIds:
    """ASGI middleware: takes the client's `X-Request-ID`, or makes one up, and returns it."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        name = given if _FIT.fullmatch(given) else uuid.uuid4().hex[:16]
        token = current_request_id.set(name)
        started = time.monotonic()
        status = 500

        async def send_named(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)[HEADER] = name
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        finally:
            seconds = time.monotonic() - started
            # The route's, so that what clients make up does not fill the counters.
            path = getattr(scope.get("route"), "path", "(other)")
            self._metrics.requests.labels(path, str(status)).inc()
            self._metrics.request_seconds.labels(path).observe(seconds)
            logger.debug("%s %s -> %d in %.3f s", scope["method"], path, status, seconds)
            current_request_id.reset(token)
