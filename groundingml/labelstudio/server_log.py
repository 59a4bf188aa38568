"""How the server's log lines look: plain text or JSON, each with its request's id, none with a secret.

Errors that nobody expected are one line with their type and place; the whole traceback comes at the level
debug.
"""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Literal

from groundingml.labelstudio.request_ids import current_request_id

LogFormat = Literal["text", "json"]
MOST_RECENT = 20
_TOKENS = re.compile(
    r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"  # JWTs
    r"|(?i:\b(?:bearer|basic|token)\s+)[\w.+/=-]{8,}"
    r"|(?<=://)[^/@\s]+(?=@)"  # credentials in a URL
    r"|(?<![0-9a-fA-F])[0-9a-fA-F]{40}(?![0-9a-fA-F])"  # legacy tokens of Label Studio
)
_HIDDEN = "[hidden]"


def configure_logging(
    log_format: LogFormat = "text", level: str = "info", secrets: Sequence[str | None] = ()
) -> None:
    """Send all log lines of this process to stderr.

    Args:
        secrets: texts that are not to appear in it, beside what looks like a token.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(LineFormatter(log_format, secrets, with_traceback=level == "debug"))
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    for chatty in ("httpx", "httpcore", "asyncio", "PIL", "urllib3", "filelock"):
        logging.getLogger(chatty).setLevel(logging.WARNING)


class LineFormatter(logging.Formatter):
    """One line for each record."""

    def __init__(
        self, log_format: LogFormat, secrets: Sequence[str | None] = (), *, with_traceback: bool = False
    ) -> None:
        super().__init__()
        self._format = log_format
        self._secrets = sorted({secret for secret in secrets if secret}, key=len, reverse=True)
        self._with_traceback = with_traceback

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        message = " ".join(record.getMessage().splitlines())
        error = self._error(record)
        time = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        request = current_request_id.get()
        if self._format == "json":
            line = {"time": time, "level": record.levelname.lower(), "logger": record.name}
            line |= {"request_id": request} if request else {}
            line |= {"message": self.clean(message)}
            line |= {"error": self.clean(error)} if error else {}
            return json.dumps(line, ensure_ascii=False)
        named = f" [{request}]" if request else ""
        return self.clean(f"{time} {record.levelname}{named} {message}{': ' if error else ''}{error}")

    def _error(self, record: logging.LogRecord) -> str:
        if not record.exc_info or record.exc_info[1] is None:
            return ""
        if self._with_traceback:
            return "".join(traceback.format_exception(record.exc_info[1])).rstrip()
        return describe_error(record.exc_info[1])

    def clean(self, text: str) -> str:
        """The text without secrets."""
        for secret in self._secrets:
            text = text.replace(secret, _HIDDEN)
        return _TOKENS.sub(_HIDDEN, text)


def describe_error(error: BaseException) -> str:
    """``ValueError: no such thing (predictor.py:12)``: what an error is, in one line without paths."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else ""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]}{place}"


@dataclass(frozen=True)
class Trouble:
    """A warning or error, as a person reads it."""

    at: datetime
    level: str
    message: str


class RecentTroubles(logging.Handler):
    """Keeps the last warnings of this package, for the status page."""

    def __init__(self, secrets: Sequence[str | None] = ()) -> None:
        super().__init__(logging.WARNING)
        self._formatter = LineFormatter("text", secrets)
        self._newest_last: deque[Trouble] = deque(maxlen=MOST_RECENT)

    def emit(self, record: logging.LogRecord) -> None:
        """Keep a record."""
        message = " ".join(record.getMessage().splitlines())[:500]
        at = datetime.fromtimestamp(record.created, timezone.utc)
        self._newest_last.append(Trouble(at, record.levelname.lower(), self._formatter.clean(message)))

    def newest_first(self) -> list[Trouble]:
        """What was kept."""
        return list(reversed(self._newest_last))
