"""The `Repository` interface over a registry."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from urllib.parse import quote

from artifact import mediatypes
from artifact.descriptor import Descriptor
from artifact.digest import Digest
from artifact.errors import DigestMismatch, InvalidInput, Malformed, NotFound, ServerError
from artifact.manifest import MAX_BYTES, Index, Manifest, load_json
from artifact.progress import Progress
from artifact.reference import is_name, is_tag, referrers_tag
from artifact.remote.answer import Response, number
from artifact.remote.composition import Composition
from artifact.remote.credentials import Credentials
from artifact.remote.download import RemoteBlob
from artifact.remote.transport import Transport
from artifact.remote.unnamed import Hashed, OneRequestOnly, UnnamedUpload
from artifact.remote.upload import BlobUpload
from artifact.remote.urls import join_url, path_and_query, split_url
from artifact.repository import Repository
from artifact.source import Reader, Source

_MAX_PAGES = 1000
_MAX_BARREN = 8  # pages one after the other with nothing new on them: a registry that turns in a circle
_MAX_TAGS = 1_000_000
_LINK = re.compile(r"<([^>]*)>([^<]*)")
_RELATION = re.compile(r";\s*rel\s*=\s*\"?([^\";,]*)", re.IGNORECASE)
_OCTETS = "application/octet-stream"
_MAX_REFERRERS = 10_000


class RemoteRepository:
    """The repository `name` in the registry `host`. Safe for several threads.

    `transport` is that of other repositories of the same registry, whose connections it shares.
    """

    def __init__(
        self,
        host: str,
        name: str,
        *,
        plain_http: bool = False,
        credentials: Credentials | None = None,
        transport: Transport | None = None,
    ) -> None:
        if not is_name(name):
            raise InvalidInput(f"not a repository name: {name[:80]!r}")
        self.host = host
        self.name = name
        self._transport = transport or Transport(host, plain_http=plain_http, credentials=credentials)
        if host in ("docker.io", "index.docker.io") and "/" not in name:
            self.name = f"library/{name}"
        self._base = f"/v2/{self.name}"
        self._pull, self._push = f"repository:{self.name}:pull", f"repository:{self.name}:pull,push"

    @property
    def place(self) -> str:
        """The repository as a user writes it."""
        return f"{self.host}/{self.name}"

    def resolve(self, reference: str | Digest) -> Descriptor:
        """The descriptor of the manifest a tag or digest names, by HEAD. Raises `NotFound`."""
        response = self._manifest_request("HEAD", reference)
        stated, length = response.headers.get("Docker-Content-Digest"), number(response.headers.get("Content-Length"))
        if length is None or (stated is None and not isinstance(reference, Digest)):
            return self.manifest(reference)[0]  # the specification lets a HEAD leave these out
        digest = reference if isinstance(reference, Digest) else self._digest(stated or "")
        return Descriptor(_media_type(response), digest, length)

    def manifest(self, reference: str | Digest) -> tuple[Descriptor, bytes]:
        """A manifest's descriptor and bytes, checked against its digest. Raises `NotFound`, `DigestMismatch`."""
        response = self._manifest_request("GET", reference)
        raw, media_type = response.data, _media_type(response)
        if len(raw) > MAX_BYTES:
            raise Malformed(f"{self.place}: manifest is larger than {MAX_BYTES} bytes")
        stated = response.headers.get("Docker-Content-Digest")
        expected = reference if isinstance(reference, Digest) else self._digest(stated) if stated else Digest.of(raw)
        if not expected.matches(raw):
            raise DigestMismatch(f"{self.place}: the manifest received for {expected} has other bytes")
        return Descriptor(media_type, expected, len(raw)), raw

    def _manifest_request(self, method: str, reference: str | Digest) -> Response:
        if isinstance(reference, str) and not is_tag(reference):
            raise InvalidInput(f"not a tag: {reference[:80]!r}")
        return self._transport.request(
            method, f"{self._base}/manifests/{reference}", scope=self._pull, expect=(200,),
            headers={"Accept": ", ".join(mediatypes.MANIFESTS)}, what=f"manifest {reference} in {self.name}",
        )  # fmt: skip

    def push_manifest(self, raw: bytes, media_type: str, tag: str | None = None) -> Descriptor:
        """Store a manifest, and point `tag` at it. A registry without the referrers API gets the fallback
        tag. Raises `DigestMismatch`, and `ServerError` if that tag holds something else."""
        descriptor = Descriptor.of(raw, media_type)
        response = self._transport.request(
            "PUT", f"{self._base}/manifests/{tag or descriptor.digest}", scope=self._push, expect=(201,), body=raw,
            headers={"Content-Type": media_type}, what=f"manifest {tag or descriptor.digest.short} in {self.name}",
        )  # fmt: skip
        stated = response.headers.get("Docker-Content-Digest")
        if stated and stated != str(descriptor.digest):
            raise DigestMismatch(f"{self.place}: sent manifest {descriptor.digest}, the registry stored {stated[:100]}")
        if media_type in (mediatypes.IMAGE_MANIFEST, mediatypes.IMAGE_INDEX) and not response.headers.get(
            "OCI-Subject"
        ):
            is_index = media_type == mediatypes.IMAGE_INDEX
            pushed = Index.parse(raw, media_type) if is_index else Manifest.parse(raw, media_type)
            if pushed.subject:
                kind = pushed.referrer_type if isinstance(pushed, Manifest) else pushed.artifact_type
                entry = Descriptor(media_type, descriptor.digest, descriptor.size, pushed.annotations, kind)
                self._add_to_fallback(pushed.subject.digest, entry)
        return descriptor

    def _add_to_fallback(self, subject: Digest, entry: Descriptor) -> None:
        """List a referrer under the fallback tag (distribution-spec, "Unavailable Referrers API"). Raises `ServerError`
        if that holds something else, which is left as it is."""
        tag = referrers_tag(subject)
        index = self._fallback(subject)
        if index is None:
            raise ServerError(
                f"{self.place}: {entry.digest.short} is stored but cannot be listed as a referrer: the tag {tag} is no "
                "index; remove it and push again"
            )
        listed = [item for item in index if item.digest != entry.digest]
        self.push_manifest(Index([*listed, entry]).to_bytes(), mediatypes.IMAGE_INDEX, tag)

    def tags(self) -> list[str]:
        """All tags, sorted. Raises `NotFound` if the repository does not exist."""
        found: set[str] = set()
        barren = 0
        url = f"{self._base}/tags/list"
        for _ in range(_MAX_PAGES):
            response = self._transport.request("GET", url, scope=self._pull, expect=(200,), what=f"tags of {self.name}")
            tags = load_json(response.data, "tag list").get("tags") or []
            if not isinstance(tags, list):
                raise ServerError(f"{self.place}: the tag list is no list")
            known = len(found)
            found.update(tag for tag in tags if isinstance(tag, str) and is_tag(tag))
            following = next_page(response, url)
            if following is None:
                return sorted(found)
            barren = barren + 1 if len(found) == known else 0
            if barren > _MAX_BARREN or len(found) > _MAX_TAGS:
                break
            url = following
        raise ServerError(f"{self.place}: the tag list has no end: given up, many pages and {len(found)} tags on")

    def referrers(self, subject: Digest, artifact_type: str | None = None) -> list[Descriptor]:
        """Descriptors of the manifests whose subject is `subject`, by the referrers API or the fallback tag."""
        url = f"{self._base}/referrers/{subject}"
        if artifact_type:
            url += f"?artifactType={quote(artifact_type, safe='')}"
        found: dict[Digest, Descriptor] = {}
        try:
            for _ in range(_MAX_PAGES):
                response = self._transport.request("GET", url, scope=self._pull, expect=(200,), what="referrers")
                found.update((item.digest, item) for item in Index.parse(response.data).manifests)
                following = next_page(response, url)
                if following is None or len(found) > _MAX_REFERRERS:
                    break
                url = following
        except NotFound:
            found = {item.digest: item for item in self._fallback(subject) or ()}
        if len(found) > _MAX_REFERRERS:
            raise ServerError(f"{self.place}: more than {_MAX_REFERRERS} referrers of {subject.short}")
        return [item for item in found.values() if artifact_type in (None, item.artifact_type)]

    def _fallback(self, subject: Digest) -> list[Descriptor] | None:
        """The referrers under the fallback tag; None if something else is there."""
        try:
            descriptor, raw = self.manifest(referrers_tag(subject))
        except NotFound:
            return []
        return list(Index.parse(raw).manifests) if descriptor.media_type == mediatypes.IMAGE_INDEX else None

    def has_blob(self, digest: Digest) -> bool:
        """Whether the registry serves the blob in this repository."""
        return self._head_blob(digest) is not None

    def blob_size(self, digest: Digest) -> int | None:
        """The size in bytes of a blob of this repository, by HEAD; None if it is not there, or the registry does not
        say."""
        response = self._head_blob(digest)
        return number(response.headers.get("Content-Length")) if response is not None else None

    def _head_blob(self, digest: Digest) -> Response | None:
        with suppress(NotFound):
            return self._transport.request(
                "HEAD", f"{self._base}/blobs/{digest}", scope=self._pull, expect=(200,), what=f"blob {digest.short}"
            )
        return None

    def read_blob(self, descriptor: Descriptor, limit: int = MAX_BYTES) -> bytes:
        """A small blob, checked. Raises `NotFound`, `DigestMismatch`, `Malformed` if larger than `limit` bytes."""
        if descriptor.size > limit:
            raise Malformed(f"{descriptor.digest.short} is larger than {limit} bytes")
        buffer, filled = bytearray(descriptor.size), 0
        with self.open_blob(descriptor) as reader:
            while count := reader.readinto(memoryview(buffer)[filled:]):
                filled += count
        if filled != descriptor.size or not descriptor.digest.matches(buffer):
            raise DigestMismatch(f"{self.place}: the bytes received for {descriptor.digest} are other bytes")
        return bytes(buffer)

    def open_blob(self, descriptor: Descriptor, offset: int = 0) -> AbstractContextManager[Reader]:
        """A stream of a blob's unchecked bytes from `offset`. Raises `NotFound`, `Unreachable`."""
        return self.blob_source(descriptor)(offset)

    def blob_source(self, descriptor: Descriptor) -> RemoteBlob:
        """The unchecked bytes of a blob, by ranges if wanted, for several threads."""
        return RemoteBlob(self._transport, self.name, descriptor)

    def push_blob(self, descriptor: Descriptor, source: Source, progress: Progress) -> bool:
        """Send a blob the registry does not have; it checks the digest. False if it was there."""
        if self.has_blob(descriptor.digest):
            progress.finish(str(descriptor.digest), "exists")
            return False
        BlobUpload(self._transport, self.name, descriptor, source, progress).run()
        return True

    def compose_blob(
        self, descriptor: Descriptor, source: Source, find: Callable[[], Composition | None], progress: Progress
    ) -> bool:
        """As `push_blob`; where the registry can take some of the blob from other blobs, and does so, only the rest is
        sent. `find` says what that is, and is asked if the blob is not there."""
        if self.has_blob(descriptor.digest):
            progress.finish(str(descriptor.digest), "exists")
            return False
        BlobUpload(self._transport, self.name, descriptor, source, progress, find()).run()
        return True

    def add_blob(self, name: str, size: int, source: Source, progress: Progress) -> Digest:
        """Send content whose digest is not known yet, reading each byte once; the digest. `name` is for progress.

        A registry that takes no blob in pieces gets it in one request, once the rest of it has been hashed.
        """
        hashed = Hashed(name, source, size)
        try:
            return UnnamedUpload(self._transport, self.name, name, size, hashed, progress).run()
        except OneRequestOnly:
            digest = hashed.digest()
            BlobUpload(self._transport, self.name, Descriptor(_OCTETS, digest, size), source, progress).run()
            return digest

    def mount_blob(self, digest: Digest, origin: Repository) -> bool:
        """Make a blob of another repository of this registry appear here. False if the registry does not do that."""
        if not isinstance(origin, RemoteRepository) or origin.host != self.host or origin.name == self.name:
            return False
        url = f"{self._base}/blobs/uploads/?mount={digest}&from={quote(origin.name, safe='')}"
        scope = f"{self._push} repository:{origin.name}:pull"
        response = self._transport.request(
            "POST", url, scope=scope, expect=(201, 202), headers={"Content-Length": "0"}, what=f"blob {digest.short}"
        )
        return response.status == 201

    def delete_tag(self, tag: str) -> None:
        """Remove a tag. Raises `NotFound`."""
        self._transport.request(
            "DELETE", f"{self._base}/manifests/{tag}", scope=f"repository:{self.name}:pull,push,delete", expect=(202,),
            what=f"tag {tag} in {self.name}",
        )  # fmt: skip

    def delete_manifest(self, digest: Digest) -> None:
        """Remove a manifest, with the tags that point at it. Raises `NotFound`."""
        self._transport.request(
            "DELETE", f"{self._base}/manifests/{digest}", scope=f"repository:{self.name}:pull,push,delete",
            expect=(202,), what=f"manifest {digest.short} in {self.name}",
        )  # fmt: skip

    def _digest(self, text: str) -> Digest:
        try:
            return Digest.parse(text)
        except InvalidInput:
            raise ServerError(f"{self.host} names a manifest by something that is no digest: {text[:80]!r}") from None


def _media_type(response: Response) -> str:
    return response.headers.get("Content-Type", "").partition(";")[0].strip() or mediatypes.IMAGE_MANIFEST


def next_page(response: Response, url: str) -> str | None:
    """The next page of a listing (RFC 8288), taken only as path and query: a listing stays on its host. Raises
    `ServerError` if it is none."""
    for target, parameters in _LINK.findall(response.headers.get("Link", "")):
        relation = _RELATION.search(parameters)
        if relation and "next" in relation[1].lower().split():
            return path_and_query(split_url(join_url(url, target, "the registry"), "the registry"))
    return None
