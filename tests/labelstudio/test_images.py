"""Fetching task images over real connections: what is read, what is refused, and who never sees the token."""

from __future__ import annotations

import base64
import io
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from groundingml.labelstudio.addresses import AddressRules, FetchError
from groundingml.labelstudio.images import ImageFetcher, describe_reference
from groundingml.labelstudio.settings import Settings

LEGACY = "0123456789abcdef0123456789abcdef01234567"


def jwt(name: str, lifetime: float = 300) -> str:
    claims = json.dumps({"iat": 1000, "exp": 1000 + lifetime, "name": name}).encode()
    return f"eyJh.{base64.urlsafe_b64encode(claims).decode().rstrip('=')}.c2ln"


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


SMALL = encoded(Image.new("RGB", (8, 6), "red"))


@pytest.fixture
def label_studio(new_site: Callable[[], Any]) -> Any:
    """A site that serves SMALL under Label Studio's paths, to the legacy token only."""
    site = new_site()

    def guarded(_: Any, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        return (200, {}, SMALL) if headers.get("authorization") == f"Token {LEGACY}" else (401, {}, b"{}")

    for path in (
        "/data/upload/1/710cd2b2-im0.jpg",
        "/data/upload/1/a%20%C3%A9%25.jpg",
        "/data/local-files/?d=photos/a%20b.jpg",
        "/ls/data/upload/1/x.jpg",
        "/api/current-user/token",
    ):
        site.pages[path] = guarded
    return site


@pytest.fixture
def fetcher(label_studio: Any) -> ImageFetcher:
    return ImageFetcher(
        Settings(label_studio_url=label_studio.url, label_studio_api_key=LEGACY, fetch_timeout_s=5)
    )


@pytest.mark.parametrize(
    "reference",
    [
        "/data/upload/1/710cd2b2-im0.jpg",
        "{url}/data/upload/1/710cd2b2-im0.jpg",
        "/data/upload/1/a é%25.jpg",
        "/data/upload/1/a%20%C3%A9%25.jpg",
        "/data/local-files/?d=photos/a b.jpg",
        "/data/local-files/?d=photos%2Fa+b.jpg",
    ],
)
def test_label_studio_paths_are_read_with_the_token(
    fetcher: ImageFetcher, label_studio: Any, reference: str
) -> None:
    image = fetcher.fetch(reference.format(url=label_studio.url))
    assert (image.size, image.mode) == ((8, 6), "RGB")


def test_label_studio_under_a_path(label_studio: Any) -> None:
    fetcher = ImageFetcher(Settings(label_studio_url=f"{label_studio.url}/ls/", label_studio_api_key=LEGACY))
    assert fetcher.fetch("/data/upload/1/x.jpg").size == (8, 6)
    assert fetcher.fetch("/ls/data/upload/1/x.jpg").size == (8, 6)


@pytest.mark.parametrize(
    "path",
    [
        "/api/current-user/token",
        "/data/upload/1/../../../api/current-user/token?x=.jpg",
        "/data/upload/1/%2e%2e%2f%2e%2e%2f%2e%2e%2fapi%2fcurrent-user%2ftoken",
        "/data/upload/1/..",
        "/data/upload/1/..%5cx",
        "/data/upload/1/a.jpg?next=/api/",
        "/data/upload/1/a%00.jpg",
        "/data/upload/1/a%0d%0aX.jpg",
        "/data/upload/x/a.jpg",
        "/data/upload/1/",
        "/data/local-files/?d=../../etc/passwd",
        "/data/local-files/?d=a/..%2f..%2fb",
        "/data/local-files/?d=a\\..\\b",
        "/data/local-files/?d=",
        "/data/local-files/?e=a",
        "/data/local-files/?d=a&d=b",
        "/data/local-files/x?d=a.jpg",
        "/static/x.png",
        "{url}/api/current-user/token",
        "{url}/data/upload/1/../../../api/current-user/token",
    ],
)
def test_other_paths_of_label_studio_are_never_asked(
    fetcher: ImageFetcher, label_studio: Any, path: str
) -> None:
    with pytest.raises(
        FetchError, match=r"not an image path of Label Studio|not a local file of Label Studio"
    ):
        fetcher.fetch(path.format(url=label_studio.url))
    assert label_studio.requests == []


def test_the_token_goes_to_no_other_origin(
    fetcher: ImageFetcher, label_studio: Any, site: Any, allow: tuple[str, ...]
) -> None:
    settings = Settings(
        label_studio_url=label_studio.url, label_studio_api_key=LEGACY, allow_hosts=(*allow, "localhost")
    )
    fetcher = ImageFetcher(settings)
    # Another port of the same host, another name of the same host, and there by a redirect from Label Studio.
    fetcher.fetch(f"{site.url}/photos/cat.jpg")
    fetcher.fetch(f"http://localhost:{site.port}/photos/cat.jpg")
    label_studio.add("/data/upload/1/moved.jpg", b"", status=302, location=f"{site.url}/photos/cat.jpg")
    fetcher.fetch("/data/upload/1/moved.jpg")
    assert len(site.requests) == 3
    assert site.tokens() == []
    assert label_studio.tokens() == [f"Token {LEGACY}"]


def test_a_redirect_to_label_studio_gets_the_token_for_images_only(
    label_studio: Any, site: Any, allow: Any
) -> None:
    settings = Settings(label_studio_url=label_studio.url, label_studio_api_key=LEGACY, allow_hosts=allow)
    fetcher = ImageFetcher(settings)
    site.add("/good", b"", status=307, location=f"{label_studio.url}/data/upload/1/710cd2b2-im0.jpg")
    site.add("/bad", b"", status=307, location=f"{label_studio.url}/api/current-user/token")
    assert fetcher.fetch(f"{site.url}/good").size == (8, 6)
    label_studio.requests.clear()
    with pytest.raises(FetchError, match="not an image path"):
        fetcher.fetch(f"{site.url}/bad")
    assert label_studio.requests == []


def test_private_addresses_are_refused(fetcher: ImageFetcher, site: Any, label_studio: Any) -> None:
    numeric = f"http://2130706433:{site.port}/photos/cat.jpg"  # 127.0.0.1 as one number
    for url in (f"{site.url}/photos/cat.jpg", f"http://localhost:{site.port}/photos/cat.jpg", numeric):
        with pytest.raises(FetchError, match=r"private address.*--allow-host"):
            fetcher.fetch(url)
    label_studio.add("/data/upload/1/evil.jpg", b"", status=302, location=f"{site.url}/photos/cat.jpg")
    with pytest.raises(FetchError, match="private address"):
        fetcher.fetch("/data/upload/1/evil.jpg")
    assert site.requests == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "10.1.2.3",
        "192.168.1.1",
        "172.16.0.1",
        "169.254.169.254",
        "100.64.0.1",
        "0.0.0.0",
        "224.0.0.1",
        "::1",
        "fe80::1",
        "fd00::1",
        "::ffff:127.0.0.1",
        "64:ff9b::7f00:1",
        "2002:7f00:1::",
    ],
)
def test_private_address_forms(address: str) -> None:
    with pytest.raises(FetchError, match="private address"):
        AddressRules(None, ()).resolve(address, 80)
    assert AddressRules(None, (f"[{address}]" if ":" in address else address,)).resolve(address, 80) == [
        address
    ]


@pytest.mark.parametrize("address", ["93.184.216.34", "2606:2800:220:1::1", "64:ff9b::5db8:d822"])
def test_public_addresses(address: str) -> None:
    assert AddressRules(None, ()).resolve(address, 443) == [address]


def test_an_allowed_host_with_a_port_opens_that_port_only(site: Any, new_site: Callable[[], Any]) -> None:
    other = new_site()
    fetcher = ImageFetcher(Settings(allow_hosts=(f"127.0.0.1:{site.port}",)))
    assert fetcher.fetch(f"{site.url}/photos/cat.jpg").width > 8
    with pytest.raises(FetchError, match="private address"):
        fetcher.fetch(f"{other.url}/x.jpg")
    assert ImageFetcher(Settings(allow_hosts=("127.0.0.1",))).fetch(f"{site.url}/photos/cat.jpg").width > 8


def test_personal_access_tokens_are_exchanged_once_and_renewed(new_site: Callable[[], Any]) -> None:
    site = new_site()
    pat, accepted = jwt("refresh"), {"token": jwt("first")}

    def refresh(_: Any, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        assert "authorization" not in headers
        good = json.loads(body) == {"refresh": pat}
        return (200, {}, json.dumps({"access": accepted["token"]}).encode()) if good else (401, {}, b"{}")

    def image(_: Any, headers: dict[str, str], body: bytes) -> tuple[int, dict[str, str], bytes]:
        good = headers.get("authorization") == f"Bearer {accepted['token']}"
        return (200, {}, SMALL) if good else (401, {}, b"{}")

    site.pages |= {"/api/token/refresh/": refresh, "/data/upload/1/a.jpg": image}
    fetcher = ImageFetcher(Settings(label_studio_url=site.url, label_studio_api_key=pat))

    def exchanges() -> int:
        return sum(path == "/api/token/refresh/" for _, path, _, _ in site.requests)

    fetcher.fetch("/data/upload/1/a.jpg")
    fetcher.fetch("/data/upload/1/a.jpg")
    assert exchanges() == 1
    accepted["token"] = jwt("second")  # the first one is no longer accepted
    fetcher.fetch("/data/upload/1/a.jpg")
    assert exchanges() == 2
    accepted["token"] = jwt("short lived", lifetime=20)
    fetcher.fetch("/data/upload/1/a.jpg")
    fetcher.fetch("/data/upload/1/a.jpg")
    assert exchanges() == 4, "a token about to expire is not kept"
    wrong = ImageFetcher(Settings(label_studio_url=site.url, label_studio_api_key=jwt("other")))
    with pytest.raises(FetchError, match="did not accept the personal access token"):
        wrong.fetch("/data/upload/1/a.jpg")
    assert not any(pat in str(headers) for _, _, headers, _ in site.requests), "the token itself is not sent"


@pytest.mark.parametrize(
    ("key", "message"), [(None, "wants a login"), ("wrong", "did not accept the API key")]
)
def test_a_missing_or_wrong_key_is_said(label_studio: Any, key: str | None, message: str) -> None:
    fetcher = ImageFetcher(Settings(label_studio_url=label_studio.url, label_studio_api_key=key))
    with pytest.raises(FetchError, match=message):
        fetcher.fetch("/data/upload/1/710cd2b2-im0.jpg")
    label_studio.add(
        "/data/upload/1/b.jpg", b"", status=302, location="/user/login/?next=/data/upload/1/b.jpg"
    )
    with pytest.raises(FetchError, match=message):
        fetcher.fetch("/data/upload/1/b.jpg")


def test_without_an_address_uploaded_images_cannot_be_read() -> None:
    with pytest.raises(FetchError, match="start the server with LABEL_STUDIO_URL"):
        ImageFetcher(Settings()).fetch("/data/upload/1/a.jpg")


DATA_URI = "data:image/png;base64," + base64.b64encode(SMALL).decode()


@pytest.mark.parametrize(
    "reference",
    [
        DATA_URI,
        DATA_URI.replace("data:", "DATA:"),
        DATA_URI.replace("+", "%2B"),
        "data:;base64," + base64.encodebytes(SMALL).decode(),
        "data:image/png," + "".join(f"%{byte:02x}" for byte in SMALL),
    ],
)
def test_data_uris(reference: str) -> None:
    assert ImageFetcher(Settings()).fetch(reference).size == (8, 6)


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("data:image/png;base64", "no comma"),
        ("data:image/png;base64,!!!!", "not valid base64"),
        ("data:image/png;base64,", "empty"),
        ("data:text/plain,hello", "not an image"),
        ("s3://bucket/a.jpg", "images of the kind 's3' cannot be read"),
        ("file:///etc/passwd", "images of the kind 'file'"),
        ("photo.jpg", "without scheme"),
        ("//127.0.0.1/x.jpg", "without scheme"),
        ("http:///x.jpg", "not an http or https URL with a host"),
        ("http://127.0.0.1:99999/x.jpg", "malformed"),
        ("http://user:secret@127.0.0.1/x.jpg", "user name or password are refused"),
        ("http://[::1/x.jpg", "malformed"),
        ("http://no-such-host.invalid/x.jpg", "is unknown"),
        ("", "must be a URL"),
        (None, "not NoneType"),
        (["a"], "not list"),
    ],
)
def test_what_is_no_image_reference(reference: object, message: str) -> None:
    with pytest.raises(FetchError, match=message) as caught:
        ImageFetcher(Settings(label_studio_url="http://127.0.0.1:1")).fetch(reference)
    assert "secret" not in str(caught.value)


def test_limits_on_bytes_pixels_and_redirects(site: Any, allow: tuple[str, ...]) -> None:
    fetcher = ImageFetcher(Settings(allow_hosts=allow, max_image_bytes=50_000, max_image_pixels=10_000))
    site.add("/large", b"x" * 50_001)
    with pytest.raises(FetchError, match="larger than the limit of 50,000 bytes"):
        fetcher.fetch(f"{site.url}/large")

    def chunked(handler: Any, headers: dict[str, str], body: bytes) -> None:
        handler.send_response(200)
        handler.send_header("Transfer-Encoding", "chunked")
        handler.end_headers()
        for _ in range(20):
            handler.wfile.write(b"1388\r\n" + b"x" * 5000 + b"\r\n")
        handler.wfile.write(b"0\r\n\r\n")

    site.pages["/chunked"] = chunked
    with pytest.raises(FetchError, match="larger than the limit"):
        fetcher.fetch(f"{site.url}/chunked")
    site.add("/wide", encoded(Image.new("L", (101, 100))))
    with pytest.raises(FetchError, match="101x100 is more than the limit of 10,000 pixels"):
        fetcher.fetch(f"{site.url}/wide")
    site.add("/round", b"", status=302, location="/round")
    with pytest.raises(FetchError, match="more than 5 redirects"):
        fetcher.fetch(f"{site.url}/round")
    site.add("/zip", b"x", content_encoding="gzip")
    with pytest.raises(FetchError, match="compressed"):
        fetcher.fetch(f"{site.url}/zip")
    too_long = "data:image/png;base64," + base64.b64encode(b"x" * 50_001).decode()
    with pytest.raises(FetchError, match="larger than the limit"):
        fetcher.fetch(too_long)


@pytest.mark.parametrize("part", ["silence", "header", "body"])
def test_slow_servers_are_cut_off(site: Any, allow: tuple[str, ...], part: str) -> None:
    def drip(handler: Any, headers: dict[str, str], body: bytes) -> None:
        start = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"
        text = {"silence": b"", "header": start, "body": b"x" * 1000}[part]
        handler.wfile.write(start if part == "body" else b"")
        for byte in text or b" " * 30:
            handler.wfile.write(bytes([byte]) if text else b"")
            time.sleep(0.1)

    site.pages["/slow"] = drip
    fetcher = ImageFetcher(Settings(allow_hosts=allow, fetch_timeout_s=0.6))
    started = time.monotonic()
    with pytest.raises(FetchError, match="did not answer in time"):
        fetcher.fetch(f"{site.url}/slow")
    assert time.monotonic() - started < 2


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>login</html>", "a web page came instead"),
        (b"\xff\xd8\xff nonsense", "not an image|damaged"),
        (encoded(Image.effect_noise((64, 64), 50))[:2000], "damaged or cut short"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image"),
    ],
)
def test_broken_images_are_refused_with_the_reason(site: Any, allow: Any, body: bytes, message: str) -> None:
    site.add("/broken.jpg", body)
    with pytest.raises(FetchError, match=message):
        ImageFetcher(Settings(allow_hosts=allow)).fetch(f"{site.url}/broken.jpg")


def test_a_photo_with_exif_orientation_comes_upright(site: Any, allow: Any, photo_dir: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    site.add("/turned.jpg", encoded(Image.new("RGB", (40, 20)), "JPEG", exif=exif))
    assert ImageFetcher(Settings(allow_hosts=allow)).fetch(f"{site.url}/turned.jpg").size == (20, 40)


def test_urls_with_spaces_and_letters_of_any_language(site: Any, allow: Any) -> None:
    site.add("/a%20%C3%A9.png?q=%C3%A9", SMALL)
    assert ImageFetcher(Settings(allow_hosts=allow)).fetch(f"{site.url}/a é.png?q=é#part").size == (8, 6)


@pytest.mark.parametrize(
    ("reference", "described"),
    [
        ("https://u:pw@bucket.s3.example.com/a.jpg?X-Signature=abc", "https://bucket.s3.example.com/a.jpg"),
        ("/data/local-files/?d=a/b.jpg", "/data/local-files/?d=a/b.jpg"),
        ("data:image/png;base64,AAAA", "data: URI of 26 characters"),
        ("http://h/\nfake log line", "http://h/fake log line"),
        (7, "int"),
    ],
)
def test_references_are_described_without_secrets(reference: object, described: str) -> None:
    assert describe_reference(reference) == described
