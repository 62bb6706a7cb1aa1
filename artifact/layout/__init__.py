"""An OCI image layout folder as a repository. Source: OCI image-spec, image-layout.md."""

from artifact.layout.repository import LayoutRepository

__all__ = ["LayoutRepository"]
