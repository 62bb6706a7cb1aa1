"""What the transfers of one kind cost."""

from __future__ import annotations

from benchmarks.cost import Cost
from benchmarks.report import Series

GIB = 1024**3


class Costs:
    """The measurements of one kind of transfer: `series` are rate, processor time and memory."""

    def __init__(self, what: str) -> None:
        self.series = [
            Series(what, "MB/s"),
            Series(f"{what}: processor time of the client", "s/GiB", more_is_better=False),
            Series(f"{what}: peak memory of the client", "MiB", more_is_better=False),
        ]

    def add(self, name: str, size: int, cost: Cost) -> None:
        """Put down what moving `size` bytes cost."""
        for series, value in zip(
            self.series, (size / 1e6 / cost.seconds, cost.processor * GIB / size, cost.peak), strict=True
        ):
            series.add(name, value)
