"""Image files on disk: whole or not there, within their limit, whatever happens to them."""

from __future__ import annotations

import errno
import hashlib
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from groundingml.labelstudio.addresses import FetchError
from groundingml.labelstudio.image_cache import ImageCache
from groundingml.labelstudio.images import CHANGES_AFTER_S, ImageFetcher
from groundingml.labelstudio.settings import Settings


def files(folder: Path) -> list[Path]:
    return [file for file in folder.glob("files/*/*") if file.is_file()]


def test_kept_by_name_and_by_content(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path)
    assert cache.get("a") is None
    cache.put("a", b"cat")
    cache.put("b", b"cat")
    assert (cache.get("a"), cache.get("b"), cache.get("c")) == (b"cat", b"cat", None)
    assert [file.name for file in files(tmp_path)] == [hashlib.sha256(b"cat").hexdigest()]
    assert ImageCache(tmp_path).get("a") == b"cat", "after a restart too"
    cache.put("a", b"dog")
    assert cache.get("a") == b"dog"
    assert all(oct(file.stat().st_mode & 0o777) == "0o600" for file in files(tmp_path))


def test_old_entries_are_not_used(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path)
    cache.put("a", b"cat")
    (entry,) = (tmp_path / "names").iterdir()
    os.utime(entry, (time.time() - 700,) * 2)
    assert cache.get("a", 600) is None
    assert cache.get("a") == b"cat"
    cache.put("a", b"cat")
    assert cache.get("a", 600) == b"cat", "fetched again"


@pytest.mark.parametrize("damage", [b"", b"ca", b"dog", b"cat and more"])
def test_a_damaged_file_is_noticed(tmp_path: Path, damage: bytes) -> None:
    cache = ImageCache(tmp_path)
    cache.put("a", b"cat")
    files(tmp_path)[0].write_bytes(damage)
    assert cache.get("a") is None
    cache.put("a", b"cat")
    assert cache.get("a") == b"cat"


@pytest.mark.parametrize("name", [b"", b"../../../../etc/passwd", b"\xff\xfe", b"a" * 64])
def test_a_damaged_name_points_nowhere(tmp_path: Path, name: bytes) -> None:
    cache = ImageCache(tmp_path)
    cache.put("a", b"cat")
    next((tmp_path / "names").iterdir()).write_bytes(name)
    assert cache.get("a") is None


def test_it_stays_within_its_limit_and_keeps_what_was_used_last(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, most_bytes=1000)
    for number in range(9):
        cache.put(str(number), bytes([number]) * 100)
        for file in files(tmp_path):  # clocks of file systems are coarse
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 10))
    assert cache.get("0") == bytes(100)
    cache.put("9", b"9" * 100)
    cache.put("10", b"x" * 100)
    assert sum(file.stat().st_size for file in files(tmp_path)) <= 1000
    assert cache.get("0") == bytes(100), "used just now"
    assert cache.get("1") is None
    assert cache.get("10") == b"x" * 100
    assert len(list((tmp_path / "names").iterdir())) == len(files(tmp_path))


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    cache = ImageCache(tmp_path, most_bytes=250)
    cache.put("a", b"a" * 100)
    left = files(tmp_path)[0].with_name(".half-written")
    left.write_bytes(b"x" * 500)
    os.utime(left, (time.time() - 7200,) * 2)
    for name in "bc":
        cache.put(name, name.encode() * 100)
    assert not left.exists()


def test_a_full_disk_costs_the_cache_and_not_the_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache = ImageCache(tmp_path)
    monkeypatch.setattr(os, "replace", full)
    for name in "abc":
        cache.put(name, name.encode())
    assert [cache.get(name) for name in "abc"] == [None] * 3
    assert caplog.text.count("No space left on device") == 1, "said once"
    assert not [file for file in tmp_path.rglob("*") if file.is_file()], "nothing half-written stays"


def test_many_threads_and_a_small_limit(tmp_path: Path) -> None:
    caches = [ImageCache(tmp_path, most_bytes=5000) for _ in range(2)]

    def use(number: int) -> None:
        content = str(number % 30).encode() * 200
        cache = caches[number % 2]
        cache.put(f"name {number % 30}", content)
        assert cache.get(f"name {number % 30}") in (content, None)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(use, range(600)))
    assert not list(tmp_path.glob("files/*/.*"))


def test_images_are_fetched_once(site: Any, allow: tuple[str, ...], tmp_path: Path) -> None:
    cat = f"{site.url}/photos/cat.jpg"
    one = ImageFetcher(Settings(allow_hosts=allow), tmp_path)
    digest = one.fetch_with_digest(cat)[1]
    assert one.fetch_with_digest(cat)[1] == digest
    assert ImageFetcher(Settings(allow_hosts=allow), tmp_path).read(cat) == one.read(cat)
    assert len(site.requests) == 1
    for entry in (tmp_path / "names").iterdir():
        os.utime(entry, (time.time() - CHANGES_AFTER_S - 1,) * 2)
    one.fetch(cat)
    assert len(site.requests) == 2, "what stands there may have changed"


def test_what_one_token_opened_no_other_gets_from_the_cache(site: Any, tmp_path: Path) -> None:
    photo = site.pages["/photos/cat.jpg"]

    def upload(_: Any, headers: dict[str, str], __: bytes) -> Any:
        return photo if headers.get("authorization") == "Token good" else (403, {}, b"no")

    site.pages["/data/upload/1/cat.jpg"] = upload
    settings = Settings(label_studio_url=site.url, label_studio_api_key="good")
    assert ImageFetcher(settings, tmp_path).fetch("/data/upload/1/cat.jpg").size == (451, 300)
    for key in ("bad", None):
        other = Settings(label_studio_url=site.url, label_studio_api_key=key)
        with pytest.raises(FetchError, match=r"403|login"):
            ImageFetcher(other, tmp_path).fetch("/data/upload/1/cat.jpg")


def test_an_address_that_is_no_longer_allowed_is_refused_all_the_same(
    site: Any, allow: tuple[str, ...], tmp_path: Path
) -> None:
    cat = f"{site.url}/photos/cat.jpg"
    ImageFetcher(Settings(allow_hosts=allow), tmp_path).fetch(cat)
    with pytest.raises(FetchError, match="private address"):
        ImageFetcher(Settings(), tmp_path).fetch(cat)


@pytest.fixture
def bucket(new_site: Callable[[], Any], photo_dir: Path) -> Any:
    """A storage service with a signed URL."""
    bucket = new_site()
    bucket.add("/cat.jpg?X-Amz-Signature=s3cret", (photo_dir / "cat.jpg").read_bytes())
    return bucket


def test_cloud_storage_is_read_by_the_url_that_label_studio_signs(site: Any, bucket: Any) -> None:
    # "s3://bucket/cat.jpg" in URL-safe base64, as Label Studio's route wants it.
    path = "/tasks/17/presign/?fileuri=czM6Ly9idWNrZXQvY2F0LmpwZw=="
    site.add(path, b"", 303, location=f"{bucket.url}/cat.jpg?X-Amz-Signature=s3cret")
    fetcher = ImageFetcher(
        Settings(
            label_studio_url=site.url, label_studio_api_key="k", allow_hosts=(f"127.0.0.1:{bucket.port}",)
        )
    )
    assert fetcher.fetch("s3://bucket/cat.jpg", 17).size == (451, 300)
    assert fetcher.fetch(path).size == (451, 300)
    assert (site.tokens(), bucket.tokens()) == (["Token k", "Token k"], []), (
        "the token stays with Label Studio"
    )


def test_cloud_storage_that_cannot_be_read(site: Any, bucket: Any) -> None:
    path = "/tasks/17/presign/?fileuri=czM6Ly9idWNrZXQvY2F0LmpwZw=="
    site.add(path, b"", 303, location=f"{bucket.url}/cat.jpg?X-Amz-Signature=s3cret")
    fetcher = ImageFetcher(Settings(label_studio_url=site.url, label_studio_api_key="k"))
    with pytest.raises(FetchError, match=f"--allow-host 127.0.0.1:{bucket.port}") as refused:
        fetcher.fetch("s3://bucket/cat.jpg", 17)
    assert "s3cret" not in str(refused.value)
    for task in (None, "17/../18", "x"):
        with pytest.raises(FetchError, match=r"cannot be read|by the id of their task"):
            fetcher.fetch("s3://bucket/cat.jpg", task)
    for bad in (
        "/tasks/17/presign/?fileuri=../x",
        "/tasks/17/presign/?x=1",
        "/tasks/x/presign/?fileuri=YQ==",
    ):
        with pytest.raises(FetchError, match="not a"):
            fetcher.fetch(bad)
    with pytest.raises(FetchError, match="start the server with LABEL_STUDIO_URL"):
        ImageFetcher(Settings()).fetch("gs://bucket/cat.jpg", 3)
