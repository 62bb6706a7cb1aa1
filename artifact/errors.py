"""What can go wrong with an artifact, said in one line a user can act on.

Every error the commands show derives from `StowageError`. The message names the file or reference and what to do
next; `exit_code` is the process status the command line contract gives it.
"""

from __future__ import annotations


class StowageError(Exception):
    """Anything a user can cause or meet. `code` is stable and meant for scripts."""

    exit_code = 1
    code = "error"


class InvalidInput(StowageError):
    """A value the user wrote cannot be used: a reference, a digest, an option."""

    exit_code = 2
    code = "invalid-input"


class NotFound(StowageError):
    """The repository, manifest, tag, blob or file does not exist where it was looked for."""

    code = "not-found"


class Malformed(StowageError):
    """A document or file breaks its format: a manifest, a header, a config."""

    code = "malformed"


class Unreachable(StowageError):
    """A server could not be reached, or stopped answering."""

    code = "unreachable"


class Unauthorized(StowageError):
    """A server wants credentials that were not given, or refuses the ones that were."""

    code = "unauthorized"


class ServerError(StowageError):
    """A server answered, but not with what the specification lets it answer."""

    code = "server-error"


class StorageFull(StowageError):
    """The disk has no room for what arrives. What did arrive is kept, so that the transfer can go on later."""

    code = "disk-full"


class Refused(StowageError):
    """A trust decision went against the artifact. Exit status 3."""

    exit_code = 3
    code = "refused"


class DigestMismatch(Refused):
    """The bytes are not the ones the digest names."""

    code = "digest-mismatch"
