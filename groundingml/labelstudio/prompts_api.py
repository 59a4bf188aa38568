"""Remembered prompts over HTTP: shown, changed and cleared by scripts."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter, Request

from groundingml.labelstudio.request_bodies import BadRequest, read_object
from groundingml.labelstudio.services import Services

MAX_BODY_BYTES = 200_000


def prompts_router(services: Services) -> APIRouter:
    """/projects/{project}/prompts: GET shows them, PUT {"control": ..., "text": ...} changes one, DELETE
    clears all, or that of ?control=."""
    router = APIRouter()

    @router.get("/projects/{project}/prompts")
    async def show(project: str) -> dict[str, Any]:
        return {"project": project, "prompts": await asyncio.to_thread(services.prompts.of, project)}

    @router.put("/projects/{project}/prompts")
    async def change(project: str, request: Request) -> dict[str, Any]:
        body = await read_object(request, MAX_BODY_BYTES)
        control, text = body.get("control"), body.get("text")
        if not isinstance(control, str) or not control or not isinstance(text, str):
            raise BadRequest('Send {"control": name of the TextArea, "text": the prompt}.')
        await asyncio.to_thread(services.prompts.set, project, control, text)
        return await show(project)

    @router.delete("/projects/{project}/prompts")
    async def clear(project: str, control: str | None = None) -> dict[str, Any]:
        await asyncio.to_thread(services.prompts.clear, project, control)
        return await show(project)

    return router
