"""The Label Studio ML backend: what Label Studio sends over HTTP, answered with boxes.

The server libraries are the extra `serve`; importing this package needs none of them, calling
:func:`create_app` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from groundingml.labelstudio.settings import Settings, SettingsError

if TYPE_CHECKING:
    from fastapi import FastAPI

    from groundingml.inference import ObjectDetector

__all__ = ["Settings", "SettingsError", "create_app"]


def create_app(settings: Settings, detector: ObjectDetector | None = None) -> FastAPI:
    """Build the backend's ASGI application.

    Args:
        settings: addresses, credentials and limits.
        detector: a loaded detector; without one, ``settings.model`` is loaded in the background once the
            server starts.

    Raises:
        ModuleNotFoundError: when the server libraries are not installed, saying how to install them.
    """
    try:
        from groundingml.labelstudio.app import build_app
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("groundingml"):
            raise
        raise ModuleNotFoundError(
            f"The Label Studio backend needs the package {error.name!r}. Install the server libraries with: "
            "pip install 'groundingml[serve]'",
            name=error.name,
        ) from error
    return build_app(settings, detector)
