from __future__ import annotations

from groundingml.inference.caching import LruCache


def test_the_least_recently_used_value_goes_first() -> None:
    made: list[str] = []

    def make(key: str) -> str:
        made.append(key)
        return key.upper()

    cache: LruCache[str] = LruCache(2)
    for key in ["a", "b", "a", "c", "a", "b"]:
        assert cache.get(key, lambda key=key: make(key)) == key.upper()  # type: ignore[misc]
    assert made == ["a", "b", "c", "b"]
    assert len(cache) == 2
    cache.clear()
    assert len(cache) == 0
