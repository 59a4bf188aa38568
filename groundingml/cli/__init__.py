"""The `groundingml` command."""

from __future__ import annotations

import os
import sys

from groundingml.memory import keep_freed_memory


def main() -> None:
    """Entry point of the command; says what to install when the command line's own libraries are absent."""
    keep_freed_memory()
    # Threads that wait for each other sleep instead of spinning, which would hold up whatever else the
    # machine does, the other threads included. Read when PyTorch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        from groundingml.cli.app import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich", "click"):
            raise
        sys.exit(
            f"groundingml: the command line needs the package {package!r}, which is not installed. "
            "Install it with: pip install 'groundingml[cli]'"
        )
    try:
        app()
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("httpx", "httpcore", "defusedxml", "sqlalchemy", "alembic"):
            raise
        sys.exit(
            f"groundingml: this command needs the package {package!r}, which is not installed. "
            "Install it with: pip install 'groundingml[serve]'"
        )
