"""The `groundingml` command."""

from __future__ import annotations

import sys


def main() -> None:
    """Entry point of the command; says what to install when the command line's own libraries are absent."""
    try:
        from groundingml.cli.app import app
    except ModuleNotFoundError as error:
        if error.name not in ("typer", "rich", "click"):
            raise
        sys.exit(
            f"groundingml: the command line needs the package {error.name!r}, which is not installed. "
            "Install it with: pip install 'groundingml[cli]'"
        )
    app()
