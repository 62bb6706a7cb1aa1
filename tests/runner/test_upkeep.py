"""``runner df``, ``prune`` and ``fsck``, the system's store, and names for the shell."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifact.reference import Reference
from runner.completion import complete_reference, join_words
from runner.store import Store
from runner.store_commands import seconds, size
from tests.runner.commands import call, environment, error_line, json_of
from tests.runner.crafted import flip_byte, model_of, safetensors_bytes

OLD = time.time() - 30 * 86400


@pytest.fixture
def pull(store: Path, tmp_path: Path) -> Callable[[str], str]:
    """Pulls a crafted model of about a megabyte; returns its reference."""

    def pulled(name: str) -> str:
        data = safetensors_bytes(name, count=500_000)
        model_of(tmp_path / name, {"config.json": b"{}", "model.safetensors": data})
        call(store, "pull", f"oci:{tmp_path}/{name}:v1")
        return f"oci:{tmp_path}/{name}:v1"

    return pulled


def age(store: Path, reference: str, when: float) -> None:
    """Make a model one that was used last at `when`."""
    digest = Store(store).find(Reference.parse(reference)).digest  # type: ignore[union-attr]
    os.utime(store / "records" / "sha256" / f"{digest.hex}.json", (when, when))


def names(store: Path) -> list[str]:
    return [item["name"] for item in json_of(call(store, "list", "--json"))]


def test_models_go_by_age_and_by_size(store, pull):
    one, two, three = pull("one"), pull("two"), pull("three")
    age(store, one, OLD)
    age(store, two, OLD + 86400)
    would = json_of(call(store, "prune", "--older-than", "29d", "--dry-run", "--json"))
    assert would["models"] == [one, two]
    assert names(store) == sorted([one, two, three])
    done = json_of(call(store, "prune", "--keep-size", "2M", "--json"))
    assert done["models"] == [one]
    assert done["freed"] > 1_000_000
    assert json_of(call(store, "prune", "--older-than", "29d", "--json"))["models"] == [two]
    assert names(store) == [three]
    assert json_of(call(store, "prune", "--json")) == {"models": [], "leftovers": [], "freed": 0}
    call(store, "inspect", three)


def test_what_nobody_needs_goes_once_it_is_old(store, pull):
    kept = pull("kept")
    blob = store / "blobs" / "sha256" / ("0" * 64)
    blob.write_bytes(b"x" * 1000)
    transfer = store / "ingest" / "sha256-1"
    transfer.parent.mkdir(exist_ok=True)
    transfer.write_bytes(b"y" * 10)
    usage = json_of(call(store, "df", "--json"))
    assert (usage["models"], usage["unreferenced"], usage["ingest"]) == (1, 1000, 10)
    assert usage["total"] >= usage["blobs"] > 1_000_000
    assert json_of(call(store, "prune", "--json"))["leftovers"] == []  # somebody may be about to refer to them
    for path in (blob, transfer):
        os.utime(path, (OLD, OLD))
    assert json_of(call(store, "prune", "--json"))["freed"] == 1010
    assert not blob.exists()
    assert not transfer.exists()
    assert names(store) == [kept]


def test_damage_is_found_and_mended_by_the_next_pull(store, pull):
    reference = pull("one")
    call(store, "fsck")
    weights = max(store.glob("blobs/sha256/*"), key=lambda path: path.stat().st_size)
    flip_byte(weights)
    (found,) = json_of(call(store, "fsck", "--dry-run", "--json", status=3))
    assert found == {"digest": f"sha256:{weights.name}", "models": [reference]}
    assert weights.exists()
    assert "have been removed" in error_line(call(store, "fsck", status=3))
    assert not weights.exists()
    assert not list((store / "bundles" / "sha256").iterdir())
    call(store, "pull", reference)
    call(store, "fsck")


def test_times_and_sizes():
    assert (seconds("12h"), seconds("2w"), size("100GiB"), size("800m"), size("7")) == (
        43200.0, 1209600.0, 100 * 1024**3, 800 * 1024**2, 7,
    )  # fmt: skip


@pytest.mark.parametrize(("option", "text"), [("--older-than", "30"), ("--keep-size", "1.5G"), ("--keep-size", "-1")])
def test_times_and_sizes_that_are_none(store, option, text):
    assert option in error_line(call(store, "prune", f"{option}={text}", status=2))


def test_the_system_store_is_read_and_never_written(store, pull, tmp_path):
    reference = pull("shared")
    system = tmp_path / "system"
    store.rename(system)
    before = {path: path.stat().st_mtime_ns for path in system.rglob("*")}
    shown = {"STOWAGE_SYSTEM_STORE": str(system)}
    (listed,) = json_of(call(store, "list", "--json", **shown))
    assert (listed["name"], listed["system"]) == (reference, True)
    (tmp_path / "shared").rename(tmp_path / "gone")  # nothing is fetched
    call(store, "inspect", reference, **shown)
    assert "not in the store" in error_line(call(store, "rm", reference, status=1))
    assert "is in the system's store" in error_line(call(store, "rm", reference, status=1, **shown))
    assert json_of(call(store, "prune", "--older-than", "1s", "--json", **shown))["models"] == []
    call(store, "save", reference, str(tmp_path / "m.tar"), **shown)
    assert call(store, "load", str(tmp_path / "m.tar"), **shown).stdout
    assert {path: path.stat().st_mtime_ns for path in system.rglob("*")} == before


def test_a_system_model_is_used_where_it_lies(store, pull, tmp_path, monkeypatch):
    reference = Reference.parse(pull("shared"))
    system = tmp_path / "system"
    store.rename(system)
    monkeypatch.setenv("STOWAGE_SYSTEM_STORE", str(system))
    opened = Store(store)
    descriptor = opened.find(reference)
    assert descriptor is not None
    assert opened.bundle(opened.model(reference, descriptor)).is_relative_to(system)
    monkeypatch.setenv("STOWAGE_SYSTEM_STORE", "")
    assert Store(store).find(reference) is None


def offered(store: Path, *words: str) -> list[str]:
    """What the installed script offers in bash for the last of `words`, which are broken as bash breaks them."""
    script = """
source "$HOME/.bash_completions/runner.sh"
COMP_WORDS=(runner "$@") COMP_CWORD=$#
_runner_completion runner
printf '%s\\n' "${COMPREPLY[@]}"
"""
    done = subprocess.run(
        ["bash", "-c", script, "bash", *words], env=environment(store), capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.split()


@given(st.lists(st.text(alphabet="a:@=-/", min_size=1), min_size=1))
def test_words_are_put_together_as_they_were_typed(typed):
    broken = [re.findall(r"[:@=]+|[^:@=]+", word) for word in typed]
    words = ["runner", "x", *(piece for pieces in broken for piece in pieces)]
    expected = re.split(" ", re.sub(r" ?([:@=]+) ?", r"\1", " ".join(["x", *words[2:]])))
    joined, at = join_words(words, len(words) - 1)
    assert joined == ["runner", *expected]
    assert at == len(joined) - 1


def test_the_shell_is_offered_what_is_stored(store, pull, monkeypatch):
    reference = pull("one")
    monkeypatch.setenv("STOWAGE_STORE", str(store))
    assert complete_reference("") == [reference]
    assert complete_reference("other") == []
    script = "runner --install-completion; exit $?"  # asked by bash, which it looks for among its parents
    subprocess.run(["bash", "-c", script], env=environment(store), check=True, timeout=60)
    place, colon, tag = reference.removeprefix("oci:").partition(":")
    for command in ("run", "serve", "rm", "stop", "logs"):
        assert offered(store, command, "oci", ":", place[:-1]) == [f"{place}:{tag}"]
    assert offered(store, "stop", "other", "oci", ":", place, colon) == [tag]
    assert offered(store, "stop", "oc") == [reference]
    assert offered(store, "sto") == ["stop"]
    (store / "index.json").write_text("{")
    assert complete_reference("") == []
