"""One long request, and a server that is killed in its middle: the most of it needs not be sent again."""

from __future__ import annotations

import hashlib
import time

import httpx
import pytest

from tests.registry.conftest import Backend
from tests.registry.pushing import begin
from tests.registry.rawhttp import connect, head
from tests.registry.servers import RunningRegistry, StartRegistry

MIB = 1024 * 1024
DATA = b"".join(number.to_bytes(8, "big") * (MIB // 8) for number in range(140))
DIGEST = f"sha256:{hashlib.sha256(DATA).hexdigest()}"


def saved(server: RunningRegistry, location: str) -> int:
    """Bytes of an upload that are safe."""
    answer = httpx.get(f"{server.url}{location}")
    assert answer.status_code == 204, answer.text
    return int(answer.headers["range"].partition("-")[2]) + 1


@pytest.mark.parametrize("lead", [0, 5_000_001])
def test_a_server_killed_within_a_request_has_saved_the_most_of_it(
    backend: Backend, registry_server: StartRegistry, lead: int
) -> None:
    """Also where an earlier request has ended in the middle of a part."""
    server = registry_server(backend.storage, env=backend.env)
    with httpx.Client(base_url=server.url) as client:
        location = httpx.URL(begin(client, "lo/ng")).raw_path.decode()
        if lead:
            location = client.patch(location, content=DATA[:lead]).headers["location"]
    with connect(server) as connection:
        connection.sendall(head("PATCH", location, Content_Length=len(DATA) - lead))
        connection.sendall(DATA[lead : 120 * MIB])
        deadline = time.monotonic() + 60
        while (offset := saved(server, location)) < lead + 64 * MIB:
            assert time.monotonic() < deadline, f"only {offset} bytes were saved"
            time.sleep(0.1)
        server.kill()
    server = registry_server(backend.storage, env=backend.env)
    offset = saved(server, location)
    assert lead + 64 * MIB <= offset <= 120 * MIB
    with httpx.Client(base_url=server.url, timeout=60) as client:
        answer = client.put(location, params={"digest": DIGEST}, content=DATA[offset:])
        assert answer.status_code == 201, answer.text
        assert client.get(f"/v2/lo/ng/blobs/{DIGEST}", follow_redirects=True).content == DATA
