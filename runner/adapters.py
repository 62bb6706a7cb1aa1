"""LoRA adapters: artifacts of their own, found, verified and fetched like models, that name the model they are for.

The manifest of an adapter says in its annotation ``dev.stowage.base`` the digest of the manifest of its base. It is
applied to exactly that model: another one with the same shapes would take it and answer nonsense.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artifact import mediatypes
from artifact.errors import InvalidInput, Malformed, Refused
from artifact.manifest import load_json
from artifact.reference import Reference
from runner.engines.engine import AdapterFiles
from runner.model import Model
from runner.pull import Found, find
from runner.store import Store

if TYPE_CHECKING:
    from supplychain.policy import Policy

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_CONFIG = "adapter_config.json"
_MAX_CONFIG = 1024 * 1024


class WrongBase(Refused):
    """An adapter for another model, or for none that it names."""

    code = "wrong-base"


@dataclass(frozen=True)
class Adapter:
    """An adapter that was found and, where there is a policy, allowed by it. `name` is what clients ask for where the
    engine keeps base and adapter apart."""

    name: str
    found: Found
    rank: int = 0

    @property
    def folder(self) -> str:
        """Where its files are, relative to the folder an engine runs in: by digest, so that the command says which."""
        return f"adapters/{self.found.model.digest.hex[:12]}"

    @property
    def files(self) -> AdapterFiles:
        """What an engine is told of it."""
        return AdapterFiles(self.name, self.folder, self.found.model.weights[0], self.rank)

    @property
    def pinned(self) -> str:
        """How to ask for exactly this one again: ``NAME=REFERENCE`` with its digest."""
        return f"{self.name}={self.found.reference.with_digest(self.found.model.digest)}"


def find_adapters(
    stated: Sequence[str], base: Found, store: Store, policy: Policy | None, *, plain_http: bool
) -> tuple[Adapter, ...]:
    """Find the adapters ``[NAME=]REFERENCE`` for `base`; the policy decides on each. Raises `WrongBase`, `InvalidInput`
    for one that is none or has another's name, and what `find` raises."""
    found = tuple(_find(text, base, store, policy, plain_http) for text in stated)
    names = [adapter.name for adapter in found]
    for name in names:
        if names.count(name) > 1:
            raise InvalidInput(f"--lora: two adapters are called {name}: name them, --lora NAME=REF")
    return found


def check_is_no_adapter(found: Found) -> None:
    """Raise `InvalidInput` for an adapter that is to be served by itself."""
    base = found.model.manifest.annotations.get(mediatypes.BASE)
    if base is not None:
        raise InvalidInput(f"{found.reference} is an adapter for {base}: serve that, with --lora {found.reference}")


def _find(text: str, base: Found, store: Store, policy: Policy | None, plain_http: bool) -> Adapter:
    name, equals, stated = text.partition("=") if _NAME.fullmatch(text.partition("=")[0]) else ("", "", text)
    reference = Reference.parse(stated if equals else text)
    name = name if equals else _default_name(reference)
    found = find(reference, store, policy, plain_http=plain_http)
    model = found.model
    meant = model.manifest.annotations.get(mediatypes.BASE)
    if meant is None:
        raise WrongBase(f"{reference} does not say which model it is an adapter for (annotation {mediatypes.BASE})")
    if meant != str(base.model.digest):
        raise WrongBase(f"{reference} is an adapter for {meant[:80]}, not for {base.reference} ({base.model.digest})")
    if model.config.format != base.model.config.format:
        raise InvalidInput(f"{reference} is {model.config.format}, but {base.reference} is {base.model.config.format}")
    if len(model.weights) != 1:
        raise InvalidInput(f"{reference} has {len(model.weights)} weight files: an adapter is one")
    return Adapter(name, found, _rank(found) if model.config.format == "safetensors" else 0)


def _default_name(reference: Reference) -> str:
    """The last part of the repository's name, or of the layout's path."""
    name = (reference.layout or reference.name).rstrip("/").rpartition("/")[2]
    if not _NAME.fullmatch(name):
        raise InvalidInput(f"--lora: give {reference} a name of letters, digits, . _ and -: --lora NAME={reference}")
    return name


def _rank(found: Found) -> int:
    """The rank that the adapter's config states. Raises `Malformed`, and `InvalidInput` where there is no config."""
    for file in found.model.files:
        if file.path == _CONFIG and file.blob.size <= _MAX_CONFIG:
            config = load_json(found.origin.read_blob(file.blob, _MAX_CONFIG), f"{found.reference}: {_CONFIG}")
            rank = config.get("r")
            if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
                raise Malformed(f"{found.reference}: {_CONFIG} states no rank")
            return rank
    raise InvalidInput(f"{found.reference} has no {_CONFIG}: it is no adapter")


def weights_of(adapters: Sequence[Adapter]) -> int:
    """Bytes of the adapters' weights."""
    models: list[Model] = [adapter.found.model for adapter in adapters]
    return sum(file.blob.size for model in models for file in model.files if file.path in model.weights)
