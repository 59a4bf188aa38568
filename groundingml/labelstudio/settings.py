"""What a server is told when it starts: model, addresses, credentials, limits."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

_SECRET = re.compile(r"[\w-]{16,200}", re.ASCII)


class SettingsError(ValueError):
    """A setting is wrong. The message names it and says what it should be."""


@dataclass(frozen=True)
class Settings:
    """Settings of one backend process. Nothing here is read from the environment; `groundingml serve` does
    that."""

    model: str = "nano"
    device: str = "auto"
    allow_cloud: bool = False
    """Whether images may be sent to a vendor's service, for models ``api:...``."""

    label_studio_url: str | None = None
    """Where Label Studio is, as this process reaches it. The only place that ever gets the API key."""
    label_studio_api_key: str | None = field(default=None, repr=False)
    """A legacy token (40 hex digits) or a personal access token (a JWT)."""

    basic_auth_user: str | None = None
    basic_auth_password: str | None = field(default=None, repr=False)

    webhook_secret: str | None = field(default=None, repr=False)
    """Asked of webhooks, in a header or as the first part of the path; None asks for none."""

    allow_hosts: tuple[str, ...] = ()
    """HOST or HOST:PORT entries that images may be fetched from although their address is private."""

    data_dir: Path | None = None
    """Folder of the database, versions, runs and cached images; None for the default one."""
    store_url: str | None = field(default=None, repr=False)
    """Database instead of the SQLite file in ``data_dir``."""

    recipe: str = "lora"
    """How training runs of this server train."""
    train_every: int | None = None
    """A training run of its own accord after so many corrections of a project; None for none."""
    retention: str | None = None
    """ANNOTATIONS.json:FOLDER with what a trained version must still find; None for the package's photos."""
    least_gain: float = 0.01
    most_forgotten: float = 0.2
    """When a trained version may serve; see `learning.promotion`."""

    load_wait_s: float = 60.0
    """How long /predict waits for a model that is still loading before it answers 503."""
    predict_budget_s: float = 85.0
    """Tasks of one request that are not done by then are left out; Label Studio itself gives up after 100
    s."""
    fetch_timeout_s: float = 20.0
    """For one image, redirects included."""
    batch_size: int | None = None
    """Images computed together; None for what suits the device."""
    most_requests: int = 64
    """/predict requests of batches, and of annotators, that are let in at once; others get 503."""
    one_by_one_limit_s: float = 600.0
    """A batch that takes longer than ``predict_budget_s`` but not longer than this is answered so that Label
    Studio asks for its tasks one by one."""
    image_cache_bytes: int = 5_000_000_000
    """Image files kept in ``data_dir``."""
    max_image_bytes: int = 50_000_000
    max_image_pixels: int = 80_000_000
    max_body_bytes: int = 100_000_000

    def __post_init__(self) -> None:
        for entry in self.allow_hosts:
            parse_host(entry)
        if self.label_studio_url is not None:
            _check_url(self.label_studio_url)
        if self.label_studio_api_key and not self.label_studio_url:
            raise SettingsError(
                "A Label Studio API key is set without Label Studio's URL, so it is not known whom to send "
                "it to: set LABEL_STUDIO_URL (or --label-studio-url) too."
            )
        if (self.basic_auth_user is None) != (self.basic_auth_password is None):
            raise SettingsError("Basic auth needs both a user name and a password; only one of them is set.")
        if self.basic_auth_user is not None and (
            not self.basic_auth_user or ":" in self.basic_auth_user or not self.basic_auth_password
        ):
            raise SettingsError("Basic auth needs a user name without ':' and a password that is not empty.")
        if self.webhook_secret is not None and not _SECRET.fullmatch(self.webhook_secret):
            raise SettingsError(
                "The webhook secret must be 16 to 200 letters, digits, '-' or '_'; make one with: "
                "openssl rand -hex 32"
            )
        for name in ("batch_size", "most_requests", "train_every"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise SettingsError(f"{name} must be at least 1, not {value}.")

    @property
    def secrets(self) -> tuple[str, ...]:
        """What is never to be shown."""
        held = (self.label_studio_api_key, self.basic_auth_password, self.webhook_secret)
        return tuple(secret for secret in held if secret)


def parse_host(entry: str) -> tuple[str, int | None]:
    """``"nas.local:8000"`` -> ``("nas.local", 8000)``; without a port, None.

    Raises:
        SettingsError: when it is neither HOST nor HOST:PORT.
    """
    text = entry.strip().lower()
    host, separator, port = text.rpartition(":")
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        separator, port = port[:1], port[1:]
    elif not separator or ":" in host:  # no port, or a bare IPv6 address
        host, separator, port = text, "", ""
    if not host or "/" in host or (separator and not (port.isdigit() and 0 < int(port) < 65536)):
        raise SettingsError(
            f"{entry!r} is neither HOST nor HOST:PORT; hosts to allow look like nas.local:8000."
        )
    return host.rstrip("."), int(port) if port else None


def _check_url(url: str) -> None:
    wanted = f"Label Studio's URL must look like http://localhost:8080, not {url!r}"
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise SettingsError(f"{wanted}: {error}.") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise SettingsError(f"{wanted}.")
    if parts.username or parts.password:
        raise SettingsError(
            "Label Studio's URL must not hold a user name or password; use the API key instead."
        )
    if parts.query or parts.fragment:
        raise SettingsError(f"{wanted} (no '?' and no '#').")
