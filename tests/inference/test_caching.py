from __future__ import annotations

from groundingml.inference.caching import ByteBoundedCache, LruCache


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


def test_sizes_together_stay_within_the_limit() -> None:
    cache: ByteBoundedCache[str] = ByteBoundedCache(100)
    cache.put("a", "A", 40)
    cache.put("b", "B", 40)
    assert cache.get("a") == "A"
    cache.put("c", "C", 40)
    assert [cache.get(key) for key in "abc"] == ["A", None, "C"], "b was used longest ago"
    cache.put("a", "A2", 60)
    assert (cache.get("a"), cache.get("c"), cache.nbytes) == ("A2", "C", 100)
    cache.put("d", "D", 101)
    assert cache.get("d") is None, "larger than all"
    assert len(cache) == 2
    cache.discard("a")
    assert cache.nbytes == 40
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)
