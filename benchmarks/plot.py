"""``python -m benchmarks.plot``: a figure of each result file, and the page that shows them.

The same results give the same files: no date, no random names.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import textwrap
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
from matplotlib import pyplot

_ROOT = Path(__file__).resolve().parents[1]
_RESULTS, _DOCS = _ROOT / "benchmarks" / "results", _ROOT / "docs"
_BEGIN, _END = "<!-- figures: begin -->", "<!-- figures: end -->"
_OURS, _THEIRS = "#1f5f8b", "#b8c4cc"
_STYLE = {
    "svg.hashsalt": "stowage", "svg.fonttype": "none", "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8, "axes.titlesize": 8, "axes.spines.top": False, "axes.spines.right": False,
}  # fmt: skip


def figure(document: dict[str, Any], path: Path) -> None:
    """Draw the series of one result file side by side: medians as bars, from lowest to highest as lines."""
    series = document["series"]
    columns = 3 if len(series) % 3 == 0 else 2 if len(series) > 1 else 1
    rows = math.ceil(len(series) / columns)
    bars = max(len(item["values"]) for item in series)
    with matplotlib.rc_context(_STYLE):
        drawing, places = pyplot.subplots(
            rows, columns, figsize=(4.4 * columns, rows * (0.9 + 0.27 * bars)), squeeze=False
        )
        for place, item in zip(places.flat, series, strict=False):
            _draw(place, item)
        for place in list(places.flat)[len(series) :]:
            place.set_axis_off()
        drawing.tight_layout()
        drawing.savefig(path, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(drawing)


def _draw(place: Any, item: dict[str, Any]) -> None:
    names = sorted((name for name, values in item["values"].items() if values), key=lambda name: name != "stowage")
    medians = [statistics.median(item["values"][name]) for name in names]
    spread = [
        [median - min(item["values"][name]) for name, median in zip(names, medians, strict=True)],
        [max(item["values"][name]) - median for name, median in zip(names, medians, strict=True)],
    ]
    colours = [_OURS if name == "stowage" or "stowage" not in item["values"] else _THEIRS for name in names]
    place.barh(names, medians, xerr=spread, color=colours, height=0.7, error_kw={"elinewidth": 0.8, "capsize": 2})
    for number, (median, above) in enumerate(zip(medians, spread[1], strict=True)):
        place.annotate(_text(median), (median + above, number), (3, 0), textcoords="offset points", va="center")
    place.invert_yaxis()
    place.margins(x=0.18)
    place.set_title("\n".join(textwrap.wrap(item["name"], 44)), loc="left")
    place.set_xlabel(f"{item['unit']}, {'more' if item['more_is_better'] else 'less'} is better")


def _text(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def page(text: str, found: dict[str, dict[str, Any]]) -> str:
    """The page with the figures between its two marks."""
    parts = [_BEGIN]
    for name, document in found.items():
        about = document["machine"]
        facts = ", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in document["settings"].items() if key != "clients"
        )
        parts += [
            f"### {name.replace('-', ', ').capitalize()}",
            f"![{name.replace('-', ', ')}](figures/{name}.svg)",
            f"Taken {document['taken'][:10]} on {about['cores']} cores ({about['cpu']}), {about['memory_gib']} GiB, "
            f"Linux {about['kernel'].partition('-')[0]}, load {about['load_1min']} at the start; {facts}.",
        ]
    before, _, rest = text.partition(_BEGIN)
    return before + "\n\n".join((*parts, _END)) + rest.partition(_END)[2]


def _stem(path: Path) -> str:
    return path.stem


def main() -> None:
    """Draw what there is."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plot", description=__doc__)
    parser.add_argument("--results", type=Path, default=_RESULTS, help="where the result files are")
    parser.add_argument("--docs", type=Path, default=_DOCS, help="the folder of performance.md, which is rewritten")
    options = parser.parse_args()
    figures = options.docs / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    found = {path.stem: json.loads(path.read_text()) for path in sorted(options.results.glob("*.json"), key=_stem)}
    for old in figures.glob("*.svg"):
        if old.stem not in found:
            old.unlink()
    for name, document in found.items():
        figure(document, figures / f"{name}.svg")
    file = options.docs / "performance.md"
    file.write_text(page(file.read_text(), found))


if __name__ == "__main__":
    main()
