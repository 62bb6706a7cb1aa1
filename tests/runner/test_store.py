"""The content store: bundles that are complete or absent, locks that die with their holder."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from artifact.errors import NotFound
from artifact.reference import Reference
from runner.model import Model
from runner.pull import find
from runner.state import Served, is_held, registered, running
from runner.store import Store
from tests.runner.commands import call, wait_until
from tests.runner.crafted import model_of


@pytest.fixture
def pulled(store: Path, tmp_path: Path) -> tuple[Store, Model]:
    """A store that holds one crafted model."""
    model_of(tmp_path / "l", {"config.json": b"{}", "deep/er/file.json": b"[1]"})
    reference = f"oci:{tmp_path}/l:v1"
    call(store, "pull", reference)
    opened = Store(store)
    return opened, find(Reference.parse(reference), opened, None).model


def test_a_bundle_is_made_anew_where_it_is_not_whole(pulled):
    store, model = pulled
    bundle = store.bundle(model)
    before = {path: path.stat().st_ino for path in bundle.rglob("*.json")}
    assert store.bundle(model) == bundle
    assert {path: path.stat().st_ino for path in bundle.rglob("*.json")} == before
    (bundle / "deep" / "er").chmod(0o755)
    (bundle / "deep" / "er" / "file.json").unlink()
    assert (store.bundle(model) / "deep" / "er" / "file.json").read_bytes() == b"[1]"


def test_where_links_fail_files_are_copied(pulled, monkeypatch):
    store, model = pulled

    def no_links(*_: object) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", no_links)
    bundle = store.bundle(model)
    (bundle / "deep" / "er").chmod(0o755)
    (bundle / "deep" / "er" / "file.json").unlink()
    bundle = store.bundle(model)
    copied = bundle / "deep" / "er" / "file.json"
    assert copied.read_bytes() == b"[1]"
    assert copied.stat().st_nlink == 1
    assert copied.stat().st_mode & 0o222 == 0


def test_a_missing_blob_leaves_no_bundle(pulled):
    store, model = pulled
    bundle = store.bundle(model)
    call(store.root, "rm", f"oci:{store.root.parent}/l:v1")
    assert not bundle.exists()
    with pytest.raises(NotFound, match="pull the model again"):
        store.bundle(model)
    assert not bundle.exists()
    assert not (store.root / "bundles" / "building").exists()


def test_a_lock_dies_with_its_holder(store):
    code = (
        "import sys, time; from pathlib import Path; from runner.store import Store\n"
        "with Store(Path(sys.argv[1])).pulling():\n    print('held', flush=True); time.sleep(60)\n"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(store)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with Store(store)._locked("store.lock", 2):  # exclusive, at once
        pass
    holder.stdout.close()


def test_a_run_is_believed_only_while_its_runner_lives(store):
    served = Served("a/b:v1", "sha256:" + "0" * 64, "llama.cpp", "1", "env -i x", "log")
    with registered(store) as registration:
        assert running(store) == []  # it has not said anything yet
        registration.write("127.0.0.1:1", [served])
        (run,) = running(store)
        assert (run.pid, run.address, run.models) == (os.getpid(), "127.0.0.1:1", (served,))
        assert is_held(run.folder)
    assert not run.folder.exists()
    code = (
        "import sys, time; from pathlib import Path; from runner.state import registered\n"
        "with registered(Path(sys.argv[1])) as r:\n    r.write('127.0.0.1:1', []); print(flush=True); time.sleep(60)\n"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(store)], stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]
    )
    assert other.stdout is not None
    other.stdout.readline()
    (run,) = running(store)
    other.send_signal(signal.SIGKILL)
    other.wait()
    other.stdout.close()
    wait_until(lambda: running(store) == [])
    assert not run.folder.exists()
