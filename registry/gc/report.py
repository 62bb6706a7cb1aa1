"""What a cycle did."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass
class Report:
    """Counts of objects, and of bytes given back. In a dry run, what would have been done."""

    manifests: int = 0
    blobs: int = 0
    condemned: int = 0
    revived: int = 0
    deleted_manifests: int = 0
    deleted_links: int = 0
    deleted_referrers: int = 0
    listed_referrers: int = 0
    deleted_blobs: int = 0
    deleted_data: int = 0
    deleted_bytes: int = 0
    expired_uploads: int = 0
    unfinished_writes: int = 0

    def to_json(self) -> dict[str, int]:
        return asdict(self)

    def to_text(self) -> str:
        """One line for people."""
        return (
            f"{self.manifests} manifests and {self.blobs} blobs looked at; {self.condemned} objects condemned, "
            f"{self.revived} revived; deleted {self.deleted_manifests} manifests, {self.deleted_blobs} blobs, "
            f"{self.deleted_links} links, {self.deleted_data} data objects of {self.deleted_bytes} bytes; "
            f"{self.listed_referrers} referrers listed that were not; "
            f"{self.expired_uploads} uploads expired, {self.unfinished_writes} unfinished writes removed"
        )
