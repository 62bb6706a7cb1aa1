"""``runner up``, ``down`` and ``lock`` as users call them, with real engines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import httpx
import pytest

from artifact.layout import LayoutRepository
from runner.compose.dotenv import parse
from tests.runner.commands import BIN, call, chat_request, environment, error_line, free_port, json_of, wait_until

TWO = """
services:
  app: {{models: [llm], image: x}}
  search:
    models: {{other-llm: {{endpoint_var: AI_URL, model_var: AI_NAME}}}}
models:
  llm:
    model: oci:{layout}:one
    context_size: 64
    runtime_flags: {flags}
  other-llm: {{model: "oci:{layout}:two", driver: llama.cpp, context_size: 64, gpus: none}}
"""
FLAGS = '"--parallel 1"'


def up(store: Path, file: Path, *arguments: str, status: int = 0, **more: str) -> Any:
    result = call(store, "up", "-f", str(file), "--json", *arguments, status=status, **more)
    return json_of(result) if status == 0 else error_line(result)


def digest(layout: Path, tag: str) -> str:
    return str(LayoutRepository(layout).resolve(tag).digest)


def engines(store: Path) -> dict[str, float]:
    """The engines that run, by model, with the time each began."""
    (run,) = json_of(call(store, "ps", "--json"))
    found = {}
    for socket in (store / "run").glob("*/engines/*/engine.sock"):
        digest = socket.parent.name.partition("-")[0]
        name = next((model["name"] for model in run["models"] if digest in model["digest"]), "")
        tag = name.rpartition(":")[2]
        found[tag] = max(found.get(tag, 0.0), socket.stat().st_ctime)  # one that was stopped leaves its socket
    return {tag: began for tag, began in found.items() if tag}


@pytest.mark.engine
def test_up_changes_only_what_differs(store, compose, small_models):
    file = compose(TWO.format(layout=small_models, flags=FLAGS))
    (file.parent / ".env").write_text("MINE=1\n")
    listen = f"127.0.0.1:{free_port()}"
    first = up(store, file, "--listen", listen)
    both = sorted(digest(small_models, tag) for tag in ("one", "two"))
    assert (first["endpoint"], sorted(first["started"]), first["unchanged"]) == (f"http://{listen}/v1", both, [])
    variables = parse((file.parent / ".env").read_text(), ".env", {})
    assert variables == {"MINE": "1", **first["variables"]}
    assert sorted(first["variables"]) == ["AI_NAME", "AI_URL", "LLM_ENDPOINT", "LLM_MODEL", "LLM_URL"]
    for url, name in (("LLM_URL", "LLM_MODEL"), ("AI_URL", "AI_NAME")):
        request = chat_request(model=variables[name])
        assert httpx.post(f"{variables[url]}/chat/completions", json=request, timeout=60).status_code == 200

    (run,) = json_of(call(store, "ps", "-f", str(file), "--json"))
    assert run["endpoint"] == first["endpoint"]
    began = engines(store)
    second = up(store, file)
    assert (second["started"], second["stopped"], sorted(second["unchanged"])) == ([], [], both)
    assert engines(store) == began

    compose(TWO.format(layout=small_models, flags='["--parallel", 2]'))
    third = up(store, file)
    assert (third["started"], third["unchanged"]) == ([digest(small_models, "one")], [digest(small_models, "two")])
    now = engines(store)
    assert now["two"] == began["two"]
    assert now["one"] > began["one"]

    compose(f"models: {{llm: {{model: 'oci:{small_models}:two', driver: llama.cpp, context_size: 64, gpus: none}}}}")
    fourth = up(store, file)
    assert (fourth["stopped"], fourth["unchanged"]) == ([digest(small_models, "one")], [digest(small_models, "two")])
    assert list(engines(store).values()) == [began["two"]]

    call(store, "down", "-f", str(file))
    assert json_of(call(store, "ps", "--json")) == []
    assert (file.parent / ".env").read_text() == "MINE=1\n"
    assert "nothing runs" in call(store, "down", "-f", str(file)).stderr


@pytest.mark.engine
def test_a_gateway_that_was_killed_is_started_again(store, compose, small_models):
    file = compose(f"models: {{m: {{model: 'oci:{small_models}:one', context_size: 64}}}}")
    port = f"127.0.0.1:{free_port()}"
    up(store, file, "--listen", port)
    (run,) = json_of(call(store, "ps", "--json"))
    os.kill(run["pid"], signal.SIGKILL)
    wait_until(lambda: json_of(call(store, "ps", "--json")) == [])
    assert up(store, file, "--listen", port)["started"] == [digest(small_models, "one")]


@pytest.mark.engine
def test_two_at_once_end_in_one_gateway(store, compose, small_models):
    file = compose(f"models: {{m: {{model: 'oci:{small_models}:one', context_size: 64}}}}")
    command = [str(BIN / "runner"), "up", "-f", str(file), "--listen", f"127.0.0.1:{free_port()}"]
    both = [subprocess.Popen(command, env=environment(store), stderr=subprocess.PIPE, text=True) for _ in range(2)]
    ended = [process.communicate(timeout=90)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], ended
    assert sorted(text.splitlines()[-1].rpartition(": ")[2] for text in ended) == ["started", "unchanged"]
    assert len(json_of(call(store, "ps", "--json"))) == 1


@pytest.mark.engine
def test_what_the_gateway_says_is_the_error(store, compose, small_models, tmp_path):
    file = compose(f"models: {{m: {{model: 'oci:{small_models}:one', context_size: 64}}}}")
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nmode: warn\nrules: [{match: ['none'], require: {any-of: [x]}}]\n")
    line = up(store, file, "--policy", str(policy), status=2)
    assert "policy.yaml" in line
    assert json_of(call(store, "ps", "--json")) == []


def test_nothing_is_pulled_before_all_is_planned(store, compose, small_models):
    file = compose(TWO.format(layout=small_models, flags='"--log-file x"'))
    assert f"{file}:8: llm: flag --log-file is not passed to llama.cpp" in up(store, file, status=2)
    assert not list(store.glob("blobs/*/*"))
    compose(
        f"models:\n  a: {{model: 'oci:{small_models}:one'}}\n  b: {{model: 'oci:{small_models}:one', context_size: 9}}"
    )
    assert "b and a are the same model" in up(store, file, status=2)


@pytest.fixture
def movable(tmp_path: Path, small_models: Path) -> Path:
    """A copy of the layout, to be written to."""
    shutil.copytree(small_models, tmp_path / "movable")
    return tmp_path / "movable"


def test_a_lock_names_what_every_model_is(store, compose, movable):
    file = compose(TWO.format(layout=movable, flags=FLAGS))
    call(store, "lock", "-f", str(file))
    path = file.parent / "models.lock"
    locked = tomllib.loads(path.read_text())
    assert locked["version"] == 1
    assert list(locked["models"]) == ["llm", "other-llm"]
    llm = locked["models"]["llm"]
    assert (llm["reference"], llm["digest"], llm["signers"]) == (f"oci:{movable}:one", digest(movable, "one"), [])
    assert llm["engine"] == "llama.cpp"
    assert "xllamacpp" in llm["engine_version"]
    before = path.read_bytes()
    call(store, "lock", "-f", str(file))
    assert path.read_bytes() == before
    assert not list(store.glob("blobs/*/*"))


def test_what_is_not_as_locked_is_refused(store, compose, movable):
    file = compose(TWO.format(layout=movable, flags=FLAGS))
    call(store, "lock", "-f", str(file))
    path = file.parent / "models.lock"
    good = path.read_text()
    was, now = digest(movable, "one"), digest(movable, "two")

    path.write_text(good.replace("xllamacpp", "xllamacpp-other"))
    assert "xllamacpp-other" in up(store, file, status=3)
    path.write_text(good.replace('[models."llm"]', '[models."nobody"]'))
    assert f"{file}:8: the model 'llm' is not in models.lock" in up(store, file, status=3)
    path.write_text(good.replace(f"{movable}:one", f"{movable}:three"))
    assert "lock it anew" in up(store, file, status=3)
    for bad in ("version = 2", good.replace("sha256:", "sha256:x"), "[", good.replace("signers = []", "signers = [1]")):
        path.write_text(bad)
        assert "is not a lock file" in up(store, file, status=2)

    path.write_text(good)
    raw = LayoutRepository(movable).manifest("two")
    LayoutRepository(movable).push_manifest(raw[1], raw[0].media_type, "one")  # the tag moves
    line = up(store, file, status=3)
    assert was in line
    assert now in line
    assert "the tag has moved" in line
    assert json_of(call(store, "ps", "--json")) == []


@pytest.mark.engine
def test_a_tag_that_moved_is_refused_where_the_old_model_is_stored_too(store, compose, movable):
    file = compose(f"models: {{m: {{model: 'oci:{movable}:one', context_size: 64}}}}")
    call(store, "lock", "-f", str(file))
    up(store, file, "--listen", f"127.0.0.1:{free_port()}")
    raw = LayoutRepository(movable).manifest("two")
    LayoutRepository(movable).push_manifest(raw[1], raw[0].media_type, "one")
    assert "the tag has moved" in up(store, file, status=3)
    call(store, "pull", f"oci:{movable}:one")  # the store's tag moves as well
    assert up(store, file, "--no-lock")["started"] == [digest(movable, "two")]
    call(store, "lock", "-f", str(file))
    assert up(store, file)["unchanged"] == [digest(movable, "two")]
    moved = digest(movable, "two")
    shutil.rmtree(movable)  # nobody to ask: what is stored and locked runs
    assert up(store, file)["unchanged"] == [moved]
