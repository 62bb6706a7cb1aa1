"""Progress bars, with bytes, rate and time left."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, TaskID, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.progress import Progress as RichProgress

from artifact.progress import Progress


@contextmanager
def bars() -> Iterator[Progress]:
    """Bars on stderr, which is a terminal."""
    with RichProgress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        console=Console(stderr=True),
    ) as drawn:
        yield _Bars(drawn)


class _Bars:
    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars
        self._tasks: dict[str, TaskID] = {}

    def begin(self, name: str, total: int) -> None:
        self._tasks[name] = self._bars.add_task(name[:40], total=total, note="")

    def advance(self, name: str, count: int) -> None:
        if name in self._tasks:
            self._bars.advance(self._tasks[name], count)

    def finish(self, name: str, note: str = "") -> None:
        if name not in self._tasks:
            self.begin(name, 0)
        task = self._bars.tasks[self._tasks[name]]
        self._bars.update(self._tasks[name], completed=task.total, note=note)
