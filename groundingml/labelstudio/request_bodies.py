"""Reading what Label Studio sends: bodies within limits, JSON objects, project ids, label configs."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

from fastapi import Request

from groundingml.labelstudio.label_config import LabelConfig, parse_label_config


class BadRequest(ValueError):
    """A request is not what it should be. The message says what is wrong."""

    def __init__(self, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.status = status


async def read_object(request: Request, limit: int) -> dict[str, Any]:
    """The JSON object in a request's body.

    Raises:
        BadRequest: when it is none, or larger than ``limit`` bytes.
    """
    content = await read_body(request, limit)
    try:
        body = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BadRequest("The body is not JSON.") from error
    if not isinstance(body, dict):
        raise BadRequest("The body must be a JSON object.")
    return body


async def read_body(request: Request, limit: int) -> bytes:
    """The body of a request.

    Raises:
        BadRequest: when it is larger than ``limit`` bytes; the rest of it is not read.
    """
    too_large = BadRequest(f"The body is larger than {limit:,} bytes.", status=413)
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def read_project(body: dict[str, Any]) -> str:
    """Label Studio's id of the project a request is about: of "7.1795417412" the part before the dot."""
    return str(body.get("project") or "").partition(".")[0][:40]


def read_config(xml: Any, extra_params: Any) -> LabelConfig:
    """The label config of a request.

    Raises:
        BadRequest, LabelConfigError: when there is none, or it cannot be used.
    """
    if not isinstance(xml, str) or not xml.strip():
        raise BadRequest("The request has no label config.")
    return parse_label_config(xml, extra_params)


def editor_context(tasks: list[Any], params: Any) -> tuple[bool, Any]:
    """Whether an annotator waits with the editor open, as opposed to a batch for the project's labels, and
    the regions that the editor sent.

    The editor sends a context; when that is null, as after a submit, it is told by the drafts that only its
    tasks have.
    """
    context = params.get("context") if isinstance(params, dict) else None
    if context is not None:
        return True, context.get("result") if isinstance(context, dict) else None
    return bool(tasks) and all(isinstance(task, dict) and "drafts" in task for task in tasks), None


@contextlib.asynccontextmanager
async def watching_disconnect(request: Request) -> AsyncIterator[asyncio.Event]:
    """An event that is set when the client hangs up. Only for requests whose body has been read."""
    gone = asyncio.Event()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        gone.set()

    watcher = asyncio.create_task(watch())
    try:
        yield gone
    finally:
        watcher.cancel()
