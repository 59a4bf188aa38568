"""Where data is kept when nobody says where."""

from __future__ import annotations

import os
from pathlib import Path

DATABASE_NAME = "groundingml.sqlite3"


def default_data_dir() -> Path:
    """`groundingml` in XDG_DATA_HOME, which is `~/.local/share` unless it is set."""
    base = os.environ.get("XDG_DATA_HOME", "")
    # The specification has relative paths ignored.
    folder = Path(base) if os.path.isabs(base) else Path.home() / ".local" / "share"
    return folder / "groundingml"


def default_url(data_dir: Path) -> str:
    """The URL of the SQLite file in a data folder."""
    return f"sqlite:///{(data_dir / DATABASE_NAME).absolute()}"
