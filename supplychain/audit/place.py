"""Where an audit goes: registries, some of their repositories, and layout folders."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from artifact.digest import Digest
from artifact.errors import InvalidInput
from artifact.layout import LayoutRepository
from artifact.layout.index import ref_name
from artifact.mediatypes import SUBJECT
from artifact.reference import Reference, is_host, is_name, is_tag
from artifact.remote import RemoteRepository
from artifact.remote.catalog import listed
from artifact.remote.pace import Pace
from artifact.remote.transport import Transport
from artifact.repository import Repository
from supplychain.audit.record import Subject
from supplychain.glob import Target, matches

_LAYOUT = "oci:"
_PATTERN = re.compile(r"[a-z0-9._/*-]{1,255}")


@dataclass(frozen=True)
class Scope:
    """What a user wants audited: the repositories of `host` whose names match `pattern`, or the folder `layout`."""

    host: str | None = None
    pattern: str = "**"
    layout: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Scope:
        """Read ``HOST[/NAME-GLOB]`` or ``oci:PATH``. Raises `InvalidInput`."""
        if text.startswith(_LAYOUT):
            if text == _LAYOUT or "\0" in text:
                raise InvalidInput("a layout is oci:PATH")
            return cls(layout=Path(text.removeprefix(_LAYOUT)).resolve())
        host, slash, pattern = text.partition("/")
        if "://" in text or not is_host(host):
            raise InvalidInput(
                f"not a registry: {text[:80]!r} (want HOST[:PORT], HOST/NAME-GLOB or oci:PATH, no scheme)"
            )
        if not slash:
            return cls(host)
        if not _PATTERN.fullmatch(pattern) or "***" in pattern or ("*" not in pattern and not is_name(pattern)):
            raise InvalidInput(
                f"not a pattern of repository names: {pattern[:80]!r} (names without a tag; * not across /, ** across)"
            )
        return cls(host, pattern)

    def __str__(self) -> str:
        return f"{_LAYOUT}{self.layout}" if self.layout else f"{self.host}/{self.pattern}"


@dataclass(frozen=True)
class Place:
    """One repository to be looked at. `asked` says that it was named by the user, so that its absence is an error."""

    subject: Subject
    repository: Repository
    reference: Reference
    asked: bool = False

    def about(self, tag: str | None = None, digest: Digest | None = None) -> Subject:
        """One of its artifacts."""
        return replace(self.subject, tag=tag, digest=str(digest) if digest else None)

    def target(self, tag: str | None) -> Target:
        """One of its artifacts, as the rules of a policy see it."""
        return Target.of(self.reference.with_tag(tag))

    def untagged(self) -> list[Digest]:
        """The manifests without a tag that the place itself lists: a layout does, a registry does not."""
        if not isinstance(self.repository, LayoutRepository):
            return []
        entries = [entry for entry in self.repository.entries() if not is_tag(ref_name(entry) or "")]
        return list(dict.fromkeys(entry.digest for entry in entries if SUBJECT not in entry.annotations))


@dataclass(frozen=True)
class Registry:
    """How registries are asked: in plain HTTP where they are not on this machine, and how fast."""

    plain_http: bool = False
    pace: Pace | None = None

    def places(self, scope: Scope, names: Sequence[str] | None = None) -> Iterator[Place]:
        """The repositories of a scope as they are found. With `names` (and where the pattern is a name) no catalog is
        asked for. Raises what asking for the catalog does."""
        if scope.layout is not None:
            place = f"{_LAYOUT}{scope.layout}"
            subject = Subject(registry="oci", repository=str(scope.layout).strip("/"), place=place)
            reference = Reference(name="", layout=str(scope.layout))
            yield Place(subject, LayoutRepository(scope.layout), reference, asked=True)
            return
        assert scope.host is not None
        transport = Transport(scope.host, plain_http=self.plain_http, pace=self.pace)
        given = [scope.pattern] if names is None and "*" not in scope.pattern else names
        for name in listed(transport) if given is None else dict.fromkeys(given):
            if matches(scope.pattern, name):
                yield Place(
                    subject=Subject(scope.host, name, f"{scope.host}/{name}"),
                    repository=RemoteRepository(scope.host, name, transport=transport),
                    reference=Reference(name=name, host=scope.host),
                    asked=given is not None,
                )


def read_names(path: Path) -> list[str]:
    """Repository names from a file, one a line; ``#`` begins a comment. Raises `InvalidInput`."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidInput(f"cannot read {path}: {getattr(error, 'strerror', None) or 'it is not text'}") from None
    names = [line.partition("#")[0].strip() for line in lines]
    for number, name in enumerate(names, 1):
        if name and not is_name(name):
            raise InvalidInput(f"{path}:{number}: not a repository name: {name[:80]!r}")
    return [name for name in names if name]
