"""Engines that were installed: one folder per name, version and variant, complete or absent.

``engines/<name>-<version>-<variant>/`` in the store is a virtual environment with a record of what it was made from.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ENGINES = "engines"
"""The folder in the store that has them."""

RECORD = "engine.json"
"""The record in an engine's folder, written last."""

_NUMBER = re.compile(r"[0-9]+")


@dataclass(frozen=True)
class Installed:
    """One installed engine. `lock` names the lock file it was installed from and that file's digest; `packages` is what
    is in it, ``name==version``; `compiler` is what compiled it, if it was compiled here."""

    name: str
    version: str
    variant: str
    folder: Path
    lock: str
    packages: Sequence[str] = ()
    compiler: str = ""

    @property
    def interpreter(self) -> Path:
        """Its Python."""
        return self.folder / "bin" / "python"

    def to_json(self) -> dict[str, Any]:
        """The record."""
        return {
            "name": self.name, "version": self.version, "variant": self.variant, "lock": self.lock,
            "packages": list(self.packages), "compiler": self.compiler,
        }  # fmt: skip


def installed(engines: Path) -> list[Installed]:
    """Every engine in the folder `engines`, the newest version of each name first."""
    found: list[Installed] = []
    with suppress(FileNotFoundError):
        for folder in engines.iterdir():
            with suppress(OSError, ValueError, KeyError, TypeError):
                record = json.loads((folder / RECORD).read_bytes())
                item = Installed(
                    record["name"], record["version"], record["variant"], folder, record["lock"], record["packages"],
                    record.get("compiler", ""),
                )  # fmt: skip
                if folder.name == folder_name(item.name, item.version, item.variant):
                    found.append(item)
    found.sort(key=lambda item: version_key(item.version), reverse=True)
    return sorted(found, key=lambda item: item.name)


def choose(engines: Path, name: str, version: str | None, variants: Sequence[str]) -> Installed | None:
    """The installed engine to use: of the version stated or the newest, in the first of `variants` there is."""
    fitting = [item for item in installed(engines) if item.name == name and version in (None, item.version)]
    for variant in variants:
        for item in fitting:
            if item.variant == variant:
                return item
    return None


def folder_name(name: str, version: str, variant: str) -> str:
    """The name of an engine's folder."""
    return f"{name}-{version}-{variant}"


def version_key(version: str) -> tuple[int, ...]:
    """Something to order versions by."""
    return tuple(map(int, _NUMBER.findall(version)))
