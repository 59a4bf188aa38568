"""Label Studio as this server may use it: which of its paths are images, and the token that opens them.

The token goes to one origin (scheme, host and port) and to the image paths below, nowhere else.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
import threading
import time
from urllib.parse import SplitResult, quote, unquote, unquote_plus, urlsplit

from groundingml.labelstudio.addresses import FetchError, Origin
from groundingml.labelstudio.bounded_http import BoundedHttp

_JWT = re.compile(r"[\w-]+\.[\w-]+\.[\w-]+")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_UPLOAD = re.compile(r"/data/upload/(\d+)/([^/\\]+)")
_PRESIGN = re.compile(r"/((?:tasks|projects)/\d+/(?:presign|resolve))/?")
_BASE64 = re.compile(r"[\w-]+={0,2}", re.ASCII)
DEFAULT_ACCESS_SECONDS = 240.0
"""How long an access token is used when it does not say when it expires (Label Studio's live 300 s)."""


class TokenRefused(FetchError):
    """Label Studio answered that a personal access token is not valid."""


class LabelStudioAccess:
    """The configured Label Studio: its origin, its image paths, its token."""

    def __init__(self, url: str, api_key: str | None, http: BoundedHttp) -> None:
        self._base = url.rstrip("/")
        self._prefix = urlsplit(self._base).path
        self.origin = Origin.of(urlsplit(self._base))
        self._api_key = (api_key or "").strip()
        self._http = http
        self._lock = threading.Lock()
        self._access_token = ""
        self._access_until = 0.0

    @property
    def has_token(self) -> bool:
        """Whether an API key was given."""
        return bool(self._api_key)

    @property
    def fingerprint(self) -> str:
        """Tells apart what different tokens may see, without telling the token."""
        return hashlib.sha256(f"{self._base} {self._api_key}".encode()).hexdigest()

    @property
    def uploads(self) -> str:
        """The path below which uploaded files lie; a file there never changes."""
        return f"{self._prefix}/data/upload/"

    def presign_url(self, task: object, uri: str) -> str:
        """Where Label Studio redirects to a signed URL for an image in cloud storage.

        Raises:
            FetchError: when ``task`` is no id of a task.
        """
        if not str(task).isdecimal():
            raise FetchError("images of cloud storage are read by the id of their task, and it has none")
        encoded = base64.urlsafe_b64encode(uri.encode()).decode()
        return f"{self._base}/tasks/{task}/presign/?fileuri={encoded}"

    def image_url(self, reference: SplitResult) -> str:
        """The absolute URL of one of this Label Studio's images, written anew from the path's checked parts.

        Raises:
            FetchError: when the path is not one that Label Studio serves images under.
        """
        path = unquote(reference.path)
        if self._prefix and path.startswith(f"{self._prefix}/"):
            path = path[len(self._prefix) :]
        if path in ("/data/local-files/", "/data/local-files"):
            return f"{self._base}/data/local-files/?d={quote(_local_file(reference.query), safe='/')}"
        presign = _PRESIGN.fullmatch(path)
        if presign is not None:
            return f"{self._base}/{presign[1]}/?fileuri={_file_uri(reference.query)}"
        upload = _UPLOAD.fullmatch(path)
        if upload is None or reference.query or upload[2] in (".", "..") or _CONTROL.search(path):
            raise FetchError(
                "not an image path of Label Studio; those are /data/upload/<project>/<file>, "
                "/data/local-files/?d=<file> and /tasks/<id>/presign/?fileuri=<file>"
            )
        return f"{self._base}/data/upload/{upload[1]}/{quote(upload[2], safe='')}"

    def authorization(self, deadline: float, *, renew: bool = False) -> dict[str, str]:
        """Headers that prove who we are; empty without an API key. ``renew`` asks for a new access token.

        Raises:
            FetchError: when a personal access token cannot be exchanged.
        """
        if not self._api_key:
            return {}
        if not self.is_personal_token:
            return {"Authorization": f"Token {self._api_key}"}
        with self._lock:
            if renew or time.monotonic() >= self._access_until:
                self._access_token, lifetime = self._exchange(deadline)
                self._access_until = time.monotonic() + lifetime
            return {"Authorization": f"Bearer {self._access_token}"}

    @property
    def is_personal_token(self) -> bool:
        """Whether the API key is a personal access token, which is exchanged, and not a legacy one."""
        return _JWT.fullmatch(self._api_key) is not None

    def _exchange(self, deadline: float) -> tuple[str, float]:
        answer = self._http.request(
            "POST",
            f"{self._base}/api/token/refresh/",
            deadline=deadline,
            headers={"Content-Type": "application/json", "Accept": "application/json"},
            content=json.dumps({"refresh": self._api_key}).encode(),
        )
        try:
            token = json.loads(answer.body)["access"] if answer.status == 200 else None
        except (ValueError, KeyError, TypeError):
            token = None
        if not isinstance(token, str) or not _JWT.fullmatch(token):
            refused = FetchError if answer.status >= 500 else TokenRefused
            raise refused(
                f"Label Studio did not accept the personal access token (status {answer.status}); "
                "make a new one under Account & Settings, and check LABEL_STUDIO_URL"
            )
        return token, _seconds_to_live(token)


def _local_file(query: str) -> str:
    """The path of a local file, from ``d=<path>``, free of ways to leave its folder."""
    name, separator, encoded = query.partition("=")
    path = unquote_plus(encoded)
    parts = re.split(r"[/\\]", path)
    if name != "d" or not separator or "&" in encoded or not path or ".." in parts or _CONTROL.search(path):
        raise FetchError(
            "not a local file of Label Studio; those look like /data/local-files/?d=folder/file.jpg"
        )
    return path


def _file_uri(query: str) -> str:
    """The base64 of a cloud file's URI, from ``fileuri=<base64>``."""
    name, _, encoded = query.partition("=")
    encoded = unquote(encoded)
    if name != "fileuri" or not _BASE64.fullmatch(encoded):
        raise FetchError(
            "not a cloud file of Label Studio; those look like /tasks/7/presign/?fileuri=<base64>"
        )
    return encoded


def _seconds_to_live(jwt: str) -> float:
    """How long to use an access token: until half a minute before it expires."""
    payload = jwt.split(".")[1]
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        # From its own two times, since clocks of two machines differ.
        return float(max(claims["exp"] - claims["iat"] - 30, 0))
    except (ValueError, KeyError, TypeError, binascii.Error):
        return DEFAULT_ACCESS_SECONDS
