"""References: the names users write.

``[HOST[:PORT]/]NAME[:TAG][@DIGEST]`` names an artifact in a registry, or in the local store where no host is given;
``oci:PATH[:TAG][@DIGEST]`` names one in an OCI image layout folder. Names and tags follow the distribution
specification ("Pulling manifests"); the host is told from the first path component by Docker's rule: it contains a
dot or a colon, or is ``localhost``.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, replace

from artifact.digest import Digest
from artifact.errors import InvalidInput

NAME = re.compile(r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*")
"""A repository name (distribution-spec, "Pulling manifests")."""

TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}")
"""A tag (distribution-spec, "Pulling manifests")."""

MAX_NAME = 255
"""Longest repository name with its host that clients in the field accept, in characters."""

_HOST_LABEL = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]*[a-zA-Z0-9])?"
_HOST = re.compile(rf"(?:{_HOST_LABEL}(?:\.{_HOST_LABEL})*|\[[0-9a-fA-F:.]+\])(?::([0-9]{{1,5}}))?")
_LAYOUT_SCHEME = "oci:"


def is_name(text: str) -> bool:
    """Whether `text` is a repository name."""
    return len(text) <= MAX_NAME and NAME.fullmatch(text) is not None


def is_tag(text: str) -> bool:
    """Whether `text` is a tag."""
    return TAG.fullmatch(text) is not None


def referrers_tag(subject: Digest) -> str:
    """The tag that stands in for the referrers listing of `subject` (distribution-spec, "Referrers Tag Schema")."""
    return f"{subject.algorithm}-{subject.hex[:64]}"


def shown_tags(tags: list[str], near: str = "", limit: int = 8) -> str:
    """`tags` for the end of an error message, those first that begin most like `near`, and those left out that only
    hold signatures and referrers."""
    wanted = [tag for tag in tags if not re.match(r"sha(256|512)-[0-9a-f]{64}", tag)]
    wanted.sort(key=lambda tag: _alike(near.lower(), tag.lower()), reverse=True)
    more = ", …" if len(wanted) > limit else ""
    return f" (it has {', '.join(wanted[:limit])}{more})" if wanted else ""


def _alike(one: str, other: str) -> int:
    """How many characters the two begin with in common."""
    return next((at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def is_host(text: str) -> bool:
    """Whether `text` is a host name or address, with or without a port."""
    match = _HOST.fullmatch(text)
    if match is None or (match[1] is not None and not 0 < int(match[1]) < 65536):
        return False
    if text.startswith("["):
        try:
            ipaddress.IPv6Address(text[1 : text.index("]")])
        except ValueError:
            return False
    return True


@dataclass(frozen=True)
class Reference:
    """A parsed reference.

    `host` is None for the local store and for layouts. `layout` is the folder of an ``oci:`` reference, and None
    otherwise; `name` is then empty. Where `tag` and `digest` both stand, whoever resolves the reference must find
    that the tag points at the digest.
    """

    name: str
    host: str | None = None
    tag: str | None = None
    digest: Digest | None = None
    layout: str | None = None

    def __post_init__(self) -> None:
        if self.layout is None:
            if not is_name(self.name):
                raise InvalidInput(
                    f"not a repository name: {self.name[:80]!r} (lower-case letters, digits, and . _ - between them)"
                )
        elif not self.layout or self.name or self.host is not None or "\0" in self.layout:
            raise InvalidInput("an oci: reference is oci:PATH:TAG")
        if self.host is not None:
            if not is_host(self.host):
                raise InvalidInput(f"not a registry host: {self.host[:80]!r}")
            if len(self.host) + 1 + len(self.name) > MAX_NAME:
                raise InvalidInput(f"repository name too long: more than {MAX_NAME} characters with its host")
        if self.tag is not None and not is_tag(self.tag):
            raise InvalidInput(
                f"not a tag: {self.tag[:140]!r} (letters, digits, and . _ - after the first; at most 128)"
            )

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Read a reference as a user writes it. Raises `InvalidInput` with what is wrong."""
        try:
            return _parse_layout(text) if text.startswith(_LAYOUT_SCHEME) else _parse_registry(text)
        except InvalidInput as error:
            raise InvalidInput(f"bad reference {text[:200]!r}: {error}") from None

    @property
    def is_local(self) -> bool:
        """Whether it names something in the local store: neither a host nor a layout folder."""
        return self.host is None and self.layout is None

    @property
    def repository(self) -> str:
        """The place without tag and digest: ``HOST/NAME``, ``NAME`` or ``oci:PATH``."""
        if self.layout is not None:
            return f"{_LAYOUT_SCHEME}{self.layout}"
        return f"{self.host}/{self.name}" if self.host else self.name

    def with_tag(self, tag: str | None) -> Reference:
        """The same place with another tag, and no digest."""
        return replace(self, tag=tag, digest=None)

    def with_digest(self, digest: Digest) -> Reference:
        """The same reference, pinned to `digest`."""
        return replace(self, digest=digest)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.repository}{tag}{digest}"


def _split_digest(text: str) -> tuple[str, Digest | None]:
    rest, at, digest = text.rpartition("@")
    return (rest, Digest.parse(digest)) if at else (text, None)


def _parse_registry(text: str) -> Reference:
    rest, digest = _split_digest(text)
    host: str | None = None
    first, slash, remainder = rest.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        host, rest = first, remainder
    name, colon, tag = rest.partition(":")
    return Reference(name=name, host=host, tag=tag if colon else None, digest=digest)


def _parse_layout(text: str) -> Reference:
    rest = text.removeprefix(_LAYOUT_SCHEME)
    digest: Digest | None = None
    # A folder's name may contain "@": only a well-formed digest at the end is taken for one.
    head, at, tail = rest.rpartition("@")
    if at and re.fullmatch(r"sha(256|512):[0-9a-f]*", tail):
        rest, digest = head, Digest.parse(tail)
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        return Reference(name="", layout=rest, digest=digest)
    return Reference(name="", layout=path, tag=tag, digest=digest)
