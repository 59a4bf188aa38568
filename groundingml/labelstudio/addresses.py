"""Which addresses this server may connect to, checked where the connection is made.

A task's image URL comes from whoever may import tasks, so it must not reach services that only this machine
or its network can see. Names are resolved here and the connection goes to the very address that was checked;
a name that resolves differently a moment later changes nothing.
"""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import ssl
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult

import httpcore

from groundingml.labelstudio.settings import parse_host

DEFAULT_PORTS = {"http": 80, "https": 443}


class FetchError(ValueError):
    """Something could not be fetched. The message gives the reason, never a token, a query string or a
    body."""


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port, as browsers compare them."""

    scheme: str
    host: str
    port: int

    @classmethod
    def of(cls, url: SplitResult) -> Origin:
        """The origin of an http(s) URL.

        Raises:
            FetchError: when it has none, or carries a user name or password.
        """
        if url.scheme not in DEFAULT_PORTS or not url.hostname:
            raise FetchError("not an http or https URL with a host")
        if url.username is not None or url.password is not None:
            raise FetchError("URLs with a user name or password are refused")
        try:
            host = (
                url.hostname.rstrip(".").encode("idna").decode("ascii")
                if not url.hostname.isascii()
                else url.hostname
            )
            port = url.port
        except ValueError as error:
            raise FetchError("the URL's host or port is malformed") from error
        return cls(
            url.scheme, host.rstrip(".").lower(), port if port is not None else DEFAULT_PORTS[url.scheme]
        )


class AddressRules:
    """Public addresses are allowed; private ones only for the hosts named here."""

    def __init__(self, own: Origin | None, allow_hosts: Iterable[str]) -> None:
        """``own`` is Label Studio's origin; ``allow_hosts`` holds HOST or HOST:PORT entries (IPv6 in
        brackets)."""
        self._private: set[tuple[str, int | None]] = {(own.host, own.port)} if own else set()
        self._private.update(parse_host(entry) for entry in allow_hosts)

    def resolve(self, host: str, port: int) -> list[str]:
        """The IP addresses of ``host`` that may be connected to, at least one.

        Raises:
            FetchError: when the name does not resolve, or only to addresses that are not allowed.
        """
        try:
            found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError) as error:
            raise FetchError(f"the host {host} is unknown") from error
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        if {(host, port), (host, None)} & self._private:
            return addresses
        public = [address for address in addresses if _is_public(address)]
        if not public:
            shown = f"[{host}]" if ":" in host else host
            raise FetchError(
                f"{host} is a private address, which is refused; if it may be read, start the server with "
                f"--allow-host {shown}:{port}"
            )
        return public


def _is_public(text: str) -> bool:
    address = ipaddress.ip_address(text.partition("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        # Addresses that carry an IPv4 address are as public as that one.
        if address in ipaddress.ip_network("64:ff9b::/96"):
            address = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        else:
            address = address.ipv4_mapped or address.sixtofour or address
    return address.is_global and not address.is_multicast


class CheckedNetwork(httpcore.NetworkBackend):
    """The network as httpcore sees it: only allowed addresses, and nothing after the deadline."""

    def __init__(self, rules: AddressRules, deadline: float) -> None:
        """``deadline`` is a value of ``time.monotonic()``."""
        self._rules = rules
        self._deadline = deadline
        self._network = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        """Connect to a checked address of ``host``."""
        *others, last = self._rules.resolve(host.strip("[]").rstrip(".").lower(), port)
        for address in others:  # such as ::1 before 127.0.0.1 for a server that listens on the second only
            with contextlib.suppress(httpcore.ConnectError):
                return self._connect(address, port, local_address, socket_options)
        return self._connect(last, port, local_address, socket_options)

    def _connect(
        self, address: str, port: int, local_address: str | None, options: Iterable[Any] | None
    ) -> httpcore.NetworkStream:
        stream = self._network.connect_tcp(address, port, _left(self._deadline), local_address, options)
        return _DeadlineStream(stream, self._deadline)


class _DeadlineStream(httpcore.NetworkStream):
    """A stream whose every operation ends by the deadline, so that a server cannot hold us by dripping
    bytes."""

    def __init__(self, stream: httpcore.NetworkStream, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self, ssl_context: ssl.SSLContext, server_hostname: str | None = None, timeout: float | None = None
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, _left(self._deadline))
        return _DeadlineStream(stream, self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("the time for this request is used up")
    return left
