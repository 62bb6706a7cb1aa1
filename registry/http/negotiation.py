"""Which of a model's manifests a client wants. Source: RFC 9110, section 12; Ollama's registry client.

A manifest has one representation, whatever the Accept header says, with one exception: a model that was packed for
Ollama has a sibling over the same weights, which its annotation names by digest. Ollama asks for a tag with an Accept
header of Docker's manifest type alone, which no client that reads OCI manifests sends.
"""

from __future__ import annotations

from starlette.requests import Request

from artifact import mediatypes
from artifact.digest import Digest
from artifact.errors import InvalidInput, Malformed
from artifact.manifest import Manifest
from registry.manifests import StoredManifest

_DOCKER = "application/vnd.docker.distribution.manifest."


def accepts_docker_only(request: Request) -> bool:
    """Whether the Accept headers name Docker's image manifest, and nothing that is not Docker's."""
    items = [item for header in request.headers.getlist("accept") for item in header.split(",")]
    types = {item.partition(";")[0].strip().lower() for item in items} - {""}
    return mediatypes.DOCKER_MANIFEST in types and all(item.startswith(_DOCKER) for item in types)


def ollama_sibling(manifest: StoredManifest) -> Digest | None:
    """The manifest of the same model in Ollama's layout; None if there is none."""
    if manifest.media_type != mediatypes.IMAGE_MANIFEST:
        return None
    try:
        document = manifest.document
        stated = document.annotations.get(mediatypes.OLLAMA) if isinstance(document, Manifest) else None
        return Digest.parse(stated) if stated else None
    except (Malformed, InvalidInput):
        return None
