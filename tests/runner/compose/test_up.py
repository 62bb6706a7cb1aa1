"""``runner up``, ``down`` and ``lock`` as users call them, with real engines."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tomllib
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from artifact.layout import LayoutRepository
from runner.compose.dotenv import parse
from tests.runner.commands import (
    BIN,
    call,
    chat_request,
    environment,
    error_line,
    free_port,
    json_of,
    processes_in,
    wait_until,
)  # fmt: skip

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


def engines(store: Path) -> dict[str, list[int]]:
    """The processes of the engines that run (each with its guard), by the tag of the model."""
    (run,) = json_of(call(store, "ps", "--json"))
    found: dict[str, list[int]] = {}
    for folder in (store / "run").glob("*/engines/*"):
        digest = folder.name.partition("-")[0]
        name = next((model["name"] for model in run["models"] if digest in model["digest"]), "")
        if pids := processes_in(folder):
            found[name.rpartition(":")[2]] = sorted(pids)
    return found


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
    assert not {*now["one"]} & {*began["one"]}

    compose(f"models: {{llm: {{model: 'oci:{small_models}:two', driver: llama.cpp, context_size: 64, gpus: none}}}}")
    fourth = up(store, file)
    assert (fourth["stopped"], fourth["unchanged"]) == ([digest(small_models, "one")], [digest(small_models, "two")])
    assert engines(store) == {"two": began["two"]}

    call(store, "down", "-f", str(file))
    assert json_of(call(store, "ps", "--json")) == []
    assert (file.parent / ".env").read_text() == "MINE=1\n"
    assert "nothing runs" in call(store, "down", "-f", str(file)).stderr
    assert list((store / "compose").iterdir()) == []
    assert not processes_in(store)


@pytest.mark.engine
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGHUP])
def test_up_in_the_foreground_is_what_a_container_runs(store, compose, small_models, tmp_path, end):
    """Files nobody may write to, the gateway's words on stderr, and everything stopped by SIGTERM, or with the
    terminal."""
    file = compose(f"models: {{m: {{model: 'oci:{small_models}:one', context_size: 64}}}}")
    call(store, "lock", "-f", str(file))
    file.parent.chmod(0o555)
    listen, variables = f"127.0.0.1:{free_port()}", tmp_path / "variables"
    command = [str(BIN / "runner"), "up", "-f", str(file), "--listen", listen, "--env-file", str(variables)]
    process = subprocess.Popen(
        [*command, "--foreground"], env=environment(store), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        wait_until(variables.exists)
        assert is_healthy(listen)
        process.send_signal(end)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
        file.parent.chmod(0o755)
    assert process.returncode == 128 + end
    assert f"http://{listen}" in told
    assert json_of(call(store, "ps", "--json")) == []
    assert not processes_in(store)


@pytest.mark.engine
def test_a_store_that_is_filled_first_serves_many_that_do_not_write_to_it(store, compose, small_models, tmp_path):
    """What an init container does, and then a container that sees the cache read-only and no registry."""
    shutil.copytree(small_models, moved := tmp_path / "registry")
    file = compose(f"models: {{m: {{model: 'oci:{moved}:one', context_size: 64}}}}")
    call(store, "lock", "-f", str(file))
    cache = tmp_path / "cache"
    pulled = json_of(call(cache, "up", "-f", str(file), "--pull-only", "--json"))["pulled"]
    assert [name.partition("@")[2] for name in pulled] == [digest(moved, "one")]
    assert json_of(call(cache, "ps", "--json")) == []
    shutil.rmtree(moved)
    listen = f"127.0.0.1:{free_port()}"
    made = up(store, file, "--listen", listen, STOWAGE_SYSTEM_STORE=str(cache))
    assert made["started"] == [digest(small_models, "one")]
    assert not list((store / "blobs").rglob("*")) or not (store / "blobs").exists()
    error = error_line(call(store, "up", "-f", str(file), "--pull-only", "--foreground", status=2))
    assert "one of the two" in error


def is_healthy(address: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(f"http://{address}/healthz").status_code == 200
    return False


@pytest.mark.engine
def test_up_in_the_foreground_ends_with_its_gateway(store, compose, small_models):
    file = compose(f"models: {{m: {{model: 'oci:{small_models}:one', context_size: 64}}}}")
    listen = f"127.0.0.1:{free_port()}"
    command = [str(BIN / "runner"), "up", "-f", str(file), "--listen", listen, "--foreground"]
    process = subprocess.Popen(command, env=environment(store), stderr=subprocess.PIPE, text=True)
    wait_until((file.parent / ".env").exists)
    (gateway,) = gateways(store / "compose")
    os.kill(gateway, signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: the gateway has stopped" in told

    process = subprocess.Popen(command, env=environment(store), stderr=subprocess.PIPE, text=True)
    wait_until((file.parent / ".env").exists)
    assert is_healthy(listen)
    call(store, "down", "-f", str(file))
    _, told = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "error" not in told


@pytest.mark.engine
def test_an_up_that_was_killed_can_be_done_again(store, compose, small_models):
    """Killed as soon as it has started the gateway, which has not said where it is yet."""
    file = compose(f"models: {{m: {{model: 'oci:{small_models}:one', context_size: 64}}}}")
    command = [str(BIN / "runner"), "up", "-f", str(file), "--listen", f"127.0.0.1:{free_port()}"]
    first = subprocess.Popen(command, env=environment(store), stderr=subprocess.DEVNULL)
    folder = store / "compose"
    wait_until(lambda: any(gateways(folder)))
    first.kill()
    first.wait()
    (gateway,) = gateways(folder)
    os.kill(gateway, signal.SIGSTOP)  # so that it cannot have said where it is
    again = subprocess.Popen(command, env=environment(store), stderr=subprocess.PIPE, text=True)
    assert again.stderr is not None
    told = next(line for line in again.stderr if not line.startswith(("note: ", "warning: ")))
    os.kill(gateway, signal.SIGCONT)
    assert "waiting for it" in told
    rest = again.communicate(timeout=90)[1]
    assert (again.returncode, rest) == (0, f"oci:{small_models}:one: unchanged\n")
    assert gateways(folder) == [gateway]
    call(store, "down", "-f", str(file))
    assert gateways(folder) == []
    assert [path.name for path in file.parent.iterdir()] == ["compose.yaml"]  # .env was not there before either


def gateways(folder: Path) -> list[int]:
    """Processes that are the gateway of a project in `folder`."""
    found = []
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            command = (entry / "cmdline").read_bytes() if entry.name.isdigit() else b""
            if b"runner.compose.background" in command and str(folder).encode() in command:
                found.append(int(entry.name))
    return found


@pytest.mark.engine
def test_ps_and_logs_take_the_compose_file(store, compose, small_models, tmp_path):
    file = compose(TWO.format(layout=small_models, flags=FLAGS))
    up(store, file, "--listen", f"127.0.0.1:{free_port()}")
    both = call(store, "logs", "-f", str(file)).stdout
    assert both.count("==> sha256:") == 2
    one = call(store, "logs", "-f", str(file), "llm", "-n", "1000").stdout
    assert one.startswith("$ env -i ")
    assert "--parallel 1" in one.splitlines()[0]
    assert call(store, "logs", f"oci:{small_models}:one", "--tail", "1000").stdout == one
    assert "name the one to follow" in error_line(call(store, "logs", "-f", str(file), "--follow", status=2))
    assert "nosuch is neither served" in error_line(call(store, "logs", "-f", str(file), "nosuch", status=1))
    following = subprocess.Popen(
        [str(BIN / "runner"), "logs", "-f", str(file), "other-llm", "--follow", "--tail", "1000"],
        env=environment(store), stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert following.stdout is not None
    assert following.stdout.readline().startswith("$ env -i ")

    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text(f"models: {{m: {{model: 'oci:{small_models}:one'}}}}")
    for command in ("ps", "logs"):
        told = call(store, command, "-f", str(elsewhere))
        assert "is served (runner up serves it)" in told.stderr
        assert "sha256:" not in told.stdout
    call(store, "down", "-f", str(file))
    following.communicate(timeout=60)  # ends with the model
    assert following.returncode == 0
    assert call(store, "logs", f"oci:{small_models}:one", "-n", "1000").stdout.startswith(one)  # kept


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
    told = json_of(call(store, "lock", "-f", str(file), "--json"))
    assert told == {"file": str(path), "models": locked["models"]}
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
