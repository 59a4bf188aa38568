"""A small cache for what is asked again and again: prompt plans and text features."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from threading import Lock
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """Keeps the ``size`` most recently used values; safe to share between threads."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._values: OrderedDict[Hashable, Value] = OrderedDict()
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable, make: Callable[[], Value]) -> Value:
        """The value of ``key``, made when it is not there. Two threads may make it at once; the last
        stays."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            self._values[key] = value
            self._values.move_to_end(key)
            while len(self._values) > self.size:
                self._values.popitem(last=False)
        return value

    def clear(self) -> None:
        with self._lock:
            self._values.clear()


class ByteBoundedCache(Generic[Value]):
    """Keeps the most recently used values whose sizes together are at most ``most_bytes``; safe to share
    between threads."""

    def __init__(self, most_bytes: int) -> None:
        self.most_bytes = most_bytes
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()
        self._lock = Lock()
        self._bytes = 0

    @property
    def nbytes(self) -> int:
        """What the kept values take."""
        return self._bytes

    def __len__(self) -> int:
        return len(self._values)

    def get(self, key: Hashable) -> Value | None:
        """The value of ``key``; None when it is not kept."""
        with self._lock:
            if key not in self._values:
                return None
            self._values.move_to_end(key)
            return self._values[key][0]

    def put(self, key: Hashable, value: Value, nbytes: int) -> None:
        """Keep a value of ``nbytes`` bytes, in place of those used longest ago; not one larger than all."""
        with self._lock:
            self._drop(key)
            if nbytes > self.most_bytes:
                return
            self._values[key] = (value, nbytes)
            self._bytes += nbytes
            while self._bytes > self.most_bytes:
                self._drop(next(iter(self._values)))

    def discard(self, key: Hashable) -> None:
        """Forget one value, if it is there."""
        with self._lock:
            self._drop(key)

    def clear(self) -> None:
        """Forget all."""
        with self._lock:
            self._values.clear()
            self._bytes = 0

    def _drop(self, key: Hashable) -> None:
        if key in self._values:
            self._bytes -= self._values.pop(key)[1]
