"""Where repositories are copied from and to: a registry, one repository of it, or an OCI layout.

==================  ==========================================================================
``HOST``            every repository in the registry's catalog; as a target, under the same names
``HOST/GLOB``       those whose names match
``HOST/NAME``       one repository; as a target of several, their names go below ``NAME/``
``oci:PATH``        every repository in an OCI image layout; its ref names are ``NAME:TAG``, or plain tags where the
                    layout holds one repository without a name
==================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from artifact.errors import InvalidInput
from artifact.layout import LayoutRepository
from artifact.layout.index import ref_name
from artifact.reference import Reference, is_host, is_name, is_tag
from artifact.remote import RemoteRepository
from artifact.remote.catalog import repositories
from artifact.repository import Repository
from supplychain.glob import matches

_LAYOUT = "oci:"


@dataclass(frozen=True)
class Place:
    """A place as a user wrote it. `host` is None for a layout, `path` for a registry; `name` is a repository, or a
    pattern of names, and empty where there is none."""

    text: str
    host: str | None
    path: Path | None
    name: str = ""
    plain_http: bool = False

    @classmethod
    def parse(cls, text: str, plain_http: bool = False) -> Place:
        """Read a place. Raises `InvalidInput`."""
        if text.startswith(_LAYOUT):
            path = text.removeprefix(_LAYOUT)
            if not path or "\0" in path:
                raise InvalidInput("a layout is oci:PATH")
            return cls(text, None, Path(path))
        host, slash, name = text.partition("/")
        if not is_host(host) or (slash and "." not in host and ":" not in host and host != "localhost"):
            raise InvalidInput(f"{text[:80]!r} is no place: write HOST, HOST/NAME or oci:PATH")
        if slash and not is_name(name) and "*" not in name:
            raise InvalidInput(f"not a repository name: {name[:80]!r}")
        return cls(text, host, None, name, plain_http)

    @property
    def is_one(self) -> bool:
        """Whether it names one repository of a registry."""
        return bool(self.name) and "*" not in self.name

    def open(self, name: str) -> Repository:
        """One of its repositories; no name stands for the layout's only one."""
        if self.path is not None:
            return LayoutRepository(self.path, name or None)
        assert self.host is not None
        return RemoteRepository(self.host, name, plain_http=self.plain_http)

    def names(self) -> list[str]:
        """The names of its repositories. Raises `NotFound`, `Unreachable`, `Unauthorized`."""
        if self.path is not None:
            return _names_in_layout(LayoutRepository(self.path))
        if self.is_one:
            return [self.name]
        assert self.host is not None
        known = repositories(self.host, plain_http=self.plain_http)
        return [name for name in known if not self.name or matches(self.name, name)]


@dataclass(frozen=True)
class Pair:
    """One repository and where it goes. `listed` is whether the source's own catalog named it."""

    source: Repository
    target: Repository
    listed: bool


def pairs(source: Place, target: Place, include: Sequence[str] = ()) -> list[Pair]:
    """Every repository that is to be copied, and its target. `include` are patterns of names; none means all.

    Raises `InvalidInput` where a target cannot be named, or would be the source itself.
    """
    if target.name and not target.is_one:
        raise InvalidInput(f"{target.text}: a target has no pattern in it; choose repositories with --include")
    found = []
    for name in source.names():
        shown = _bare(name)
        if include and shown and not any(matches(pattern, shown) for pattern in include):
            continue
        pair = Pair(source.open(name), target.open(_target_name(source, target, shown)), not source.is_one)
        if (source.host, source.path) == (target.host, target.path) and pair.target.place == pair.source.place:
            raise InvalidInput(f"{pair.source.place} would be copied onto itself")
        found.append(pair)
    return found


def _target_name(source: Place, target: Place, name: str) -> str:
    if target.path is not None:
        return "" if source.is_one or not name else name
    if source.is_one or not name:
        if not (target.name or name):
            raise InvalidInput(f"{source.text} holds a repository without a name: write {target.text}/NAME")
        return target.name or name
    return f"{target.name}/{name}" if target.name else name


def _bare(name: str) -> str:
    """A repository name without the host that a local store keeps before it."""
    return Reference.parse(name).name if name else ""


def _names_in_layout(layout: LayoutRepository) -> list[str]:
    names = set()
    for entry in layout.entries():
        name, _, tag = (ref_name(entry) or "").rpartition(":")
        if is_tag(tag) and (not name or is_name(_bare_or_nothing(name))):
            names.add(name)
    return sorted(names)


def _bare_or_nothing(name: str) -> str:
    try:
        return _bare(name)
    except InvalidInput:
        return ""
