"""Threads that work side by side, and hand back what they have done as it gets done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import SimpleQueue
from typing import Generic, TypeVar

Result = TypeVar("Result")


class Crew(Generic[Result]):
    """`size` threads. They are daemons: a request that hangs does not keep the program from ending."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.busy = 0
        self._work: SimpleQueue[Callable[[], Result] | None] = SimpleQueue()
        self._done: SimpleQueue[Result | BaseException] = SimpleQueue()
        for number in range(size):
            threading.Thread(target=self._run, name=f"audit-{number}", daemon=True).start()

    def give(self, work: Callable[[], Result]) -> None:
        """Have `work` done. No more than `size` pieces should be out at a time."""
        self.busy += 1
        self._work.put(work)

    def next(self) -> Result:
        """The next piece that gets done. Raises what it raised."""
        done = self._done.get()
        self.busy -= 1
        if isinstance(done, BaseException):
            raise done
        return done

    def dismiss(self) -> None:
        """Have the threads end when they have done what they are doing."""
        for _ in range(self.size):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            try:
                self._done.put(work())
            except BaseException as error:
                self._done.put(error)
