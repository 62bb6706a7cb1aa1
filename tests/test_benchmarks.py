"""The page of benchmark results shows every result there is, drawn the same way each time."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"


def test_every_result_has_its_figure_on_the_page() -> None:
    names = sorted(path.stem for path in RESULTS.glob("*.json"))
    assert re.findall(r"\(figures/(\S+)\.svg\)", (DOCS / "performance.md").read_text()) == names
    assert sorted(path.stem for path in (DOCS / "figures").glob("*.svg")) == names


def test_the_same_results_give_the_same_figures(tmp_path: Path) -> None:
    shutil.copy(RESULTS / "gateway.json", tmp_path)
    drawn = []
    for name in ("one", "two"):
        docs = tmp_path / name
        docs.mkdir()
        shutil.copy(DOCS / "performance.md", docs)
        command = [sys.executable, "-m", "benchmarks.plot", "--results", str(tmp_path), "--docs", str(docs)]
        subprocess.run(command, cwd=ROOT, check=True)
        drawn.append((docs / "figures" / "gateway.svg").read_bytes())
        assert re.findall(r"\(figures/(\S+)\.svg\)", (docs / "performance.md").read_text()) == ["gateway"]
    assert drawn[0] == drawn[1]
    for series in json.loads((tmp_path / "gateway.json").read_text())["series"]:
        assert series["unit"] in drawn[0].decode()
