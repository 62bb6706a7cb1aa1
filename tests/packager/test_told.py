"""What commands say: of what a push moved and did not, and where there is no terminal."""

from __future__ import annotations

import re
from pathlib import Path

from tests.registry.servers import StartRegistry

TAG = "95K-BF16-safetensors"


def test_what_stays_behind_is_told(packager, tiny: Path, tmp_path: Path, registry_server: StartRegistry) -> None:
    """A copy without its signatures is refused where it arrives: whoever makes it should hear of it here."""
    assert packager("keygen", tmp_path / "release").status == 0
    packager.ok("pack", tiny, f"oci:{tmp_path}/out", "--sign", tmp_path / "release.key")
    server = registry_server(tmp_path / "storage")
    source, target = f"oci:{tmp_path}/out:{TAG}", f"{server.host}/behind/tiny"
    bare = packager("copy", source, target)
    assert bare.status == 0
    assert "note: 5 signatures and attestations stay behind: --all-referrers sends what refers to it" in bare.stderr
    whole = packager("copy", source, target, "--all-referrers")
    moved, there = re.findall(r"moved (\d+) \w+ of (\d+) \w+", whole.stderr)[0]
    assert int(moved) <= int(there)
    for result in (whole, packager("copy", source, target)):
        assert result.status == 0 and "behind" not in result.stderr, "there is nothing there that was left out"


def test_what_is_not_signed_leaves_nothing_behind(packager, tiny: Path, tmp_path: Path) -> None:
    packager.ok("pack", tiny, f"oci:{tmp_path}/out")
    result = packager("copy", f"oci:{tmp_path}/out:{TAG}", f"oci:{tmp_path}/there")
    assert result.status == 0 and "behind" not in result.stderr


def test_a_digest_is_not_broken_where_there_is_no_terminal(packager, tiny: Path, tmp_path: Path) -> None:
    digest = packager.ok("pack", tiny, f"oci:{tmp_path}/out").rpartition("@")[2]
    shown = packager("inspect", f"oci:{tmp_path}/out:{TAG}").stdout
    assert digest in shown and max(map(len, shown.splitlines())) < 200
