"""Webhooks: Label Studio tells what annotators did, and holds their submit until it is answered.

It waits one second and does not try again. So an event is only made to last before it is answered; what
follows from it is done afterwards, by `capture`.
"""

from __future__ import annotations

import logging

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse

from groundingml.labelstudio.inbox_writer import BadEvent, InboxWriter, NotKept

logger = logging.getLogger(__name__)


def webhook_router(writer: InboxWriter | None, max_body_bytes: int) -> APIRouter:
    """The route for webhooks; without a writer they are acknowledged and forgotten.

    It always answers a JSON object: after any other answer to START_TRAINING Label Studio fails itself.
    """
    router = APIRouter()

    @router.post("/webhook")
    async def webhook(request: Request) -> JSONResponse:
        body = bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > max_body_bytes:
                reason = f"The body is larger than {max_body_bytes:,} bytes."
                return JSONResponse({"status": "error", "error": reason}, status_code=413)
        if writer is None:
            return JSONResponse({"status": "ok"})
        try:
            await writer.keep(bytes(body))
        except BadEvent as error:
            # The body is not logged: it may carry the project's token.
            logger.warning("A webhook was refused: %s", error)
            return JSONResponse({"status": "error", "error": str(error)}, status_code=400)
        except NotKept as error:
            return JSONResponse({"status": "error", "error": str(error)}, status_code=503)
        return JSONResponse({"status": "ok"})

    return router
