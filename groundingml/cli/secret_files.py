"""Secrets in files, which unlike options appear in no process list."""

from __future__ import annotations

from pathlib import Path

from groundingml.labelstudio.settings import SettingsError


def read_secret(file: Path | None, what: str) -> str | None:
    """The secret in a file, without its last line end; None without a file.

    Raises:
        SettingsError: it cannot be read.
    """
    if file is None:
        return None
    try:
        return file.read_text(encoding="utf-8").strip("\r\n")
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"The {what} file {file} cannot be read: {error}.") from error
