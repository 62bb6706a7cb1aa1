"""What a runner was told to serve, kept in the store so that it serves the same again after a restart.

One file per address: ``configured/<host>_<port>.json``. References are kept with the digests they meant then.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from artifact.digest import Digest
from artifact.errors import Malformed
from artifact.layout.files import write_atomically
from artifact.reference import Reference
from runner.wishes import Wishes

DEFAULT_IDLE = 0.0
"""Seconds of idleness after which a model is unloaded; 0 means never."""


@dataclass(frozen=True)
class Keeping:
    """How long a model stays loaded. `idle_timeout` in seconds, 0 for ever; a `pinned` model is never unloaded, nor
    does it make room; one that is `lazy` is loaded by its first request."""

    idle_timeout: float = DEFAULT_IDLE
    pinned: bool = False
    lazy: bool = False


@dataclass(frozen=True)
class Configured:
    """One model a runner was told to serve. `aliases` are the references of the names it was given besides."""

    reference: str
    digest: str
    wishes: Wishes
    keeping: Keeping
    aliases: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The entry as it is kept."""
        wishes = {**vars(self.wishes), "flags": list(self.wishes.flags), "lora": list(self.wishes.lora)}
        wishes = {key: str(value) if isinstance(value, Path) else value for key, value in wishes.items()}
        named = {"reference": self.reference, "digest": self.digest, "aliases": list(self.aliases)}
        return {**named, **wishes, "keeping": asdict(self.keeping)}

    @classmethod
    def read(cls, value: Mapping[str, Any]) -> Configured:
        """Read what `to_json` wrote. Raises `KeyError`, `TypeError`, `ValueError`."""
        known = {key: value[key] for key in Wishes.__dataclass_fields__ if key in value}
        if known.get("engine_path"):
            known["engine_path"] = Path(known["engine_path"])
        wishes = Wishes(**{**known, "flags": tuple(known.get("flags", ())), "lora": tuple(known.get("lora", ()))})
        aliases = tuple(str(Reference.parse(alias)) for alias in value.get("aliases", ()))
        return cls(value["reference"], str(Digest.parse(value["digest"])), wishes, Keeping(**value["keeping"]), aliases)

    @property
    def names(self) -> tuple[Reference, Reference]:
        """What the model was called, and its digest's own reference: a tag may mean another model by now."""
        reference = Reference.parse(self.reference)
        return reference, replace(reference, tag=None, digest=Digest.parse(self.digest))


@dataclass(frozen=True)
class Configuration:
    """All a runner was told. `policy` is the file that decides on models that are added; `plain_http` as on the
    command line."""

    models: tuple[Configured, ...] = ()
    policy: str | None = None
    plain_http: bool = False


def configuration_path(root: Path, address: tuple[str, int]) -> Path:
    """Where the configuration of the runner at `address` is kept in the store at `root`."""
    return root / "configured" / f"{address[0].replace(':', '-')}_{address[1]}.json"


def load(path: Path) -> Configuration:
    """What was kept; empty if nothing was. Raises `Malformed`."""
    try:
        value = json.loads(path.read_bytes())
        models = tuple(Configured.read(item) for item in value["models"])
        return Configuration(models, value.get("policy"), bool(value.get("plain_http")))
    except FileNotFoundError:
        return Configuration()
    except (ValueError, KeyError, TypeError) as error:
        raise Malformed(f"{path} is damaged ({error}): state the references again") from None


def save(path: Path, models: Iterable[Configured], policy: str | None, plain_http: bool) -> None:
    """Keep what was told, at once or not at all."""
    value = {"models": [model.to_json() for model in models], "policy": policy, "plain_http": plain_http}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(value, indent=2).encode(), 0o600)
