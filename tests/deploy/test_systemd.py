"""The units, by systemd's own reckoning."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.registry.servers import ROOT

UNITS = sorted((ROOT / "deploy" / "systemd").glob("*.service"))
EXPOSURE = {"stowage-registry": 15, "stowage-runner": 35}
"""Most that `systemd-analyze security` may say, in tenths. The runner makes namespaces for engines, which open GPUs."""

pytestmark = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed")


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.stem)
def test_a_unit_is_taken_and_confined(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(re.sub(r"/opt/stowage/bin/[a-z]+", shutil.which("true") or "", unit.read_text()))
    verified = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True)
    assert (verified.returncode, verified.stderr) == (0, "")
    threshold = EXPOSURE.get(unit.stem, 15)
    command = ["systemd-analyze", "security", "--offline=true", f"--threshold={threshold}", copy]
    judged = subprocess.run(command, capture_output=True, text=True)
    assert judged.returncode == 0, judged.stdout[-500:]


def test_the_registry_reads_its_configuration_again_on_reload() -> None:
    unit = ROOT / "deploy" / "systemd" / "stowage-registry.service"
    assert "ExecReload=/bin/kill -HUP $MAINPID" in unit.read_text()
