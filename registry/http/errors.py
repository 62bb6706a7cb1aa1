"""Errors as the specification writes them. Source: distribution-spec, "Error Codes"."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from typing import Any

from starlette.responses import Response

from artifact.errors import DigestMismatch, InvalidInput, Malformed, StowageError
from registry.manifests import ReferenceUnknown
from registry.proxy.mirror import UpstreamAway, UpstreamRefuses
from registry.quarantine import Quarantined
from registry.store.protocol import Conflict, StoreUnavailable, TooLarge
from registry.tagrules import TagRefused


class RegistryError(StowageError):
    """An answer other than success: HTTP status, the specification's code, a sentence for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.error = code
        self.headers = dict(headers or {})

    def response(self) -> Response:
        """The error as a response."""
        return error_response(self.status, self.error, str(self), self.headers)


def error_response(status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error document, in ASCII: a message may quote what cannot be written otherwise."""
    body: dict[str, Any] = {"errors": [{"code": code, "message": message}]}
    return Response(json.dumps(body, separators=(",", ":")), status, headers, "application/json")


def translated(error: StowageError) -> RegistryError:
    """The answer to an error that no endpoint has given a meaning of its own."""
    if isinstance(error, RegistryError):
        return error
    if isinstance(error, ReferenceUnknown):
        return RegistryError(404, "MANIFEST_BLOB_UNKNOWN", str(error))
    if isinstance(error, TagRefused | Quarantined):
        return RegistryError(403, "DENIED", str(error))
    if isinstance(error, DigestMismatch | InvalidInput):
        return RegistryError(400, "DIGEST_INVALID", str(error))
    if isinstance(error, Malformed):
        return RegistryError(400, "MANIFEST_INVALID", str(error))
    if isinstance(error, TooLarge):
        return RegistryError(413, "SIZE_INVALID", str(error))
    if isinstance(error, Conflict):
        return RegistryError(409, "DENIED", str(error))
    if isinstance(error, StoreUnavailable):  # what it says of endpoint, bucket and keys is for the log
        return unavailable("the object store does not answer as it should: try again later")
    if isinstance(error, UpstreamAway):
        return unavailable(str(error))
    if isinstance(error, UpstreamRefuses):
        return RegistryError(502, "UNAVAILABLE", str(error))
    return RegistryError(500, "UNKNOWN", "internal error")


def unavailable(message: str) -> RegistryError:
    """The store fails; trying again later may help."""
    return RegistryError(503, "UNAVAILABLE", message, {"Retry-After": "5"})


def storage_failed(error: OSError) -> RegistryError:
    """A folder's disk is full, which no retry will mend, or fails."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RegistryError(507, "UNAVAILABLE", "the registry's storage is full: nothing was stored; make room first")
    return unavailable(f"storage failed: {error.strerror}")


def blob_unknown(digest: object) -> RegistryError:
    """The repository does not have the blob."""
    return RegistryError(404, "BLOB_UNKNOWN", f"blob {digest} is not in this repository")


def manifest_unknown(name: str, reference: str) -> RegistryError:
    """The repository does not have the manifest or tag."""
    return RegistryError(404, "MANIFEST_UNKNOWN", f"{name} has no manifest {reference[:140]}")


def upload_unknown() -> RegistryError:
    """There is no such upload in the repository."""
    return RegistryError(404, "BLOB_UPLOAD_UNKNOWN", "no such upload, or it has expired: begin a new one")


def name_unknown(name: str) -> RegistryError:
    """Nothing was ever pushed to the repository."""
    return RegistryError(404, "NAME_UNKNOWN", f"no repository {name}")
