"""Buffers on their way from who received them to who hashes them, so that the hash need not read the file again."""

from __future__ import annotations

from collections import deque


class Handover:
    """At most `count` buffers of `length` bytes, in the order of a file from `position` on.

    What does not come in that order, or when all buffers wait, is not taken, and has to be read from the file. Its
    callers hold a lock.
    """

    def __init__(self, position: int, count: int, length: int) -> None:
        self._position = position
        self._waiting: deque[memoryview] = deque()
        self._spare: list[memoryview] = []
        self._left, self._length = count, length  # buffers that there may be beside those

    def full(self, position: int) -> bool:
        """Whether the file's bytes at `position` are the next, but all buffers wait."""
        return position == self._position and not (self._spare or self._left)

    def offer(self, buffer: memoryview, count: int, position: int) -> memoryview:
        """Hand over the first `count` bytes of `buffer`, which are the file's at `position`, if they are the next;
        returns a buffer to go on with."""
        if position != self._position or not (self._spare or self._left):
            return buffer
        self._waiting.append(buffer[:count])
        self._position += count
        if self._spare:
            return self._spare.pop()
        self._left -= 1
        return memoryview(bytearray(self._length))

    def take(self) -> memoryview | None:
        """The next bytes, to be given back; None if none wait."""
        return self._waiting.popleft() if self._waiting else None

    def give_back(self, taken: memoryview) -> None:
        """The buffer of what was taken is free again."""
        self._spare.append(memoryview(taken.obj))

    def skip_to(self, position: int) -> None:
        """What lies before `position` is read from the file. Only when none wait."""
        self._position = position
