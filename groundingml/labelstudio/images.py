"""The image of a task, wherever it is: uploaded to Label Studio, one of its local files, on the web, or in
the task."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
import re
import time
from pathlib import Path
from urllib.parse import unquote_to_bytes, urljoin, urlsplit

from PIL import Image, UnidentifiedImageError

from groundingml.inference import ImageError, load_image
from groundingml.labelstudio.access import LabelStudioAccess
from groundingml.labelstudio.addresses import AddressRules, FetchError, Origin
from groundingml.labelstudio.bounded_http import BoundedHttp
from groundingml.labelstudio.image_cache import ImageCache
from groundingml.labelstudio.settings import Settings

MAX_REDIRECTS = 5
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
"""Pillow's other readers are seldom used and seldom checked, so bytes from the network do not reach them."""
CLOUD_SCHEMES = ("s3", "gs", "azure-blob")
CHANGES_AFTER_S = 600.0
"""Images outside Label Studio's uploads are fetched again after so long: they may have changed."""
_DATA_URI = re.compile(r"data:([^,]*),(.*)", re.DOTALL | re.IGNORECASE)


class ImageFetcher:
    """Reads task images. Safe to use from several threads."""

    def __init__(self, settings: Settings, cache_folder: Path | None = None) -> None:
        """``cache_folder`` keeps what was fetched; without one everything is fetched anew."""
        self._cache = None if cache_folder is None else ImageCache(cache_folder, settings.image_cache_bytes)
        own = Origin.of(urlsplit(settings.label_studio_url)) if settings.label_studio_url else None
        self._http = BoundedHttp(AddressRules(own, settings.allow_hosts), settings.max_image_bytes)
        self._label_studio = (
            LabelStudioAccess(settings.label_studio_url, settings.label_studio_api_key, self._http)
            if settings.label_studio_url
            else None
        )
        self._allowed = " ".join(sorted(settings.allow_hosts))
        self._timeout_s = settings.fetch_timeout_s
        self._max_bytes = settings.max_image_bytes
        self._max_pixels = settings.max_image_pixels
        Image.init()
        self._formats = [name for name in FORMATS if name in Image.OPEN]  # AVIF is not in every Pillow

    def fetch(self, reference: object, task: object = None) -> Image.Image:
        """The upright RGB image that a task's field names. Arguments and errors as of
        `fetch_with_digest`."""
        return self.fetch_with_digest(reference, task)[0]

    def fetch_with_digest(self, reference: object, task: object = None) -> tuple[Image.Image, str]:
        """The upright RGB image that a task's field names, and the SHA-256 of the file it came from.

        Args:
            task: Label Studio's id of the task, by which it signs URLs of cloud storage (s3://, gs://,
                azure-blob://).

        Raises:
            FetchError: with the reason, fit to be logged and shown: no token, no query string.
        """
        encoded = self.read(reference, task)
        name = describe_reference(reference)
        try:
            return self._decode_image(encoded, name), hashlib.sha256(encoded).hexdigest()
        except FetchError as error:
            raise FetchError(f"{name}: {error}") from error

    def read(self, reference: object, task: object = None) -> bytes:
        """The file behind a reference as it is, from the cache when it has it. Arguments and errors as of
        `fetch_with_digest`."""
        if not isinstance(reference, str) or not reference.strip():
            raise FetchError(
                f"the task's image must be a URL, a path or a data: URI, not {type(reference).__name__}"
            )
        reference = reference.strip()
        try:
            if _is_data_uri(reference):
                return self._decode_data_uri(reference)
            return self._cached(*self._locate(reference, task))
        except FetchError as error:
            raise FetchError(f"{describe_reference(reference)}: {error}") from error

    def _cached(self, url: str, own: LabelStudioAccess | None) -> bytes:
        if self._cache is None:
            return self._download(url, own)
        # What a token or an allowed host opened is kept for that very setting.
        name = f"{own.fingerprint if own else self._allowed} {url}"
        never_changes = own is not None and urlsplit(url).path.startswith(own.uploads)
        kept = self._cache.get(name, None if never_changes else CHANGES_AFTER_S)
        if kept is not None and len(kept) <= self._max_bytes:
            return kept
        content = self._download(url, own)
        self._cache.put(name, content)
        return content

    def _download(self, url: str, own: LabelStudioAccess | None) -> bytes:
        deadline = time.monotonic() + self._timeout_s
        renewed = False
        for _ in range(MAX_REDIRECTS + 1):
            headers = own.authorization(deadline, renew=renewed) if own else {}
            answer = self._http.request("GET", url, deadline=deadline, headers=headers)
            if own and answer.status == 401 and own.is_personal_token and not renewed:
                renewed = True  # it may have been revoked or expired early; one new one, then it is an error
                continue
            if answer.redirect is None:
                return _checked_body(answer.status, answer.body, own)
            if own and "/user/login" in answer.redirect:
                raise FetchError(_login_problem(own))
            url, own = self._locate(urljoin(url, answer.redirect))
        raise FetchError(f"more than {MAX_REDIRECTS} redirects")

    def _locate(self, reference: str, task: object = None) -> tuple[str, LabelStudioAccess | None]:
        """The URL to ask, and Label Studio's access when it is the one to ask. Called again for every
        redirect."""
        try:
            url = urlsplit(reference)
        except ValueError as error:
            raise FetchError("the URL is malformed") from error
        if not url.scheme and not url.netloc and url.path.startswith("/"):
            if self._label_studio is None:
                raise FetchError(
                    "the image is inside Label Studio, whose address is not known: "
                    "start the server with LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"
                )
            return self._label_studio.image_url(url), self._label_studio
        if url.scheme in CLOUD_SCHEMES and task is not None:
            if self._label_studio is None:
                raise FetchError(
                    "images of cloud storage are read through Label Studio: start the server with "
                    "LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY"
                )
            return self._label_studio.presign_url(task, reference), self._label_studio
        if url.scheme not in ("http", "https"):
            raise FetchError(
                f"images of the kind {url.scheme or 'without scheme'!r} cannot be read; "
                "use http(s), data:, or Label Studio's own paths"
            )
        if self._label_studio is not None and Origin.of(url) == self._label_studio.origin:
            return self._label_studio.image_url(url), self._label_studio
        return url._replace(fragment="").geturl(), None

    def _decode_data_uri(self, reference: str) -> bytes:
        match = _DATA_URI.fullmatch(reference)
        if match is None:
            raise FetchError("the data: URI has no comma")
        if len(match[2]) > 3 * self._max_bytes:
            raise FetchError(f"larger than the limit of {self._max_bytes:,} bytes")
        encoded = unquote_to_bytes(match[2])
        if match[1].lower().endswith(";base64"):
            try:
                encoded = base64.b64decode(b"".join(encoded.split()), validate=True)
            except binascii.Error as error:
                raise FetchError("the data: URI is not valid base64") from error
        if len(encoded) > self._max_bytes:
            raise FetchError(f"larger than the limit of {self._max_bytes:,} bytes")
        return encoded

    def _decode_image(self, encoded: bytes, name: str) -> Image.Image:
        try:
            image = Image.open(io.BytesIO(encoded), formats=self._formats)
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise FetchError(f"more than the limit of {self._max_pixels:,} pixels") from error
        except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
            raise FetchError(_not_an_image(encoded)) from error
        if image.width * image.height > self._max_pixels:
            raise FetchError(
                f"{image.width}x{image.height} is more than the limit of {self._max_pixels:,} pixels"
            )
        try:
            return load_image(image, name)
        except ImageError as error:
            raise FetchError(error.reason) from error


def describe_reference(reference: object) -> str:
    """A task's image field, short and without what may be secret in it (queries of presigned URLs,
    passwords)."""
    if not isinstance(reference, str):
        return type(reference).__name__
    if _is_data_uri(reference):
        return f"data: URI of {len(reference):,} characters"
    try:
        url = urlsplit(reference.strip())
        host = url.hostname or ""
        place = f"{url.scheme}://{host}{f':{url.port}' if url.port else ''}" if url.netloc else ""
    except ValueError:
        return "malformed URL"
    # The query of a local file is its path; others are left out.
    query = f"?{url.query}" if url.path.startswith("/data/local-files") and url.query.startswith("d=") else ""
    text = f"{place}{url.path}{query}".encode("unicode_escape").decode("ascii")
    return text if len(text) <= 200 else f"{text[:197]}..."


def _is_data_uri(reference: str) -> bool:
    return reference[:5].lower() == "data:"


def _checked_body(status: int, body: bytes, own: LabelStudioAccess | None) -> bytes:
    if status == 200:
        return body
    if own and status in (401, 403):
        raise FetchError(f"{_login_problem(own)} (status {status})")
    raise FetchError(f"the server answered with status {status}")


def _login_problem(own: LabelStudioAccess) -> str:
    if not own.has_token:
        return "Label Studio wants a login: start the server with LABEL_STUDIO_API_KEY"
    return "Label Studio did not accept the API key, or its user may not see this project"


def _not_an_image(encoded: bytes) -> str:
    if not encoded:
        return "the file is empty"
    if encoded[:512].lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page came instead of an image"
    return "not an image in a format that is read here, or damaged at its start"
