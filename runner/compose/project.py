"""The models of a Compose project, and the variables its services learn about them.

Sources: Compose specification, "Models" and "Merge"; and a dialect with ``driver`` and ``gpus`` under a model, flags in
one string, and ``NAME_ENDPOINT`` variables. Everything else in a Compose file is left alone.
"""

from __future__ import annotations

import hashlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from artifact.errors import InvalidInput, NotFound
from artifact.reference import Reference
from artifact.terminal import note
from runner.compose import dotenv
from runner.compose.interpolation import interpolate
from runner.compose.yamlfile import Document
from supplychain.strictyaml import Value

DEFAULT_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
"""The files looked for where none is named, the first one that exists; an override file beside it is merged in."""

_FIELDS = ("model", "name", "context_size", "runtime_flags", "driver", "gpus")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


@dataclass(frozen=True)
class ComposeModel:
    """One entry of ``models``: how the file calls it, the reference as written and as read, and how it shall run."""

    key: str
    where: Value
    written: str
    reference: Reference
    driver: str | None = None
    context_size: int | None = None
    gpus: str | None = None
    flags: Sequence[str] = ()


@dataclass(frozen=True)
class Binding:
    """A service's use of a model: the names of the variables, empty where the standard names are meant."""

    service: str
    where: Value
    model: str
    endpoint_var: str = ""
    model_var: str = ""


@dataclass(frozen=True)
class Project:
    """What a project's Compose files say about models. `folder` is that of the first file."""

    files: Sequence[Path]
    folder: Path
    models: Sequence[ComposeModel]
    bindings: Sequence[Binding]

    @property
    def id(self) -> str:
        """What tells this project from others: the digest of its first file's path."""
        return hashlib.sha256(str(self.files[0]).encode()).hexdigest()[:16]

    @property
    def name(self) -> str:
        """The project for people: its folder's name."""
        return self.folder.name

    def variables(self, endpoint: str, names: Mapping[str, str]) -> dict[str, str]:
        """The variables to inject: where `endpoint` is, and by which of `names` (by key) a model is asked for. Raises
        `InvalidInput` if one variable would have to mean two things."""
        found: dict[str, str] = {}
        bound = {binding.model for binding in self.bindings}
        unbound = [Binding("", model.where, model.key) for model in self.models if model.key not in bound]
        for binding in (*self.bindings, *unbound):
            prefix = variable_prefix(binding.model)
            endpoints = [binding.endpoint_var] if binding.endpoint_var else [f"{prefix}_URL", f"{prefix}_ENDPOINT"]
            pairs = [(name, endpoint) for name in endpoints]
            for name, value in (*pairs, (binding.model_var or f"{prefix}_MODEL", names[binding.model])):
                if found.setdefault(name, value) != value:
                    binding.where.fail(f"the variable {name} would have to be both {found[name]!r} and {value!r}")
        return found


def variable_prefix(key: str) -> str:
    """The beginning of a model's variables: its name in upper case, ``_`` where an environment takes nothing else."""
    return re.sub(r"[^A-Z0-9_]", "_", key.upper())


def find_files(stated: Sequence[Path], folder: Path) -> list[Path]:
    """The Compose files to read, absolute. Raises `NotFound`."""
    if stated:
        missing = next((path for path in stated if not path.is_file()), None)
        if missing is not None:
            raise NotFound(f"there is no Compose file {missing}")
        return [path.absolute() for path in stated]
    for name in DEFAULT_FILES:
        if (folder / name).is_file():
            override = (folder / name).with_stem(f"{Path(name).stem}.override")
            return [path.absolute() for path in (folder / name, override) if path.is_file()]
    raise NotFound(f"there is no {DEFAULT_FILES[0]} in {folder}: name one with -f")


def load_project(files: Sequence[Path], environment: Mapping[str, str], env_file: Path | None = None) -> Project:
    """Read Compose files, later ones over earlier ones. Variables are those of `environment`, then those of `env_file`
    (by default ``.env`` beside the first file). Raises `InvalidInput` with file and line."""
    folder = files[0].parent
    variables = {**dotenv.read(env_file or folder / ".env", environment), **environment}
    missing: set[str] = set()
    fill = partial(interpolate, variables=variables, missing=missing)
    models: dict[str, dict[str, Value]] = {}
    places: dict[str, Value] = {}
    bindings: dict[tuple[str, str], Binding] = {}
    for path in files:
        document = Document.load(path)
        if (include := document.find("include")) is not None:
            raise InvalidInput(f"{path}:{include.start_mark.line + 1}: include is not read: name the files with -f")
        value = document.value("'models'", fill, "models")
        for key, entry in (value.mapping() if value is not None else {}).items():
            places[key] = entry
            models[key] = _merge(models.get(key, {}), _fields(entry))
        for service in document.keys("services"):
            for binding in _bindings(document, service, fill):
                old = bindings.get((service, binding.model))
                bindings[service, binding.model] = _over(old, binding)
    for name in sorted(missing):
        note(f"warning: the variable {name} is not set: it is taken as empty")
    for binding in bindings.values():
        if binding.model not in models:
            binding.where.fail(
                f"service {binding.service!r} uses the model {binding.model!r}, which models does not name"
            )
    if not models:
        raise NotFound(f"{files[0]} names no models: they stand under models at its top level")
    found = [_model(key, places[key], fields, folder) for key, fields in models.items()]
    return Project(tuple(files), folder, tuple(found), tuple(bindings.values()))


def _fields(entry: Value) -> dict[str, Value]:
    fields = entry.mapping()
    known = {key: value for key, value in fields.items() if not key.startswith("x-")}
    replace(entry, entries=known).mapping(*_FIELDS)
    return {key: value for key, value in known.items() if not _is_null(value)}


def _merge(old: dict[str, Value], new: dict[str, Value]) -> dict[str, Value]:
    """`new` over `old`: scalars replace, lists of flags are joined."""
    merged = {**old, **new}
    before, after = old.get("runtime_flags"), new.get("runtime_flags")
    if before is not None and after is not None and before.items is not None and after.items is not None:
        merged["runtime_flags"] = replace(after, items=(*before.items, *after.items))
    return merged


def _is_null(value: Value) -> bool:
    return value.plain and value.scalar in ("", "~", "null")


def _model(key: str, entry: Value, fields: dict[str, Value], folder: Path) -> ComposeModel:
    if "model" not in fields:
        entry.fail(f"the model {key!r} has no reference: write model: HOST/NAME:TAG")
    written = _scalar(fields["model"])
    try:
        reference = Reference.parse(written)
    except InvalidInput as error:
        fields["model"].fail(str(error))
    if reference.layout is not None:
        reference = replace(reference, layout=str(folder / reference.layout))
    return ComposeModel(
        key, fields["model"], written, reference,
        driver=_scalar(fields["driver"]) if "driver" in fields else None,
        context_size=fields["context_size"].integer() if "context_size" in fields else None,
        gpus=_gpus(fields["gpus"]) if "gpus" in fields else None,
        flags=tuple(_flags(fields["runtime_flags"])) if "runtime_flags" in fields else (),
    )  # fmt: skip


def _scalar(value: Value) -> str:
    """A scalar as it is written, whatever else YAML would make of it."""
    if value.scalar is None or not value.scalar:
        value.fail(f"{value.what} must be text")
    return value.scalar


def _gpus(value: Value) -> str:
    return ",".join(_scalar(item) for item in value.items) if value.items is not None else _scalar(value)


def _flags(value: Value) -> Iterator[str]:
    """Flags, from one string as a shell would split it, or from a list with one argument an item."""
    if value.items is not None:
        for item in value.items:
            if item.scalar is None:
                item.fail("a flag must be text")
            yield item.scalar
        return
    try:
        yield from shlex.split(_scalar(value))
    except ValueError as error:
        value.fail(f"{value.what} cannot be split into flags: {error}")


def _bindings(document: Document, service: str, fill: partial[str]) -> Iterator[Binding]:
    value = document.value(f"the models of service {service!r}", fill, "services", service, "models")
    if value is None:
        return
    if value.items is not None:
        for item in value.items:
            yield Binding(service, item, item.text())
        return
    for key, entry in value.mapping().items():
        fields = {} if _is_null(entry) else entry.mapping("endpoint_var", "model_var")
        names = {name: _variable(fields[name]) for name in fields}
        yield Binding(service, entry, key, names.get("endpoint_var", ""), names.get("model_var", ""))


def _variable(value: Value) -> str:
    name = _scalar(value)
    if not _VARIABLE.fullmatch(name):
        value.fail(f"{name[:80]!r} is not the name of a variable")
    return name


def _over(old: Binding | None, new: Binding) -> Binding:
    if old is None:
        return new
    return replace(new, endpoint_var=new.endpoint_var or old.endpoint_var, model_var=new.model_var or old.model_var)
