"""A repository in an OCI registry. Source: OCI distribution-spec 1.1."""

from artifact.remote.repository import RemoteRepository

__all__ = ["RemoteRepository"]
