"""Contents of objects read last, up to a number of bytes. What is worth keeping is the reader's to say."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

_Key = TypeVar("_Key", bound=Hashable)


class ContentCache(Generic[_Key]):
    """The contents read last, up to a number of bytes."""

    _OVERHEAD = 250

    def __init__(self, limit_bytes: int) -> None:
        self._left = limit_bytes
        self._contents: OrderedDict[_Key, tuple[int, bytes]] = OrderedDict()
        self._largest = limit_bytes // 4
        self._lock = threading.Lock()

    def get(self, key: _Key) -> tuple[int, bytes] | None:
        with self._lock:
            found = self._contents.get(key)
            if found is not None:
                self._contents.move_to_end(key)
            return found

    def put(self, key: _Key, found: tuple[int, bytes]) -> None:
        size = len(found[1]) + self._OVERHEAD
        with self._lock:
            if size > self._largest or key in self._contents:
                return
            self._contents[key] = found
            self._left -= size
            while self._left < 0:
                _, (_, content) = self._contents.popitem(last=False)
                self._left += len(content) + self._OVERHEAD
