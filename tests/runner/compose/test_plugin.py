"""``docker-model``, called with the arguments, environment and pipes that Docker Compose uses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from runner.state import running
from tests.runner.commands import call, chat_request, environment, free_port

ROOT = Path(__file__).parents[3]
MAIN = (
    f"import sys; sys.argv[0] = 'docker-model'; sys.path.insert(0, {str(ROOT)!r})\n"
    "from runner.compose.plugin import main; main()"
)


class Plugin:
    """The plugin, as it is found in a folder for Docker's plugins."""

    def __init__(self, store: Path) -> None:
        self.store = store
        self.port = free_port()

    def __call__(self, *arguments: str, status: int = 0, merged: bool = False, **more: str) -> str:
        """Run it to its end; `merged` puts stdout and stderr together, as Compose does for ``ls`` and ``status``."""
        result = subprocess.run(
            [sys.executable, "-c", MAIN, *arguments],
            env={**environment(self.store, STOWAGE_MODEL_LISTEN=f"127.0.0.1:{self.port}"), **more},
            cwd=self.store.parent, stdout=subprocess.PIPE, text=True, timeout=120, check=False,
            stderr=subprocess.STDOUT if merged else subprocess.PIPE, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        assert result.returncode == status, (arguments, result.stdout, result.stderr)
        return result.stdout

    def messages(self, *arguments: str, status: int = 0) -> list[dict[str, str]]:
        return [json.loads(line) for line in self(*arguments, status=status).splitlines()]

    def ask(self, name: str) -> httpx.Response:
        url = f"http://127.0.0.1:{self.port}/engines/v1/chat/completions"
        return httpx.post(url, json=chat_request(model=name), timeout=60)


@pytest.fixture
def plugin(store: Path, compose: Any) -> Plugin:
    return Plugin(store)


@pytest.fixture
def local(store: Path, small_models: Path) -> str:
    """A model in the store under the name Compose files have: without a tag."""
    from artifact.layout import LayoutRepository
    from artifact.progress import Quiet
    from artifact.transfer import copy_artifact

    source = LayoutRepository(small_models)
    for name, tag in (("ai/tiny", "one"), ("ai/other", "two")):
        copy_artifact(source, LayoutRepository(store, name), source.resolve(tag).digest, tag="latest", progress=Quiet())
    return "ai/tiny"


def test_docker_accepts_it_as_a_plugin(plugin):
    metadata = json.loads(plugin("docker-cli-plugin-metadata"))
    assert metadata["SchemaVersion"] == "0.1.0"
    assert metadata["Vendor"]
    version = tuple(int(part) for part in metadata["Version"].removeprefix("v").split("."))
    assert version >= (1, 0, 6)  # else Compose keeps runtime flags to itself
    assert "docker-model" in plugin("model", "version")  # Docker's command line repeats the plugin's name


def test_ls_and_status_write_nothing_but_json(plugin, local):
    status = json.loads(plugin("status", "--json", merged=True))
    assert set(status.pop("backends").values()) == {"stopped"}
    assert status == {
        "running": True,
        "kind": "Stowage",
        "endpoint": f"http://127.0.0.1:{plugin.port}/engines/v1/",
        "endpointHost": f"http://127.0.0.1:{plugin.port}/engines/v1/",
    }
    inside = "http://172.17.0.1:12434/engines/v1/"
    assert json.loads(plugin("status", "--json", merged=True, STOWAGE_MODEL_ENDPOINT=inside))["endpoint"] == inside
    by_name = json.loads(plugin("status", "--json", STOWAGE_MODEL_LISTEN=f"localhost:{plugin.port}"))
    assert by_name["endpoint"] == status["endpoint"]
    models = {tag: model for model in json.loads(plugin("ls", "--json", merged=True)) for tag in model["tags"]}
    assert {name for name in models if "@" not in name} == {"ai/tiny", "ai/tiny:latest", "ai/other", "ai/other:latest"}
    for pinned in (f"{local}@{models[local]['id']}", f"{local}:latest@{models[local]['id']}"):
        assert models[pinned] == models[local]
    assert models[local]["id"].startswith("sha256:")
    assert isinstance(models[local]["created"], int)
    assert models[local]["config"]["format"] == "gguf"
    assert json.loads(Plugin(plugin.store.parent / "none")("ls", "--json", merged=True)) == []


def test_pull_tells_lines_and_fails_loudly(plugin, small_models):
    lines = plugin("pull", f"oci:{small_models}:one").splitlines()
    assert lines[0].startswith("pulling ")
    assert "@sha256:" in lines[-1]
    plugin("pull", f"oci:{small_models}:three", status=1)
    plugin("pull", "UPPER", status=2)


@pytest.mark.engine
def test_configure_serves_and_remembers(plugin, local, store):
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", MAIN, "configure", *arguments],
            env=environment(store, STOWAGE_MODEL_LISTEN=f"127.0.0.1:{plugin.port}"),
            cwd=store.parent,
        )
        for arguments in (["--context-size", "64", "ai/tiny", "--", "--temp", "0"], ["ai/other"])
    ]  # Compose configures all models at once
    assert [process.wait(90) for process in processes] == [0, 0]
    (run,) = running(store)
    assert [model.state for model in run.models] == ["ready", "ready"]
    tiny = next(model for model in run.models if "tiny" in model.name)
    assert "--ctx-size" in tiny.command
    assert "--temp 0" in tiny.command
    assert plugin.ask("ai/tiny").status_code == 200
    assert plugin.ask("ai/other").status_code == 200
    plugin("configure", "--context-size", "64", "ai/tiny", "--", "--temp", "0")
    assert {model.log for model in running(store)[0].models} == {model.log for model in run.models}
    assert running(store)[0].pid == run.pid
    plugin("configure", "ai/tiny", "--", "--log-file", "x", status=2)
    assert plugin.ask("ai/tiny").status_code == 200
    call(store, "stop")
    plugin("configure", "ai/other")
    assert sorted(model.name for model in running(store)[0].models) == ["ai/other:latest", "ai/tiny:latest"]


@pytest.mark.engine
def test_the_provider_serves_until_it_goes_down(plugin, local, store):
    metadata = json.loads(plugin("compose", "metadata"))
    assert metadata["description"]
    required = {item["name"]: item["required"] for item in metadata["up"]["parameters"]}
    assert required == {"model": True, "context-size": False, "runtime-flags": False, "driver": False, "gpus": False}
    assert metadata["down"] == metadata["stop"] == {"parameters": []}

    project = ("compose", "--project-name=shop")
    told = plugin.messages(*project, "up", "--model=ai/tiny", "--context-size=64", "--runtime-flags=--temp 0", "llm")
    assert {message["type"] for message in told} == {"info", "setenv"}
    variables = dict(message["message"].split("=", 1) for message in told if message["type"] == "setenv")
    url = f"http://127.0.0.1:{plugin.port}/engines/v1/"
    assert variables == {"URL": url, "ENDPOINT": url, "MODEL": "ai/tiny"}
    assert plugin.ask("ai/tiny").status_code == 200
    again = plugin.messages(*project, "up", "--model=ai/tiny", "--context-size=64", "--runtime-flags=--temp 0", "llm")
    assert again == told
    plugin.messages("compose", "--project-name=other", "up", "--model=ai/other", "llm")
    assert len(running(store)[0].models) == 2
    plugin.messages(*project, "down", "llm")
    assert [model.name for model in running(store)[0].models] == ["ai/other:latest"]
    plugin.messages("compose", "--project-name=other", "stop", "llm")
    assert running(store) == []
    plugin.messages("compose", "--project-name=other", "up", "--model=ai/other", "llm")
    assert plugin.ask("ai/other").status_code == 200
    plugin.messages("compose", "--project-name=other", "down", "llm")
    assert running(store) == []
    plugin.messages("compose", "--project-name=other", "down", "llm")


@pytest.mark.engine
def test_a_model_that_is_refused_does_not_keep_others_from_stopping(plugin, local, store, tmp_path):
    policies = [tmp_path / "first.yaml", tmp_path / "second.yaml"]
    services = ("first", "ai/tiny"), ("second", "ai/other")
    for policy, (project, model) in zip(policies, services, strict=True):
        policy.write_text("version: 1\nrules: [{name: all, match: ['**'], require: nothing}]\n")
        up = ("compose", f"--project-name={project}", "up", f"--model={model}", "--context-size=64", "llm")
        plugin(*up, STOWAGE_POLICY=str(policy))
    with httpx.Client(base_url=f"http://127.0.0.1:{plugin.port}", timeout=60) as client:
        told = json.loads(client.post("/models/create", json={"from": "ai/tiny"}).text)
        assert (told["type"], told["code"]) == ("error", "no-one-policy")
        refused = client.post("/engines/_configure", json={"model": "ai/tiny", "context-size": 32})
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "no-one-policy")
    policies[1].write_text("version: 1\nrules: [{name: none, match: ['none'], require: nothing}]\n")
    plugin.messages("compose", "--project-name=first", "down", "llm")
    assert [model.name for model in running(store)[0].models] == ["ai/other:latest"]
    plugin.messages("compose", "--project-name=second", "down", "llm")
    assert running(store) == []


def test_the_provider_tells_errors_as_messages(plugin, local):
    (error,) = plugin.messages("compose", "--project-name=x", "up", "llm", status=2)
    assert (error["type"], error["message"]) == ("error", "service 'llm' has no option model")
    *_, error = plugin.messages("compose", "--project-name=x", "up", "--model=ai/none", "llm", status=1)
    assert (error["type"], "ai/none" in error["message"]) == ("error", True)
