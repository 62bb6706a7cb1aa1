"""Which policy decides on what comes to a background gateway otherwise than by ``runner up``, and where it listens."""

from __future__ import annotations

import json
from pathlib import Path

import httpx
import pytest

from artifact.layout import LayoutRepository
from tests.runner.commands import call, error_line, free_port, json_of

pytestmark = pytest.mark.engine


def write_policy(path: Path, match: str) -> Path:
    """A policy that lets pass what `match` means, and nothing else."""
    path.write_text(f"version: 1\nrules: [{{name: only, match: ['{match}'], require: nothing}}]\n")
    return path


@pytest.mark.parametrize("stated", ["--policy", "STOWAGE_POLICY"])
def test_the_policy_of_up_decides_on_what_comes_over_http(store, compose, small_models, echo_engine, tmp_path, stated):
    one, two = (f"oci:{small_models}:{tag}" for tag in ("one", "two"))
    file = compose(f"models: {{m: {{model: '{one}', context_size: 64}}}}")
    policy = str(write_policy(tmp_path / "policy.yaml", one))
    options, more = (["--policy", policy], {}) if stated == "--policy" else ([], {"STOWAGE_POLICY": policy})
    call(store, "pull", two)
    listen = f"127.0.0.1:{free_port()}"

    def up(*arguments: str, **environment: str) -> dict[str, list[str]]:
        common = ("-f", str(file), "--json", "--listen", listen, *echo_engine)
        return json_of(call(store, "up", *common, *arguments, **environment))

    up()
    assert up(*options, **more)["started"] == [str(LayoutRepository(small_models).resolve("one").digest)]
    with httpx.Client(base_url=f"http://{listen}", timeout=60) as client:
        told = json.loads(client.post("/models/create", json={"from": two}).text.splitlines()[-1])
        assert (told["type"], told["code"]) == ("error", "no-rule")
        assert client.post("/api/pull", json={"model": two, "stream": False}).status_code == 403
        configured = client.post("/engines/_configure", json={"model": two})
        assert (configured.status_code, configured.json()["error"]["code"]) == (403, "no-rule")
        assert client.post("/engines/_configure", json={"model": one, "context-size": 32}).status_code == 202


def test_where_it_listens_may_be_written_in_any_way(store, compose, small_models, echo_engine):
    file, port = compose(f"models: {{m: {{model: 'oci:{small_models}:one', context_size: 64}}}}"), free_port()
    for host in ("127.0.0.1", "localhost", ""):
        again = ("-f", str(file), "--json", *echo_engine, "--listen", f"{host}:{port}")
        told = json_of(call(store, "up", *again))
        assert told["endpoint"] == f"http://127.0.0.1:{port}/v1"
        assert bool(told["unchanged"]) == (host != "127.0.0.1")
    wrong = call(store, "up", "-f", str(file), *echo_engine, "--listen", "host.example:80", status=2)
    assert "--listen takes an IP address" in error_line(wrong)
