"""Series of measurements, their ratios, and the two files that are kept of them."""

from __future__ import annotations

import json
import statistics
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path


@dataclass
class Series:
    """One quantity, measured of each contestant in turn. `more_is_better` says which way a ratio counts."""

    name: str
    unit: str
    more_is_better: bool = True
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, contestant: str, value: float) -> None:
        """Put a measurement down."""
        self.values.setdefault(contestant, []).append(value)

    def ratios(self, ours: str = "stowage") -> dict[str, list[float]]:
        """For each other contestant, how many times better ours was in each round: neighbours in time are compared,
        so that a burst of load on the machine counts for both."""
        mine = self.values.get(ours, [])
        return {
            name: [a / b if self.more_is_better else b / a for a, b in zip(mine, other, strict=False) if a and b]
            for name, other in self.values.items()
            if name != ours
        }

    def to_json(self) -> dict[str, object]:
        return {
            "name": self.name,
            "unit": self.unit,
            "more_is_better": self.more_is_better,
            "values": {name: [round(value, 4) for value in values] for name, values in self.values.items()},
            "ratios": {name: _summary(values) for name, values in self.ratios().items() if values},
        }


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 2),
        "low": round(min(values), 2),
        "high": round(max(values), 2),
    }


def write(folder: Path, name: str, series: list[Series], settings: dict[str, object], about: dict[str, object]) -> None:
    """Write ``NAME.json`` and ``NAME.md``; `about` is the machine."""
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": about,
        "settings": settings,
        "series": [item.to_json() for item in series],
    }
    (folder / f"{name}.json").write_text(json.dumps(document, indent=1) + "\n")
    (folder / f"{name}.md").write_text(markdown(name.replace("-", ", "), document, series))


def markdown(title: str, document: dict[str, object], series: list[Series]) -> str:
    """The measurements as a table of medians (lowest to highest) and of ratios."""
    about = document["machine"]
    lines = [
        f"# {title.capitalize()}, measured",
        "",
        f"{document['taken']}; {about}; settings: {document['settings']}.",
        "",
        "Contestants take turns within each round; a ratio above 1 is in favour of stowage.",
        "",
        "| what | unit | contestant | median | low to high | ratio: median | low to high |",
        "|---|---|---|---|---|---|---|",
    ]
    return "\n".join((*lines, *(row for item in series for row in rows(item)))) + "\n"


def rows(item: Series) -> list[str]:
    """The rows of one series: a row for each contestant."""
    ratios, found = item.ratios(), []
    for name, values in item.values.items():
        row = [item.name, item.unit, name, _text(statistics.median(values)), _span(values)]
        ratio = ratios.get(name, [])
        row += [_text(statistics.median(ratio)), _span(ratio)] if ratio else ["", ""]
        found.append(f"| {' | '.join(row)} |")
    return found


def _span(values: list[float]) -> str:
    return f"{_text(min(values))} to {_text(max(values))}"


def _text(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
