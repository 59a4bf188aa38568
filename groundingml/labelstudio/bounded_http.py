"""One HTTP request with limits on addresses, bytes and time. Redirects are returned, not followed."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpcore
import httpx

from groundingml.labelstudio.addresses import AddressRules, CheckedNetwork, FetchError, Origin


@dataclass(frozen=True)
class Response:
    """A whole answer. Header names are lower case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def redirect(self) -> str | None:
        """Where to go instead, when the answer is a redirect."""
        return self.headers.get("location") if self.status in (301, 302, 303, 307, 308) else None


class BoundedHttp:
    """A client that keeps nothing between requests: no cookies, no proxies, no connections."""

    def __init__(self, rules: AddressRules, max_bytes: int) -> None:
        self._rules = rules
        self._max_bytes = max_bytes
        self._tls: ssl.SSLContext = httpx.create_ssl_context()

    def request(
        self,
        method: str,
        url: str,
        *,
        deadline: float,
        headers: dict[str, str] | None = None,
        content: bytes = b"",
    ) -> Response:
        """Send one request; ``deadline`` is a value of ``time.monotonic()``.

        Raises:
            FetchError: when the address is refused, the connection fails, or a limit is passed.
        """
        host = Origin.of(urlsplit(url)).host
        try:
            target = httpx.URL(url)  # percent-encodes what a URL may not hold
        except httpx.InvalidURL as error:
            raise FetchError("the URL is malformed") from error
        # Without compression the byte limit is a limit on memory too.
        sent = {
            "Host": target.netloc.decode("ascii"),
            "Accept-Encoding": "identity",
            "User-Agent": "groundingml",
            **(headers or {}),
        }
        if content:
            sent["Content-Length"] = str(len(content))
        network = CheckedNetwork(self._rules, deadline)
        try:
            with (
                httpcore.ConnectionPool(
                    ssl_context=self._tls, network_backend=network, max_connections=1
                ) as pool,
                pool.stream(
                    method, str(target), headers=list(sent.items()), content=content or None
                ) as answer,
            ):
                names = {
                    name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers
                }
                return Response(answer.status, names, self._read(answer, names))
        except httpcore.TimeoutException as error:
            raise FetchError(f"{host} did not answer in time") from error
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.UnsupportedProtocol) as error:
            raise FetchError(f"the connection to {host} failed ({type(error).__name__})") from error

    def _read(self, answer: httpcore.Response, headers: dict[str, str]) -> bytes:
        too_large = f"larger than the limit of {self._max_bytes:,} bytes"
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise FetchError("the server compressed its answer although it was asked not to")
        length = headers.get("content-length", "")
        if length.isdigit() and int(length) > self._max_bytes:
            raise FetchError(too_large)
        body = bytearray()
        for chunk in answer.iter_stream():
            body += chunk
            if len(body) > self._max_bytes:
                raise FetchError(too_large)
        return bytes(body)
