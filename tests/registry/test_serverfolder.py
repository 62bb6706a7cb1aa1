"""What the processes of one server share leaves nothing behind, however the server ends."""

from __future__ import annotations

from pathlib import Path

from tests.registry.servers import StartRegistry


def test_a_killed_server_leaves_a_folder_that_the_next_removes(tmp_path: Path, registry_server: StartRegistry) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()

    def start() -> tuple[object, set[Path]]:
        server = registry_server(tmp_path / "storage", "--workers", "2", env={"TMPDIR": str(temporary)})
        return server, set(temporary.glob("stowage-registry-*"))

    living, first = start()
    killed, both = start()
    assert len(first) == 1
    assert len(both) == 2
    killed.kill()
    assert set(temporary.glob("stowage-registry-*")) == both
    third, left = start()
    assert first < left, "a server that lives keeps its own"
    assert not (both - first) & left
    assert living.stop() == 0
    assert third.stop() == 0
    assert not list(temporary.glob("stowage-registry-*"))
