"""The Dockerfiles. They are not built here: no base image can be fetched."""

from __future__ import annotations

import pytest

from tests.registry.servers import ROOT

FILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
PACKAGES = {"artifact", "supplychain", "packager", "registry", "runner"}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_an_image_runs_as_nobody_and_holds_what_is_copied(file) -> None:
    lines = file.read_text().splitlines()
    final = lines[max(number for number, line in enumerate(lines) if line.startswith("FROM")) :]
    assert "USER 65532:65532" in final
    assert not any(line.startswith("ADD") for line in lines)
    copied = [line.split()[1] for line in lines if line.startswith("COPY ") and "--from" not in line]
    assert set(copied) >= PACKAGES
    assert all((ROOT / name).exists() for name in copied)
    ignored = file.with_name(f"{file.name}.dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert {f"!{name}" for name in copied} <= set(ignored)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_base_image_can_be_named_by_its_digest(file) -> None:
    text = file.read_text()
    assert "ARG BASE=" in text
    assert all(line.split()[1] == "${BASE}" for line in text.splitlines() if line.startswith("FROM"))
    assert "--build-arg BASE=python@sha256:" in text
